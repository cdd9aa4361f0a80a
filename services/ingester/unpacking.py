"""Decompression of streams, a bounded piece at a time, whatever the packed bytes ask for."""

from __future__ import annotations

import bz2
import gzip
import zlib
from typing import IO, cast

import zstandard

from common.storage import Readable

STORED, DEFLATED, BZIP2, ZSTANDARD = 0, 8, 12, 93  # as ZIP numbers them
METHODS = frozenset({STORED, DEFLATED, BZIP2, ZSTANDARD})
DAMAGE = (zlib.error, OSError, EOFError, ValueError, zstandard.ZstdError)
"""What reading damaged packed bytes may raise."""

PACKED_BLOCK_BYTES = 64 << 10
MAX_ZSTD_WINDOW_BYTES = 128 << 20  # of ``zstd --long``


def unpacking(method: int, packed: Readable) -> Readable:
    """Return a reader of what is packed by one of ``METHODS``."""
    if method == DEFLATED:
        return _Inflating(packed)
    if method == BZIP2:
        return cast(Readable, bz2.BZ2File(packed))  # type: ignore[call-overload]
    return unzstd(packed) if method == ZSTANDARD else packed


def gunzip(packed: Readable) -> Readable:
    """Return a reader of a gzip stream, of all its members."""
    return cast(Readable, gzip.GzipFile(fileobj=packed))  # type: ignore[call-overload]


def unzstd(packed: Readable) -> Readable:
    """Return a reader of a Zstandard stream, of all its frames."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES)
    source = cast(IO[bytes], packed)  # only its read is called
    reader = decompressor.stream_reader(source, PACKED_BLOCK_BYTES, read_across_frames=True)
    return cast(Readable, reader)


class _Inflating:
    """A deflate stream without header."""

    def __init__(self, packed: Readable) -> None:
        self._packed = packed
        self._inner = zlib.decompressobj(-zlib.MAX_WBITS)

    def read(self, size: int) -> bytes:
        while not self._inner.eof:
            data = self._inner.unconsumed_tail or self._packed.read(PACKED_BLOCK_BYTES)
            block = self._inner.decompress(data, size)
            if block or not data:
                return block
        return b""
