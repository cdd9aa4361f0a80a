"""Multipart uploads of the directory store.

An upload is a folder in ``.parts``: ``about`` (its key and part size), ``data`` (the object to be,
each part at its own place in it, so that completing moves no bytes) and a file per part that has
arrived whole, with its size and entity tag. Whoever writes a part shares a lock on ``about`` and
has the part's own file to himself; whoever completes has ``about`` to himself, so that nobody
writes into an object.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from common.errors import Conflict, NotFound
from common.storage.base import (
    Exactly,
    MultipartStat,
    Readable,
    StoredPart,
    StoredParts,
    check_key,
    os_errors,
)
from common.storage.files import ABSENT, found, rename, sync_folder, write_all
from common.storage.measure import measured, measured_list

STORE_ID = re.compile(r"[0-9a-f]{32}")
ARRIVED = re.compile(rb"(\d+) ([0-9a-f-]+)\n")
ABOUT, DATA = "about", "data"


@dataclass(frozen=True)
class _About:
    """What an upload is to become."""

    key: str
    part_bytes: int


class PartFolders:
    """The part of a directory store that takes uploads in parts. See ``ObjectStore``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._uploads = root / ".parts"  # no key begins with a dot

    @measured("start_multipart")
    def start_multipart(self, key: str, media_type: str, part_bytes: int) -> str:
        check_key(key)
        store_id = os.urandom(16).hex()
        folder = self._uploads / store_id
        made = self._uploads / f".{store_id}"  # not seen before it is whole
        with os_errors(f"starting {key}"):
            made.mkdir(parents=True)
            (made / DATA).touch()
            (made / ABOUT).write_text(json.dumps({"key": key, "part_bytes": part_bytes}))
            made.replace(folder)
            sync_folder(self._uploads)
        return store_id

    @measured("put_part")
    def put_part(self, key: str, store_id: str, number: int, reader: Readable, size: int) -> str:
        folder = self._folder(key, store_id)
        doing = f"storing part {number} of {key}"
        with self._locked(folder, key, fcntl.LOCK_SH, doing) as about:
            if not 0 < size <= about.part_bytes:
                raise ValueError(f"a part of this upload has 1 to {about.part_bytes} bytes")
            with found(doing):
                marker = FileIO(folder / str(number), "a")
            with marker, _alone(marker, doing):
                with found(doing):
                    marker.truncate(0)
                    data = FileIO(folder / DATA, "r+")
                    data.seek((number - 1) * about.part_bytes)
                with data:
                    for block in Exactly(reader, size).blocks():
                        with found(doing):
                            write_all(data, block)
                    with found(doing):
                        os.fdatasync(data.fileno())
                etag = f"{time.time_ns():x}-{size:x}"
                with found(doing):  # not flushed: what a power cut takes is sent again
                    write_all(marker, f"{size} {etag}\n".encode())
                    (folder / ABOUT).stat()  # gone when the upload was aborted meanwhile
        return etag

    @measured("list_parts")
    def list_parts(self, key: str, store_id: str) -> StoredParts:
        folder = self._folder(key, store_id)
        parts: StoredParts = []
        with found(f"listing the parts of {key}"):
            for path in folder.iterdir():
                if not path.name.isdecimal():
                    continue
                whole = ARRIVED.fullmatch(path.read_bytes())
                if whole:
                    size, etag = whole.groups()
                    parts.append(StoredPart(int(path.name), int(size), etag.decode()))
        return sorted(parts, key=lambda part: part.number)

    def presign_part(self, key: str, store_id: str, number: int, expires_s: int) -> str | None:
        return None

    @measured("complete_multipart")
    def complete_multipart(self, key: str, store_id: str, parts: Sequence[StoredPart]) -> None:
        folder = self._folder(key, store_id)
        doing = f"completing {key}"
        with self._locked(folder, key, fcntl.LOCK_EX, doing) as about:
            there = self.list_parts(key, store_id)[: len(parts)]
            full = all(part.size_bytes == about.part_bytes for part in parts[:-1])
            numbered = [part.number for part in parts] == list(range(1, len(parts) + 1))
            if not parts or not full or not numbered or there != list(parts):
                raise Conflict(f"the parts of {key} are not as they were said to be")
            with found(doing):
                with FileIO(folder / DATA, "r+") as data:
                    data.truncate(sum(part.size_bytes for part in parts))
                    os.fchmod(data.fileno(), 0o444)
                    os.fsync(data.fileno())
                rename(folder / DATA, self.root / key)
        self.abort_multipart(key, store_id)

    @measured("abort_multipart")
    def abort_multipart(self, key: str, store_id: str) -> None:
        folder = self._folder(key, store_id)
        gone = self._uploads / f".{store_id}"  # whoever still writes finds the folder no more
        with os_errors(f"aborting {key}"), suppress(*ABSENT):
            folder.replace(gone)
            shutil.rmtree(gone)

    @measured_list("list_multiparts")
    def list_multiparts(self, older_than_s: float) -> Iterator[MultipartStat]:
        before = time.time() - older_than_s
        with os_errors("listing multipart uploads"):
            folders = sorted(self._uploads.iterdir()) if self._uploads.is_dir() else []
            for folder in folders:
                with suppress(*ABSENT):
                    started_at = (folder / ABOUT).stat().st_mtime
                    key = _read_about(folder).key
                    if STORE_ID.fullmatch(folder.name) and started_at < before:
                        yield MultipartStat(key, folder.name, started_at)

    def sweep_multiparts(self, older_than_s: float) -> None:
        """Remove what is left of uploads whose beginning or end was cut short by a kill."""
        if not self._uploads.is_dir():
            return
        for folder in self._uploads.iterdir():
            with suppress(*ABSENT):
                if time.time() - folder.stat().st_mtime < older_than_s:
                    continue
                if folder.name.startswith(".") or not (folder / DATA).exists():
                    shutil.rmtree(folder)

    def _folder(self, key: str, store_id: str) -> Path:
        check_key(key)
        if not STORE_ID.fullmatch(store_id):
            raise NotFound(f"no upload {store_id} of {key}")
        return self._uploads / store_id

    @contextmanager
    def _locked(self, folder: Path, key: str, how: int, doing: str) -> Iterator[_About]:
        with found(doing):
            file = FileIO(folder / ABOUT)
            about = _read_about(folder)
        if about.key != key:
            file.close()
            raise NotFound(f"no such upload of {key}")
        with file, _alone(file, doing, how):
            yield about


@contextmanager
def _alone(file: FileIO, doing: str, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold a lock on ``file``; closing it lets go. Raises Conflict if somebody else holds it."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Conflict(f"somebody else writes while {doing}") from error
    yield


def _read_about(folder: Path) -> _About:
    raw = json.loads((folder / ABOUT).read_text())
    return _About(raw["key"], raw["part_bytes"])
