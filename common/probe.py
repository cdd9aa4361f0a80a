"""The length of a recording from its first and last bytes, without a decoder.

What a header declares, or what the bit rate and the size make likely: good for estimates and for
making shards, never instead of decoding.
"""

from __future__ import annotations

import io
import math
import struct

from tinytag import TinyTag, TinyTagException

HEAD_BYTES = 256 << 10
TAIL_BYTES = 64 << 10
OPUS_RATE_HZ = 48_000
LONGEST_S = 10 * 366 * 24 * 3600.0  # beyond that a header lies


def probe_s(head: bytes, tail: bytes, size_bytes: int) -> float | None:
    """Return the likely length in seconds, or None where it cannot be told.

    Args:
        head: The first bytes.
        tail: The last bytes; may overlap with the first.
        size_bytes: Of the whole recording.
    """
    if head.startswith(b"OggS") and size_bytes > len(head):
        return _ogg_s(head, tail)
    try:
        tag = TinyTag.get(file_obj=io.BufferedReader(_Ends(head, tail, size_bytes)), tags=False)
    except (TinyTagException, OSError, ValueError, OverflowError):
        return None
    length_s = tag.duration
    if length_s is None or not math.isfinite(length_s) or not 0.0 < length_s < LONGEST_S:
        return None
    return float(length_s)


def _ogg_s(head: bytes, tail: bytes) -> float | None:
    """Return the length of Vorbis or Opus in Ogg: the position of the last page (RFC 3533)."""
    vorbis, opus, last = head.find(b"\x01vorbis"), head.find(b"OpusHead"), tail.rfind(b"OggS")
    try:
        (position,) = struct.unpack_from("<q", tail, last + 6)
        if last < 0 or position <= 0:
            return None
        if vorbis >= 0:
            (rate_hz,) = struct.unpack_from("<I", head, vorbis + 12)
            return position / rate_hz if rate_hz else None
        if opus >= 0:
            (skipped,) = struct.unpack_from("<H", head, opus + 10)
            return max(0, position - skipped) / OPUS_RATE_HZ or None
    except struct.error:  # cut off
        pass
    return None


class _Ends(io.RawIOBase):
    """A file of which only the beginning and the end are known; between them it reads as empty."""

    def __init__(self, head: bytes, tail: bytes, size_bytes: int) -> None:
        self._head, self._tail, self._size = head, tail, size_bytes
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        tail_at = self._size - len(self._tail)
        if self._at < len(self._head):
            known = self._head[self._at : self._at + len(buffer)]
        elif self._at >= tail_at:
            known = self._tail[self._at - tail_at : self._at - tail_at + len(buffer)]
        else:
            known = b""
        buffer[: len(known)] = known
        self._at += len(known)
        return len(known)
