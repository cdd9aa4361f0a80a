"""A ZIP archive of any number of files, streamed to where nobody can seek.

Python's ``zipfile`` streams as well but keeps an object for each entry until the end: close to a
gigabyte for a million. Here the directory of the archive waits in a temporary file.

Source: PKWARE, APPNOTE.TXT 6.3.10: data descriptors (4.3.9) because sizes and checksums are known
only afterwards, ZIP64 (4.5.3) where numbers do not fit into 32 bits, names in UTF-8 (appendix D).
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from common.errors import ArtifactInvalid

LIMIT = 0xFFFFFFFF  # a 32-bit field with this value points to its ZIP64 extra
MAX_ENTRIES = 0xFFFF
STORED, DEFLATED = 0, 8
VERSION, VERSION_ZIP64 = 20, 45
MADE_ON_UNIX = 3 << 8 | VERSION_ZIP64
PLAIN_FILE = 0o100644 << 16
FLAGS = 1 << 3 | 1 << 11  # a data descriptor follows; the name is UTF-8
ZIP64_EXTRA = 1
IN_MEMORY_BYTES = 1 << 20
BLOCK_BYTES = 1 << 16


@dataclass(frozen=True)
class Packed:
    """A file for an archive. ``blocks`` yields its ``size_bytes`` bytes, read once."""

    name: str
    size_bytes: int
    modified_at: float  # seconds since 1970
    blocks: Iterable[bytes]


@dataclass
class _Sizes:
    crc: int = 0
    plain: int = 0
    packed: int = 0


def zipped(files: Iterable[Packed], scratch: Path, *, deflate: bool) -> Iterator[bytes]:
    """Yield a ZIP archive of ``files``. Their names must differ.

    Args:
        scratch: A folder for the directory of a large archive, until its end.
        deflate: Compress; for audio and what is compressed already it is no use.

    Raises:
        ArtifactInvalid: a file has not the size it was said to have.
    """
    return _joined(_archive(files, scratch, deflate))


def _archive(files: Iterable[Packed], scratch: Path, deflate: bool) -> Iterator[bytes]:
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES, dir=str(scratch)) as directory:
        entries = offset = 0
        for file in files:
            start, sizes = offset, _Sizes()
            for block in _entry(file, deflate, sizes):
                offset += len(block)
                yield block
            directory.write(_central(file, deflate, sizes, start))
            entries += 1
        size = directory.tell()
        directory.seek(0)
        yield from _read(directory)
        yield _end(entries, size, offset)


def _entry(file: Packed, deflate: bool, sizes: _Sizes) -> Iterator[bytes]:
    name = file.name.encode()
    large = _is_large(file)
    extra = struct.pack("<HHQQ", ZIP64_EXTRA, 16, 0, 0) if large else b""
    unknown = LIMIT if large else 0
    yield (
        struct.pack(
            "<4s5H3L2H",
            b"PK\3\4",
            VERSION_ZIP64 if large else VERSION,
            FLAGS,
            DEFLATED if deflate else STORED,
            *_dos_time(file.modified_at),
            0,
            unknown,
            unknown,
            len(name),
            len(extra),
        )
        + name
        + extra
    )
    for block in _content(file, deflate, sizes):
        sizes.packed += len(block)
        yield block
    if sizes.plain != file.size_bytes:
        raise ArtifactInvalid(f"{file.name} has {sizes.plain} bytes, not {file.size_bytes}")
    descriptor = "<4sLQQ" if large else "<4sLLL"
    yield struct.pack(descriptor, b"PK\7\x08", sizes.crc, sizes.packed, sizes.plain)


def _content(file: Packed, deflate: bool, sizes: _Sizes) -> Iterator[bytes]:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS) if deflate else None
    for block in file.blocks:
        sizes.crc = zlib.crc32(block, sizes.crc)
        sizes.plain += len(block)
        if packed := packer.compress(block) if packer else block:
            yield packed
    if packer:
        yield packer.flush()


def _central(file: Packed, deflate: bool, sizes: _Sizes, offset: int) -> bytes:
    name = file.name.encode()
    numbers = [sizes.plain, sizes.packed, offset]
    large = [number for number in numbers if number >= LIMIT]
    extra = b""
    if large:
        extra = struct.pack(f"<HH{len(large)}Q", ZIP64_EXTRA, 8 * len(large), *large)
    plain, packed, offset = (min(number, LIMIT) for number in numbers)
    return (
        struct.pack(
            "<4s6H3L5H2L",
            b"PK\1\2",
            MADE_ON_UNIX,
            VERSION_ZIP64 if large or _is_large(file) else VERSION,
            FLAGS,
            DEFLATED if deflate else STORED,
            *_dos_time(file.modified_at),
            sizes.crc,
            packed,
            plain,
            len(name),
            len(extra),
            0,
            0,
            0,
            PLAIN_FILE,
            offset,
        )
        + name
        + extra
    )


def _end(entries: int, size: int, offset: int) -> bytes:
    end = b""
    if entries >= MAX_ENTRIES or size >= LIMIT or offset >= LIMIT:
        end += struct.pack(
            "<4sQ2H2L4Q",
            b"PK\6\6",
            44,
            MADE_ON_UNIX,
            VERSION_ZIP64,
            0,
            0,
            entries,
            entries,
            size,
            offset,
        )
        end += struct.pack("<4sLQL", b"PK\6\7", 0, offset + size, 1)
    few = min(entries, MAX_ENTRIES)
    size, offset = min(size, LIMIT), min(offset, LIMIT)
    return end + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, few, few, size, offset, 0)


def _is_large(file: Packed) -> bool:
    return file.size_bytes > LIMIT - LIMIT // 16  # what does not shrink may grow a little


def _dos_time(seconds: float) -> tuple[int, int]:
    moment = datetime.fromtimestamp(seconds, UTC)
    time = moment.hour << 11 | moment.minute << 5 | moment.second // 2
    return time, moment.year - 1980 << 9 | moment.month << 5 | moment.day


def _read(file: tempfile.SpooledTemporaryFile[bytes]) -> Iterator[bytes]:
    while block := file.read(BLOCK_BYTES):
        yield block


def _joined(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield small blocks together."""
    held: list[bytes] = []
    size = 0
    for block in blocks:
        held.append(block)
        size += len(block)
        if size >= BLOCK_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)
