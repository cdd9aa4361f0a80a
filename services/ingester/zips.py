"""ZIP archives, read where they lie in the store. Nothing is unpacked to disk.

The central directory is read twice as a stream: first as a whole, to find archives made to explode
before anything of them is unpacked, then entry by entry. Of each entry two numbers stay in memory.

Sources: PKWARE's APPNOTE 6.3.10; David Fifield, A better zip bomb (2019), for overlaps.
"""

from __future__ import annotations

import io
import stat
import struct
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import EntryRejected, SourceInvalid
from common.settings import Settings
from common.sources import ArchiveSpec
from common.storage import ObjectStore, Readable
from services.ingester.bombs import check_total
from services.ingester.entries import (
    SMALL_BYTES,
    Entry,
    Found,
    Names,
    Opens,
    Refused,
    Tally,
    is_unsafe,
    opens,
    show,
    unsafe,
)
from services.ingester.stored import StoredFile
from services.ingester.unpacking import DAMAGE, METHODS, unpacking
from services.ingester.zip_directory import (
    ENCRYPTED,
    Directory,
    Header,
    decode_name,
    find_directory,
    headers,
)

LOCAL = struct.Struct("<4s2B4HL2L2H")
BLOCK_BYTES = 256 << 10


def read_zip(
    store: ObjectStore, spec: ArchiveSpec, settings: Settings, start: int, tally: Tally
) -> Iterator[Found]:
    """Yield the entries of a stored ZIP from number ``start``.

    Raises:
        SourceInvalid: archive_unreadable, archive_overlapping, archive_too_large, archive_ratio,
            archive_too_many_entries.
    """
    file = StoredFile(store, spec.object_key)
    directory = find_directory(file)
    if directory.entries > settings.max_recordings_per_job:
        raise SourceInvalid(
            "archive_too_many_entries",
            f"{directory.entries} entries; a job holds {settings.max_recordings_per_job}",
        )
    tally.total = _check_whole(file, directory, spec, settings)
    names = Names(spec.all_files)
    number = -1
    listing = StoredFile(store, spec.object_key)
    for header in headers(listing, directory):
        if header.is_folder and not is_unsafe(header.name):
            continue
        reason = _left_out(header, names)
        if reason is not None:
            tally.left_out[reason] += 1
            continue
        number += 1
        try:
            name = _check(header, names, settings)
            if number < start:
                continue
            if header.size_bytes <= SMALL_BYTES and header.packed_bytes <= 2 * SMALL_BYTES:
                data = _unpack(file, header)
                yield Entry(number, name, open=opens(io.BytesIO(data)))
            else:
                yield Entry(number, name, open=_later(store, spec.object_key, header))
        except EntryRejected as error:
            if number >= start:
                yield Refused(number, show(header.name), code=error.code, detail=str(error))


def _left_out(header: Header, names: Names) -> str | None:
    if is_unsafe(header.name) or (header.mode and not stat.S_ISREG(header.mode)):
        return None  # never silently
    return names.left_out(header.name)


def _check(header: Header, names: Names, settings: Settings) -> str:
    if is_unsafe(header.name):
        raise unsafe()
    if stat.S_ISLNK(header.mode):
        raise EntryRejected("entry_is_link", "a link, not a file")
    if header.mode and not stat.S_ISREG(header.mode):
        raise EntryRejected("entry_is_special", "neither a file nor a folder")
    name = names.check(header.name)
    if header.flags & ENCRYPTED:
        raise EntryRejected("entry_encrypted", "encrypted")
    if header.method not in METHODS:
        raise EntryRejected(
            "entry_compression_unknown", f"packed by method {header.method}, which is not known"
        )
    if header.size_bytes > settings.max_upload_bytes:
        raise EntryRejected("entry_too_large", f"more than {settings.max_upload_bytes} bytes")
    if header.size_bytes == 0:
        raise EntryRejected("empty_entry", "holds no bytes")
    return name


def _check_whole(
    file: StoredFile, directory: Directory, spec: ArchiveSpec, settings: Settings
) -> int:
    """Return how many entries will be taken, if the archive as a whole is harmless."""
    names = Names(spec.all_files)
    begins, ends = array("Q"), array("Q")
    unpacked, taken = 0, 0
    for header in headers(file, directory):
        unpacked += header.size_bytes
        begins.append(header.offset)
        ends.append(header.offset + LOCAL.size + header.packed_bytes)
        if not (header.is_folder and not is_unsafe(header.name)):
            taken += _left_out(header, names) is None
    check_total(unpacked, file.size_bytes, settings)
    order = sorted(range(len(begins)), key=begins.__getitem__)
    limit = directory.start
    for place in reversed(order):
        if ends[place] > limit:
            raise SourceInvalid(
                "archive_overlapping", "entries overlap, as in an archive made to explode"
            )
        limit = begins[place]
    return taken


def _later(store: ObjectStore, key: str, header: Header) -> Opens:
    @contextmanager
    def opened() -> Iterator[Readable]:
        yield _Unpacking(StoredFile(store, key), header)

    return opened


def _unpack(file: StoredFile, header: Header) -> bytes:
    """Return the bytes of a small entry."""
    reader = _Unpacking(file, header)
    parts = []
    while block := reader.read(BLOCK_BYTES):
        parts.append(block)
    return b"".join(parts)


class _Unpacking:
    """The bytes of one entry: never more than it declares, checked against its CRC at the end."""

    def __init__(self, file: StoredFile, header: Header) -> None:
        file.seek(header.offset)
        local = file.exactly(LOCAL.size)
        if len(local) < LOCAL.size or local[:4] != b"PK\3\4":
            raise EntryRejected("entry_damaged", "its header is not where it should be")
        name_length, extra_length = LOCAL.unpack(local)[-2:]
        if decode_name(file.exactly(name_length), header.flags) != header.name:
            raise EntryRejected("entry_damaged", "its header has another name")
        file.skip(extra_length)
        self._inner = unpacking(header.method, _Stretch(file, header.packed_bytes))
        self._left = header.size_bytes
        self._declared_crc = header.crc
        self._crc = 0

    def read(self, size: int) -> bytes:
        if not self._left:
            return b""
        try:
            block = self._inner.read(min(size, self._left, BLOCK_BYTES))
        except DAMAGE as error:
            raise EntryRejected("entry_damaged", f"cannot be unpacked: {error}") from error
        if not block:
            raise EntryRejected("entry_damaged", "is shorter than it declares")
        self._left -= len(block)
        self._crc = zlib.crc32(block, self._crc)
        if not self._left and self._crc != self._declared_crc:
            raise EntryRejected("entry_damaged", "wrong checksum (CRC-32)")
        return block


class _Stretch:
    """The packed bytes of one entry."""

    def __init__(self, file: StoredFile, size_bytes: int) -> None:
        self._file = file
        self._at = file.tell()
        self._left = size_bytes

    def read(self, size: int = -1) -> bytes:
        self._file.seek(self._at)
        block = self._file.read(min(size, self._left) if size >= 0 else self._left)
        self._at += len(block)
        self._left -= len(block)
        return block
