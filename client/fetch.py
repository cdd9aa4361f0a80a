"""Brings the results of a job into a folder: one folder per recording.

A recording's folder is filled under a hidden name and renamed when it is whole, so what is there
under its own name is complete. Fetching again replaces it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from client.api import Artifact, Gateway, Recording
from client.names import FolderNames
from common.domain import ArtifactKind
from common.errors import DiskFull

THREADS = 4
AUDIO_SUFFIXES = {"audio/flac": ".flac", "audio/x-flac": ".flac"}


@dataclass(frozen=True)
class Fetched:
    """A recording and the folder of its results, None when it has none."""

    recording: Recording
    folder: Path | None


def files_of(recording: Recording) -> dict[str, str]:
    """Return what to fetch: file name to the gateway's name for it."""
    files: dict[str, str] = {}
    for artifact in recording.artifacts:
        files.update(files_of_artifact(artifact))
    if files:
        files["manifest.json"] = "manifest"
    return files


def files_of_artifact(artifact: Artifact) -> dict[str, str]:
    kind = artifact.kind
    if kind is ArtifactKind.EVENTS:
        return {
            "events.json": "events.json",
            "events.csv": "events.csv",
            "labels.txt": "events.txt",
        }
    if kind is ArtifactKind.MASK:
        return {"mask.npz": "artifacts/mask"}
    if kind in (ArtifactKind.ENHANCED, ArtifactKind.RESTORED):
        suffix = AUDIO_SUFFIXES.get(artifact.media_type, ".wav")
        return {f"{kind}{suffix}": f"artifacts/{kind}"}
    if kind in (ArtifactKind.REGIONS, ArtifactKind.REMOVALS):
        return {f"{kind}.json": f"artifacts/{kind}"}
    if kind is ArtifactKind.EXPLANATION:
        return {"explanation.zip": "artifacts/explanation"}
    return {}  # the embedding serves the restorer


def fetch_all(
    gateway: Gateway,
    recordings: Iterable[Recording],
    folder: Path,
    fetched: Callable[[Fetched], None],
) -> None:
    """Fetch the results of the recordings into ``folder``; ``fetched`` is called in their order.

    Raises:
        DiskFull: there is no room; what was not whole is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = FolderNames()

    def one(recording: Recording, name: str) -> Fetched:
        return Fetched(recording, fetch_one(gateway, recording, folder / name))

    with ThreadPoolExecutor(THREADS) as pool:
        for batch in batches(recordings, 64):
            waiting = [pool.submit(one, row, names.of(row.name)) for row in batch]
            try:
                for future in waiting:
                    fetched(future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def fetch_one(gateway: Gateway, recording: Recording, folder: Path) -> Path | None:
    """Fetch the results of one recording; ``folder`` is whole afterwards, or as it was."""
    files = files_of(recording)
    if not files:
        return None
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        beside.mkdir()
        for name, what in files.items():
            gateway.download(recording.id, what, beside / name)
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
    except OSError as error:
        raise as_disk_error(error, folder) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def as_disk_error(error: OSError, folder: Path) -> Exception:
    """Return the error of a full disk as what it is, any other as it came."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"The disk is full: the results do not fit into {folder.parent}.")
    return error


def batches(items: Iterable[Recording], size: int) -> Iterable[list[Recording]]:
    """Yield the items in lists of at most ``size``."""
    batch: list[Recording] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
