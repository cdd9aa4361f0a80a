"""Files of the directory store: written whole, renamed durably, their errors as ours."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from common.errors import NotFound, StoreUnavailable
from common.storage.base import os_errors

ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


@contextmanager
def found(doing: str) -> Iterator[None]:
    """Turn the errors of the operating system into ours, with NotFound for what is not there."""
    try:
        with os_errors(doing):
            yield
    except StoreUnavailable as error:
        if isinstance(error.__cause__, ABSENT):
            raise NotFound(f"nothing there while {doing}") from error
        raise


def write_all(file: FileIO, block: bytes) -> None:
    """Write a whole block to an unbuffered file."""
    rest = memoryview(block)
    while rest:
        rest = rest[file.write(rest) :]


def rename(partial: Path, path: Path) -> None:
    """Move ``partial`` to ``path``, durably, making the folders of ``path``."""
    for last in (False, False, True):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.replace(path)
            break
        except FileNotFoundError:  # a deletion has just removed the empty folder
            if last:
                raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make what was renamed into or made in a folder outlast a power cut."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def copy(source: Path, path: Path) -> None:
    """Copy a file; ``path`` is whole afterwards or not there."""
    try:
        shutil.copyfile(source, path)
    except OSError:
        path.unlink(missing_ok=True)
        raise
