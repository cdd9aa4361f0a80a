"""What both object stores share: the interface, the records, checks and errors."""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from common.errors import DiskFull, ObjectTooLarge, PartShort, StoreUnavailable
from common.storage.measure import waiting

BLOCK_BYTES = 1 << 20
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
MAX_KEY_LENGTH = 512


class Readable(Protocol):
    """Anything with bytes to read: ``b""`` is the end."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class StoredObject:
    """An object that was just stored. ``sha256`` is in hexadecimal."""

    key: str
    size_bytes: int
    sha256: str
    etag: str


@dataclass(frozen=True)
class ObjectStat:
    """What the store knows about an object."""

    key: str
    size_bytes: int
    etag: str


@dataclass(frozen=True)
class StoredPart:
    """A part of a multipart upload that has arrived whole. ``number`` counts from 1."""

    number: int
    size_bytes: int
    etag: str


StoredParts = list[StoredPart]


@dataclass(frozen=True)
class MultipartStat:
    """A multipart upload that is neither complete nor aborted. Seconds since 1970."""

    key: str
    store_id: str
    started_at: float


class ObjectStore(Protocol):
    """Bytes under keys. Every method may raise StoreUnavailable."""

    def prepare(self) -> None:
        """Make the bucket or the directory if it is missing."""

    def check(self) -> float | None:
        """Return if the store can be reached: its own clock, where it has one.

        That is in seconds since 1970, rounded down. Raises StoreUnavailable with the reason.
        """

    def put_stream(
        self, key: str, reader: Readable, media_type: str, max_bytes: int | None = None
    ) -> StoredObject:
        """Store everything that ``reader`` gives, hashing it on the way.

        When ``reader`` raises, its error comes out and nothing is stored.

        Raises:
            ObjectTooLarge: after ``max_bytes``; nothing is stored.
            DiskFull: no room; nothing is stored.
        """

    def put_file(self, key: str, path: Path, media_type: str) -> StoredObject:
        """Store a file. Raises DiskFull when there is no room."""

    def open(
        self, key: str, start: int = 0, length: int | None = None
    ) -> AbstractContextManager[Iterator[bytes]]:
        """Open a stretch of an object: ``with store.open(key) as blocks: for block in blocks``.

        A stretch past the end is cut to what is there. Raises NotFound on entering.
        """

    def fetch(self, key: str, path: Path, max_bytes: int | None = None) -> None:
        """Write an object to ``path``, which is either whole afterwards or not there.

        The file may share its bytes with the store: it must only be read. Raises NotFound,
        DiskFull, and ObjectTooLarge when there are more than ``max_bytes``.
        """

    def local_path(self, key: str) -> Path | None:
        """Return the path of the object's own file, only to be read, if the store has files."""

    def stat(self, key: str) -> ObjectStat:
        """Return size and entity tag. Raises NotFound."""

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens if it is not there."""

    def list(self, prefix: str = "") -> Iterator[ObjectStat]:
        """Yield the objects whose keys begin with ``prefix``, sorted by key."""

    def presigned_get(self, key: str, expires_s: int, filename: str) -> str | None:
        """Return an expiring URL that downloads the object as ``filename``; None if not offered.

        ``filename`` is plain ASCII without quotes.
        """

    def start_multipart(self, key: str, media_type: str, part_bytes: int) -> str:
        """Begin an upload in parts of ``part_bytes`` each (the last may be shorter).

        Returns the store's own name for the upload. There is no object until it is complete.
        """

    def put_part(self, key: str, store_id: str, number: int, reader: Readable, size: int) -> str:
        """Store ``size`` bytes of ``reader`` as part ``number``; return its entity tag.

        A part that is sent again replaces the one before. Of one that fails nothing stays, nor
        does, perhaps, the one before. Nothing is retried: ``reader`` can be read only once.

        Raises:
            NotFound: no such upload (any more).
            Conflict: the part is being written by somebody else.
            DiskFull: no room.
        """

    def list_parts(self, key: str, store_id: str) -> StoredParts:
        """Return the parts that have arrived, by number. Raises NotFound."""

    def presign_part(self, key: str, store_id: str, number: int, expires_s: int) -> str | None:
        """Return an expiring URL to which the part may be PUT; None if not offered."""

    def complete_multipart(self, key: str, store_id: str, parts: Sequence[StoredPart]) -> None:
        """Make the object of ``parts``: all of them, in order, none but the last short.

        Completing again either changes nothing or raises NotFound.

        Raises:
            NotFound: no such upload (any more).
            Conflict: a part is not (any more) as ``parts`` has it.
        """

    def abort_multipart(self, key: str, store_id: str) -> None:
        """Give an upload up and remove its parts; nothing happens if it is not there."""

    def list_multiparts(self, older_than_s: float) -> Iterator[MultipartStat]:
        """Yield the uploads that began longer ago and are neither complete nor aborted."""


class Hashing:
    """Reads full blocks from a reader while it hashes, counts and limits them."""

    def __init__(self, reader: Readable, max_bytes: int | None) -> None:
        self._reader = reader
        self._max_bytes = max_bytes
        self._sha256 = hashlib.sha256()
        self.size_bytes = 0

    def read(self, size: int = BLOCK_BYTES) -> bytes:
        """Return ``size`` bytes, fewer only at the end."""
        parts: list[bytes] = []
        missing = size
        while missing > 0:
            with waiting():
                part = self._reader.read(missing)
            if not part:
                break
            self._sha256.update(part)
            self.size_bytes += len(part)
            missing -= len(part)
            check_size(self.size_bytes, self._max_bytes)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def stored(self, key: str, etag: str | None) -> StoredObject:
        """Return the record of what was read."""
        return StoredObject(key, self.size_bytes, self._sha256.hexdigest(), etag or "")


class Exactly:
    """Reads ``size`` bytes from a reader, no more, and holds it to them.

    ``error`` is what the reader raised, if it did: a client library that reads from this may hide
    it behind an error of its own.
    """

    def __init__(self, reader: Readable, size: int) -> None:
        self._reader = reader
        self._missing = size
        self.error: Exception | None = None

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes. Raises PartShort when the reader ends early."""
        while self._missing > 0:
            try:
                with waiting():
                    block = self._reader.read(min(BLOCK_BYTES, self._missing))
                if not block:
                    raise PartShort(f"{self._missing} bytes are missing")
            except Exception as error:
                self.error = error
                raise
            self._missing -= len(block)
            yield block


def check_size(size_bytes: int, max_bytes: int | None) -> None:
    """Raise ObjectTooLarge when there are more than ``max_bytes``."""
    if max_bytes is not None and size_bytes > max_bytes:
        raise ObjectTooLarge(f"more than {max_bytes} bytes")


def check_key(key: str) -> str:
    if len(key) > MAX_KEY_LENGTH or not KEY.fullmatch(key):
        raise ValueError(f"not an object key: {key!r}")
    return key


@contextmanager
def os_errors(doing: str) -> Iterator[None]:
    """Turn the errors of the operating system into those of our tree."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space left while {doing}") from error
        raise StoreUnavailable(f"{error.strerror or error} while {doing}") from error
