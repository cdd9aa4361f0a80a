"""Reading recordings: any common format, in bounded memory, reaching nothing but the file itself.

Owns float32 blocks at the native rate, their limits and their error messages. The decoders are in
``common.audio_decode``; encoding is ``common.audio_write`` and resampling ``common.resample``, both
offered here too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from common.audio_decode import MAX_BLOCK_VALUES, AudioBlock, open_source
from common.audio_decode import AudioInfo as AudioInfo
from common.audio_decode import AudioLimits as AudioLimits
from common.audio_write import AudioWriter as AudioWriter
from common.errors import AudioEmpty, AudioTooLong, AudioTruncated
from common.resample import Resampler as Resampler
from common.resample import resample_blocks as resample_blocks
from common.stage_io import AudioFacts

MAX_CLIP_S = 600.0
"""What is read whole is no longer: a day among training clips would fill the memory."""
PEAK_LIMIT = 8.0
"""Samples beyond are limited to this; 1 is full scale."""
COMPLETE_SHARE = 0.98
COMPLETE_SLACK_S = 0.5
"""A recording is complete if this share of its declared length, less the slack, was decoded."""


class AudioReader:
    """One recording, decoded as a stream. Use as a context manager.

    Args:
        path: a local file, whatever its name.
        limits: what is accepted.

    Raises:
        AudioUnreadable: no known format, no audio stream, damaged beyond decoding.
        AudioEmpty: the file has no bytes.
        AudioUnsupported: sample rate or channel count out of range.
        AudioTooLong: the header already says so.
    """

    def __init__(self, path: Path, limits: AudioLimits | None = None) -> None:
        self.limits = limits or AudioLimits()
        self.frames_read = 0
        if path.stat().st_size == 0:
            raise AudioEmpty("the file is empty (0 bytes)")
        self._source = open_source(path, self.limits)
        self.info = self._source.info
        declared_s = self.info.declared_duration_s
        if declared_s is not None and declared_s > self.limits.max_duration_s:
            self.close()
            raise AudioTooLong(
                f"the header declares {declared_s:.0f} s; the limit is "
                f"{self.limits.max_duration_s:.0f} s"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Closing twice does nothing."""
        self._source.close()

    def blocks(self, seconds: float = 10.0) -> Iterator[AudioBlock]:
        """Yield the recording as blocks, every one full but the last.

        Args:
            seconds: length of a block; shortened so that it holds at most MAX_BLOCK_VALUES.

        Yields:
            float32 (C, n) at the native rate: finite (NaN and infinity become 0) and within
            [-8, 8]. The caller may keep or change it.

        Raises:
            AudioTooLong: more samples than the limit.
            AudioTruncated: ends well before its declared duration, or is damaged half-way.
            AudioEmpty: no samples at all.
            AudioUnreadable: damaged before the first sample.
        """
        rate, channels = self.info.sample_rate, self.info.channels
        size = max(1, min(round(seconds * rate), MAX_BLOCK_VALUES // channels))
        max_frames = round(self.limits.max_duration_s * rate)
        block = np.empty((channels, size), np.float32)
        filled = 0
        for piece in self._source.pieces(size):
            self.frames_read += piece.shape[1]
            if self.frames_read > max_frames:
                raise AudioTooLong(
                    f"more than {self.limits.max_duration_s:.0f} s of audio, which is the limit"
                )
            done = 0
            while done < piece.shape[1]:
                n = min(size - filled, piece.shape[1] - done)
                block[:, filled : filled + n] = piece[:, done : done + n]
                filled, done = filled + n, done + n
                if filled == size:
                    yield _sanitised(block)
                    block, filled = np.empty((channels, size), np.float32), 0
        self._check_complete()
        if filled:
            yield _sanitised(block[:, :filled].copy())

    def facts(self) -> AudioFacts:
        """Return duration, rate and channels as decoded. Call after the last block."""
        rate = self.info.sample_rate
        return AudioFacts(self.frames_read / rate, rate, self.info.channels)

    def _check_complete(self) -> None:
        if self.frames_read == 0:
            raise AudioEmpty("the file opens, but holds no samples")
        declared_s = self.info.declared_duration_s
        got_s = self.frames_read / self.info.sample_rate
        if declared_s is not None and got_s < COMPLETE_SHARE * declared_s - COMPLETE_SLACK_S:
            raise AudioTruncated(
                f"ends after {got_s:.1f} s; its header declares {declared_s:.1f} s"
            )


def _sanitised(block: AudioBlock) -> AudioBlock:
    finite = np.isfinite(block)
    if not finite.all():
        block[~finite] = 0.0
    return np.clip(block, -PEAK_LIMIT, PEAK_LIMIT, out=block)


def read_clip(path: Path, sample_rate: int) -> AudioBlock:
    """Return a whole short file as mono float32 (n,) at ``sample_rate``, channels averaged.

    Raises:
        AudioError: as ``AudioReader`` does; longer than MAX_CLIP_S.
    """
    with AudioReader(path, AudioLimits(max_duration_s=MAX_CLIP_S)) as reader:
        mono = (block.mean(axis=0, keepdims=True) for block in reader.blocks())
        parts = list(resample_blocks(mono, reader.info.sample_rate, sample_rate))
    clip: AudioBlock = np.concatenate(parts, axis=1)[0]
    return clip
