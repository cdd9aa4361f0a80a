"""The metrics that the processes of one Celery worker share by files, as their parent tells them.

Each process counts in memory-mapped files of its own, in the folder that the environment names
(``PROMETHEUS_MULTIPROC_DIR``); only the parent reads them all. What a dead child counted is kept,
what it said about itself is not.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from common.metrics import MULTIPROC_DIR

SUMMED = ("counter", "histogram")
KINDS = (*SUMMED, "gauge_livemax")
FILE_BYTES = 512 * 1024  # room for some two thousand series
DEAD = "dead"  # stands where the process id is, of those that have ended


class SharedMetrics(Collector):
    """The folder, for the parent: emptied, read, and tidied up after children."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()  # between who reads and who tidies up

    def wipe(self) -> None:
        """Make the folder, empty. What an earlier parent left is not ours to tell.

        Raises:
            OSError: it cannot be made or written to.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in self.folder.glob("*.db"):
            file.unlink(missing_ok=True)

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of all processes together."""
        with self._lock:
            # A file is empty for a moment when it is made, and has nothing to tell then.
            files = [str(file) for file in self.folder.glob("*.db") if file.stat().st_size]
            metrics: list[Metric] = list(MultiProcessCollector.merge(files))
        return metrics

    def absorb(self, pid: int) -> None:
        """Add what a child that has ended counted to what all ended ones did; forget the rest.

        So children may die without end and leave no more than two files.
        """
        with self._lock:
            for kind in SUMMED:
                ended = self.folder / f"{kind}_{pid}.db"
                self._add(ended, self.folder / f"{kind}_{DEAD}.db")
                ended.unlink(missing_ok=True)  # at once: the next may find no room
            for file in self.folder.glob(f"*_{pid}.db"):
                file.unlink(missing_ok=True)

    @staticmethod
    def _add(source: Path, target: Path) -> None:
        with suppress(FileNotFoundError):
            _allocate(target)
            total = MmapedDict(str(target))
            try:
                for key, value, *_ in MmapedDict.read_all_values_from_file(str(source)):
                    total.write_value(key, total.read_value(key)[0] + value, 0.0)
            finally:
                total.close()


def shared_metrics() -> SharedMetrics | None:
    """Return the folder that the environment names; None where it names none."""
    folder = os.environ.get(MULTIPROC_DIR)
    return SharedMetrics(Path(folder)) if folder else None


def make_room() -> None:
    """Allot this process its files before anything is counted.

    A page of a mapped file for which the disk has no room would kill the process that writes to it.

    Raises:
        OSError: there is no room.
    """
    folder = os.environ.get(MULTIPROC_DIR)
    if folder:
        for kind in KINDS:
            _allocate(Path(folder) / f"{kind}_{os.getpid()}.db")


def _allocate(file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, FILE_BYTES)
    except OSError:
        file.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
