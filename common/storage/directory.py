"""The object store of the embedded mode: a directory."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

from common.errors import NotFound, StoreUnavailable
from common.storage.base import (
    BLOCK_BYTES,
    Hashing,
    ObjectStat,
    Readable,
    StoredObject,
    check_key,
    check_size,
    os_errors,
)
from common.storage.files import ABSENT, copy, found, rename, write_all
from common.storage.measure import measured, measured_list, measured_stream
from common.storage.parts import PartFolders

ABANDONED_AFTER_S = 60.0


class DirectoryStore(PartFolders):
    """Objects as read-only files in a directory.

    A file is written beside, flushed to disk, then renamed. While it is written it is locked, so
    that what a killed process left can be told from what is still being written.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._partial = root / ".partial"  # no key begins with a dot

    @measured("prepare")
    def prepare(self) -> None:
        with os_errors(f"preparing {self.root}"):
            self._partial.mkdir(parents=True, exist_ok=True)
            self._sweep()
            self.sweep_multiparts(ABANDONED_AFTER_S)

    @measured("check")
    def check(self) -> float | None:
        usable = self.root.is_dir() and os.access(self.root, os.R_OK | os.W_OK | os.X_OK)
        if not usable:
            raise StoreUnavailable(f"{self.root} is not a directory or not writable")
        return None

    @measured("put")
    def put_stream(
        self, key: str, reader: Readable, media_type: str, max_bytes: int | None = None
    ) -> StoredObject:
        path = self._path(key)
        doing = f"storing {key}"
        source = Hashing(reader, max_bytes)
        with self._beside(path, doing) as file:
            while block := source.read():
                with os_errors(doing):
                    write_all(file, block)
        return source.stored(key, self.stat(key).etag)

    @measured("put")
    def put_file(self, key: str, path: Path, media_type: str) -> StoredObject:
        with path.open("rb") as file:
            return self.put_stream(key, file, media_type)

    @measured_stream("read")
    @contextmanager
    def open(
        self, key: str, start: int = 0, length: int | None = None
    ) -> Iterator[Iterator[bytes]]:
        with found(f"opening {key}"):
            file = self._path(key).open("rb")
        with file:
            file.seek(start)
            yield _blocks(file, key, length)

    @measured("fetch")
    def fetch(self, key: str, path: Path, max_bytes: int | None = None) -> None:
        source = self._path(key)
        with found(f"fetching {key}"):
            path.unlink(missing_ok=True)
            if max_bytes is not None:
                check_size(source.stat().st_size, max_bytes)
            try:
                os.link(source, path)
            except ABSENT:
                raise
            except OSError:  # another file system, or one without hard links
                copy(source, path)

    def local_path(self, key: str) -> Path | None:
        path = self._path(key)
        return path if path.is_file() else None

    @measured("stat")
    def stat(self, key: str) -> ObjectStat:
        with found(f"looking at {key}"):
            status = self._path(key).stat()
        if not S_ISREG(status.st_mode):
            raise NotFound(f"no object {key}")
        return ObjectStat(key, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}")

    @measured("delete")
    def delete(self, key: str) -> None:
        path = self._path(key)
        with os_errors(f"deleting {key}"):
            try:
                path.unlink()
            except ABSENT:
                return
            for folder in path.parents:
                if folder == self.root:
                    return
                try:
                    folder.rmdir()
                except OSError:  # not empty, or already gone
                    return

    @measured_list("list")
    def list(self, prefix: str = "") -> Iterator[ObjectStat]:
        if prefix:
            check_key(prefix.rstrip("/"))
        for key in sorted(key for key in self._keys(prefix) if key.startswith(prefix)):
            try:
                yield self.stat(key)
            except NotFound:  # deleted meanwhile
                continue

    def presigned_get(self, key: str, expires_s: int, filename: str) -> str | None:
        return None

    def _keys(self, prefix: str) -> Iterator[str]:
        for folder, below, names in os.walk(self.root / prefix.rpartition("/")[0]):
            below[:] = [name for name in below if not name.startswith(".")]  # those are no keys
            for name in names:
                yield Path(folder, name).relative_to(self.root).as_posix()

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    @contextmanager
    def _beside(self, path: Path, doing: str) -> Iterator[FileIO]:
        """Open a new file that becomes ``path`` when the block ends well, else vanishes."""
        partial = self._partial / os.urandom(16).hex()
        with os_errors(doing):
            self._partial.mkdir(parents=True, exist_ok=True)
            file = FileIO(partial, "x")
        try:
            with file:
                with os_errors(doing):
                    fcntl.flock(file, fcntl.LOCK_EX)
                yield file
                with os_errors(doing):
                    os.fchmod(file.fileno(), 0o444)
                    os.fsync(file.fileno())
                    rename(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def _sweep(self) -> None:
        """Remove what killed processes left half written: files that nobody has locked."""
        for partial in self._partial.iterdir():
            try:
                if time.time() - partial.stat().st_mtime < ABANDONED_AFTER_S:
                    continue  # perhaps just made and not locked yet
                with partial.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    partial.unlink(missing_ok=True)
            except (FileNotFoundError, BlockingIOError):
                continue


def _blocks(file: BinaryIO, key: str, length: int | None) -> Iterator[bytes]:
    missing = length
    while missing is None or missing > 0:
        with os_errors(f"reading {key}"):
            block = file.read(BLOCK_BYTES if missing is None else min(BLOCK_BYTES, missing))
        if not block:
            return
        if missing is not None:
            missing -= len(block)
        yield block
