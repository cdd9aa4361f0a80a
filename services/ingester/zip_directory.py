"""The central directory of a ZIP, read as a stream: where each entry lies and what it claims.

Source: PKWARE's APPNOTE 6.3.10, sections 4.3 and 4.5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from common.errors import SourceInvalid
from services.ingester.stored import StoredFile

END = struct.Struct("<4s4H2LH")
END_64_LOCATOR = struct.Struct("<4sLQL")
END_64 = struct.Struct("<4sQ2H2L4Q")
CENTRAL = struct.Struct("<4s4B4HL2L5H2L")
MAX_COMMENT_BYTES = 65_535
ENCRYPTED, UTF_8 = 1 << 0, 1 << 11
UNIX = 3


@dataclass(frozen=True)
class Header:
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
class Directory:
    """Where the central directory lies. ``shift`` is what stands before the archive."""

    start: int
    size_bytes: int
    entries: int
    shift: int


def find_directory(file: StoredFile) -> Directory:
    """Return where the central directory lies. Raises SourceInvalid: archive_unreadable."""
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
    return Directory(start, size_bytes, entries, start - offset)


def headers(file: StoredFile, directory: Directory) -> Iterator[Header]:
    """Yield the lines of the central directory. Raises SourceInvalid: archive_unreadable."""
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
        yield Header(
            decode_name(raw, flags),
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


def decode_name(raw: bytes, flags: int) -> str:
    """Return the name of an entry as text; what is no text stays as surrogates."""
    try:
        return raw.decode()  # many write UTF-8 without saying so
    except UnicodeDecodeError:
        return raw.decode("utf-8" if flags & UTF_8 else "cp437", "surrogateescape")
