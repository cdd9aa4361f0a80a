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
from dataclasses import dataclass

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

END = struct.Struct("<4s4H2LH")
END_64_LOCATOR = struct.Struct("<4sLQL")
END_64 = struct.Struct("<4sQ2H2L4Q")
CENTRAL = struct.Struct("<4s4B4HL2L5H2L")
LOCAL = struct.Struct("<4s2B4HL2L2H")
MAX_COMMENT_BYTES = 65_535
ENCRYPTED, UTF_8 = 1 << 0, 1 << 11
UNIX = 3
BLOCK_BYTES = 256 << 10


@dataclass(frozen=True)
class _Header:
    """One line of the central directory."""

    name: str
    flags: int
    method: int
    crc: int
    packed_bytes: int
    size_bytes: int
    offset: int
    mode: int  # Unix file mode, or 0

    @property
    def is_folder(self) -> bool:
        return self.name.endswith(("/", "\\"))


@dataclass(frozen=True)
class _Directory:
    """Where the central directory lies. ``shift`` is what stands before the archive."""

    start: int
    size_bytes: int
    entries: int
    shift: int


def read_zip(
    store: ObjectStore, spec: ArchiveSpec, settings: Settings, start: int, tally: Tally
) -> Iterator[Found]:
    """Yield the entries of a stored ZIP from number ``start``.

    Raises:
        SourceInvalid: archive_unreadable, archive_overlapping, archive_too_large, archive_ratio,
            archive_too_many_entries.
    """
    file = StoredFile(store, spec.object_key)
    directory = _find_directory(file)
    if directory.entries > settings.max_recordings_per_job:
        raise SourceInvalid(
            "archive_too_many_entries",
            f"{directory.entries} entries; a job holds {settings.max_recordings_per_job}",
        )
    tally.total = _check_whole(file, directory, spec, settings)
    names = Names(spec.all_files)
    number = -1
    listing = StoredFile(store, spec.object_key)
    for header in _headers(listing, directory):
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


def _left_out(header: _Header, names: Names) -> str | None:
    if is_unsafe(header.name) or (header.mode and not stat.S_ISREG(header.mode)):
        return None  # never silently
    return names.left_out(header.name)


def _check(header: _Header, names: Names, settings: Settings) -> str:
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


def _find_directory(file: StoredFile) -> _Directory:
    tail_at = max(0, file.size_bytes - END.size - MAX_COMMENT_BYTES)
    file.seek(tail_at)
    tail = file.exactly(file.size_bytes - tail_at)
    at = tail.rfind(b"PK\5\6")
    while at >= 0:
        if at + END.size <= len(tail):
            fields = END.unpack_from(tail, at)
            if at + END.size + fields[7] <= len(tail):
                break
        at = tail.rfind(b"PK\5\6", 0, at)
    if at < 0:
        raise SourceInvalid("archive_unreadable", "no central directory: cut off, or no ZIP")
    _, disk, first_disk, _, entries, size_bytes, offset, _ = fields
    in_parts = disk or first_disk
    end = tail_at + at
    file.seek(end - END_64_LOCATOR.size)
    locator = file.exactly(END_64_LOCATOR.size) if end >= END_64_LOCATOR.size else b""
    if locator[:4] == b"PK\6\7":
        in_parts = END_64_LOCATOR.unpack(locator)[3] > 1
        # What stands before the archive shifts it, but the record is just before its locator.
        end = end - END_64_LOCATOR.size - END_64.size
        file.seek(max(0, end))
        record = file.exactly(END_64.size)
        if len(record) < END_64.size or record[:4] != b"PK\6\6":
            raise SourceInvalid("archive_unreadable", "the ZIP64 end record is damaged")
        entries, size_bytes, offset = END_64.unpack(record)[7:10]
    start = end - size_bytes
    if in_parts:
        raise SourceInvalid("archive_unreadable", "one part of an archive in several parts")
    if start < offset:
        raise SourceInvalid("archive_unreadable", "the central directory is not where it should be")
    return _Directory(start, size_bytes, entries, start - offset)


def _headers(file: StoredFile, directory: _Directory) -> Iterator[_Header]:
    file.seek(directory.start)
    end = directory.start + directory.size_bytes
    for _ in range(directory.entries):
        fixed = file.exactly(CENTRAL.size)
        if len(fixed) < CENTRAL.size or fixed[:4] != b"PK\1\2" or file.tell() > end:
            raise SourceInvalid("archive_unreadable", "the central directory is damaged")
        fields = CENTRAL.unpack(fixed)
        system, flags, method, crc = fields[2], fields[5], fields[6], fields[9]
        packed, size, name_length, extra_length, comment_length = fields[10:15]
        attributes, offset = fields[17], fields[18]
        rest = file.exactly(name_length + extra_length)
        file.skip(comment_length)
        raw, extra = rest[:name_length], rest[name_length:]
        if 0xFFFFFFFF in (packed, size, offset):
            size, packed, offset = _large(extra, size, packed, offset)
        yield _Header(
            _decode(raw, flags),
            flags,
            method,
            crc,
            packed,
            size,
            offset + directory.shift,
            attributes >> 16 if system == UNIX and attributes >> 28 else 0,
        )


def _large(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Return size, packed size and offset, where needed from the ZIP64 extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            values = iter(
                struct.unpack_from(f"<{length // 8}Q", extra.ljust(at + 4 + length, b"\0"), at + 4)
            )
            large = [next(values, 0) if v == 0xFFFFFFFF else v for v in (size, packed, offset)]
            return large[0], large[1], large[2]
        at += 4 + length
    return size, packed, offset


def _decode(raw: bytes, flags: int) -> str:
    try:
        return raw.decode()  # many write UTF-8 without saying so
    except UnicodeDecodeError:
        return raw.decode("utf-8" if flags & UTF_8 else "cp437", "surrogateescape")


def _check_whole(
    file: StoredFile, directory: _Directory, spec: ArchiveSpec, settings: Settings
) -> int:
    """Return how many entries will be taken, if the archive as a whole is harmless."""
    names = Names(spec.all_files)
    begins, ends = array("Q"), array("Q")
    unpacked, taken = 0, 0
    for header in _headers(file, directory):
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


def _later(store: ObjectStore, key: str, header: _Header) -> Opens:
    @contextmanager
    def opened() -> Iterator[Readable]:
        yield _Unpacking(StoredFile(store, key), header)

    return opened


def _unpack(file: StoredFile, header: _Header) -> bytes:
    """Return the bytes of a small entry."""
    reader = _Unpacking(file, header)
    parts = []
    while block := reader.read(BLOCK_BYTES):
        parts.append(block)
    return b"".join(parts)


class _Unpacking:
    """The bytes of one entry: never more than it declares, checked against its CRC at the end."""

    def __init__(self, file: StoredFile, header: _Header) -> None:
        file.seek(header.offset)
        local = file.exactly(LOCAL.size)
        if len(local) < LOCAL.size or local[:4] != b"PK\3\4":
            raise EntryRejected("entry_damaged", "its header is not where it should be")
        name_length, extra_length = LOCAL.unpack(local)[-2:]
        if _decode(file.exactly(name_length), header.flags) != header.name:
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
