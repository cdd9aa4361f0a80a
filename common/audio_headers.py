"""Lengths that headers declare, read without a decoder: WAV, RF64, W64, AIFF, MP3.

Decoders believe the size of the file over its header, so a file that was cut off looks whole to
them. Here the header's own word is read, to be compared with what was decoded. A streaming header
(size 0 or all ones) declares nothing.

Sources: the RIFF, EBU Tech 3306 (RF64), AIFF and Xing/Info header layouts.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

MAX_CHUNKS = 1000
STREAMING_SIZES = frozenset({0, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFE, 0xFFFFFFFE})
STREAMING_SLACK_BYTES = 4096
"""Writers that stream put 2**31 or 2**32 less a header there; all within this of the end."""


def declared_frames(path: Path) -> int | None:
    """Return the samples per channel that the header declares, or None where it does not."""
    with path.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        try:
            if magic in (b"RIFF", b"RF64"):
                return _wav_frames(file)
            if magic == b"FORM":
                return _aiff_frames(file)
            if magic[:3] == b"ID3" or (len(magic) > 1 and magic[0] == 0xFF and magic[1] >= 0xE0):
                return _mp3_frames(file)
        except struct.error:
            return None
    return None


def _wav_frames(file: BinaryIO) -> int | None:
    file.seek(12)
    block_align, long_size = 0, None
    for _ in range(MAX_CHUNKS):
        kind, size = struct.unpack("<4sI", file.read(8))
        if kind == b"ds64":
            body = file.read(size)
            long_size = struct.unpack_from("<Q", body, 8)[0]
        elif kind == b"fmt ":
            start = file.tell()
            encoding, _, _, _, block_align = struct.unpack("<HHIIH", file.read(14))
            if encoding not in (1, 3, 6, 7, 0xFFFE):  # compressed: a block is not a frame
                return None
            file.seek(start + size + size % 2)
        elif kind == b"data":
            if size == 0xFFFFFFFF and long_size:
                return int(long_size) // block_align if block_align else None
            return int(size) // block_align if block_align and not _streaming(size) else None
        else:
            file.seek(size + size % 2, 1)
    return None


def _streaming(size: int) -> bool:
    near_end = any(0 <= end - size <= STREAMING_SLACK_BYTES for end in (0x7FFFFFFF, 0xFFFFFFFF))
    return size in STREAMING_SIZES or near_end


def _aiff_frames(file: BinaryIO) -> int | None:
    file.seek(12)
    for _ in range(MAX_CHUNKS):
        kind, size = struct.unpack(">4sI", file.read(8))
        if kind == b"COMM":
            _, frames = struct.unpack(">HI", file.read(6))
            return int(frames) if not _streaming(frames) else None
        file.seek(size + size % 2, 1)
    return None


def _mp3_frames(file: BinaryIO) -> int | None:
    head = file.read(10)
    if head[:3] == b"ID3":
        size = sum(
            (byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)
        )
        file.seek(10 + size)
    else:
        file.seek(0)
    frame = file.read(256)
    for mark in (b"Xing", b"Info"):
        at = frame.find(mark)
        if at > 0:
            flags, frames = struct.unpack_from(">II", frame, at + 4)
            mpeg_1 = frame[1] & 0x18 == 0x18
            return int(frames) * (1152 if mpeg_1 else 576) if flags & 1 else None
    return None
