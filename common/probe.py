"""The length of a recording from its first and last bytes, without a decoder.

What a header declares, or what the bit rate and the size make likely: good for estimates and for
making shards, never instead of decoding.
"""

from __future__ import annotations

import io
import math

from tinytag import TinyTag, TinyTagException

HEAD_BYTES = 256 << 10
TAIL_BYTES = 64 << 10
LONGEST_S = 10 * 366 * 24 * 3600.0  # beyond that a header lies


def probe_s(head: bytes, tail: bytes, size_bytes: int) -> float | None:
    """Return the likely length in seconds, or None where it cannot be told.

    Args:
        head: The first bytes.
        tail: The last bytes; may overlap with the first.
        size_bytes: Of the whole recording.
    """
    try:
        tag = TinyTag.get(file_obj=io.BufferedReader(_Ends(head, tail, size_bytes)), tags=False)
    except (TinyTagException, OSError, ValueError, OverflowError):
        return None
    length_s = tag.duration
    if length_s is None or not math.isfinite(length_s) or not 0.0 < length_s < LONGEST_S:
        return None
    return float(length_s)


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
