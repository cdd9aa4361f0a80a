"""Writing audio: FLAC with 24 bits where the format allows, else WAV, which turns RF64 when large.

Samples are rounded to 24-bit integers here and not by a library, so that what was read from a file
of up to 24 bits and left alone is written back exactly.

Source of the large form: EBU Tech 3306 v2 (RF64), with a JUNK chunk kept free for its ds64 chunk.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import soundfile

from common.errors import DiskFull

FLAC_MAX_CHANNELS = 8
FLAC_MAX_PLAIN_RATE_HZ = 65_535
FLAC_MAX_RATE_HZ = 655_350
"""FLAC's header holds rates in hertz up to the first and in tens of hertz up to the second."""

FULL_SCALE = 2**23
MAX_RIFF_BYTES = 0xFFFFFFFF
SUBFORMAT_PCM = bytes.fromhex("0100000000001000800000aa00389b71")


def flac_allows(sample_rate: int, channels: int) -> bool:
    """Return whether FLAC can hold this rate and channel count."""
    plain = sample_rate <= FLAC_MAX_PLAIN_RATE_HZ
    tens = sample_rate <= FLAC_MAX_RATE_HZ and sample_rate % 10 == 0
    return channels <= FLAC_MAX_CHANNELS and (plain or tens)


class AudioWriter:
    """Writes one file as a stream. Use as a context manager.

    Args:
        folder: where to write; the file is ``stem`` plus the format's extension.
        sample_rate: Hz.
        channels: at most 65535.

    Raises:
        DiskFull: there is no space left, from ``write`` or ``close``.
    """

    def __init__(self, folder: Path, stem: str, sample_rate: int, channels: int) -> None:
        flac = flac_allows(sample_rate, channels)
        self.path = folder / f"{stem}.{'flac' if flac else 'wav'}"
        self.media_type = "audio/flac" if flac else "audio/wav"
        self.frames_written = 0
        self.clipped_values = 0
        """Values outside [-1, 1) that had to be limited."""
        self._disk = _Disk(self.path)
        self._file: Any = (
            soundfile.SoundFile(
                self._disk, "w", sample_rate, channels, subtype="PCM_24", format="FLAC"
            )
            if flac
            else _WavFile(self._disk, sample_rate, channels)
        )

    def write(self, block: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        """Append float (C, n), full scale at 1; values beyond are limited and counted."""
        scaled = np.rint(block.T * np.float32(FULL_SCALE))  # exact: a power of two
        limited = np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1)
        self.clipped_values += int(np.count_nonzero(limited != scaled))
        # 24 bits at the top of 32: libsndfile keeps the upper three bytes
        samples = np.ascontiguousarray(limited.astype(np.int32) << 8)
        try:
            self._file.write(samples)
        except (soundfile.LibsndfileError, AssertionError, OSError):
            self._disk.check()
            raise
        self._disk.check()
        self.frames_written += len(samples)

    def close(self) -> None:
        """Finish the file. Closing twice does nothing."""
        if self._disk.closed:
            return
        try:
            self._file.close()
        finally:
            self._disk.close()
        self._disk.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        with suppress(DiskFull):  # the first error is the one to report
            self.close()


class _Disk:
    """A file that remembers a failed write: libsndfile's callbacks cannot raise."""

    def __init__(self, path: Path) -> None:
        self._failure: OSError | None = None
        try:
            self._file: BinaryIO = path.open("w+b")
        except OSError as error:
            raise DiskFull(f"cannot write {path.name}: {error.strerror}") from error
        self.name = path.name
        self.closed = False
        self.tell = self._file.tell

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)  # writes out what is buffered
        except OSError as error:
            self._failure = self._failure or error
            return -1

    def write(self, data: bytes) -> int:
        if self._failure is None:
            try:
                return self._file.write(data)
            except OSError as error:
                self._failure = error
        return 0

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def readinto(self, buffer: memoryview) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self._failure = self._failure or error

    def close(self) -> None:
        self.closed = True
        try:
            self._file.close()
        except OSError as error:
            self._failure = self._failure or error

    def check(self) -> None:
        """Raise DiskFull if a write has failed."""
        if self._failure is not None:
            raise DiskFull(f"cannot write {self.name}: {self._failure.strerror}")


class _WavFile:
    """WAVE_FORMAT_EXTENSIBLE with 24 bits; becomes RF64 on closing when RIFF's sizes overflow."""

    HEADER = struct.Struct("<4sI4s 4sI28x 4sIHHIIHHHHI16s 4sI")

    def __init__(self, disk: _Disk, sample_rate: int, channels: int) -> None:
        self._disk = disk
        self._rate, self._channels = sample_rate, channels
        self._data_bytes = 0
        self._write_header()

    def _write_header(self) -> None:
        block_align = 3 * self._channels
        riff_bytes = self.HEADER.size - 8 + self._data_bytes
        large = riff_bytes > MAX_RIFF_BYTES
        header = bytearray(
            self.HEADER.pack(
                b"RF64" if large else b"RIFF",
                MAX_RIFF_BYTES if large else riff_bytes,
                b"WAVE",
                b"ds64" if large else b"JUNK",
                28,
                b"fmt ",
                40,
                0xFFFE,
                self._channels,
                self._rate,
                min(self._rate * block_align, MAX_RIFF_BYTES),
                block_align,
                24,
                22,
                24,
                0,
                SUBFORMAT_PCM,
                b"data",
                MAX_RIFF_BYTES if large else self._data_bytes,
            )
        )
        if large:
            frames = self._data_bytes // block_align
            struct.pack_into("<QQQI", header, 20, riff_bytes, self._data_bytes, frames, 0)
        self._disk.write(bytes(header))

    def write(self, samples: np.ndarray[Any, np.dtype[np.int32]]) -> None:
        """Append int32 (n, C) whose upper 24 bits count."""
        little = np.ascontiguousarray(samples.astype("<i4", copy=False)).view(np.uint8)
        data = little.reshape(-1, 4)[:, 1:].tobytes()
        self._disk.write(data)
        self._data_bytes += len(data)

    def close(self) -> None:
        if self._data_bytes % 2:
            self._disk.write(b"\0")
        self._disk.flush()
        self._disk.seek(0)
        self._write_header()
