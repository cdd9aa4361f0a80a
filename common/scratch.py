"""Folders for what a worker needs only while it works: private, and gone afterwards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

CLOCK_ERROR_S = 2.0  # of the time at which a process was started


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """Make a private folder under ``root`` and remove it afterwards, whatever happens."""
    folder = root / f"{os.getpid()}-{os.urandom(8).hex()}"
    folder.mkdir(parents=True, mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """Give a folder that is kept from run to run, and remove what is in it afterwards."""
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    finally:
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def sweep_scratch(root: Path) -> None:
    """Remove the scratch folders of processes that no longer run on this machine."""
    if not root.is_dir():
        return
    for folder in root.iterdir():
        pid = folder.name.partition("-")[0]
        if pid.isdigit() and not _is_alive(int(pid), folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int, folder: Path) -> bool:
    """Whether the process that made a folder lives.

    A container that starts anew gives its processes the numbers of those before: a folder older
    than this process is not this one's, though it bears its number.
    """
    if pid != os.getpid():
        return bool(psutil.pid_exists(pid))
    began_at: float = psutil.Process().create_time()
    return folder.stat().st_ctime > began_at - CLOCK_ERROR_S
