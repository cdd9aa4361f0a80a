"""Band-limited resampling of streams.

Source: the SoX Resampler library, through ``soxr``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import soxr

AudioBlock = np.ndarray[Any, np.dtype[np.float32]]


class Resampler:
    """Streaming band-limited resampling with libsoxr (quality HQ).

    The output has exactly round(n * rate_out / rate_in) samples for n put in, and starts in step
    with the input.
    """

    def __init__(self, rate_in: int, rate_out: int, channels: int) -> None:
        self.rate_in, self.rate_out = rate_in, rate_out
        self._in = self._out = 0
        self._channels = channels
        self._stream = (
            None
            if rate_in == rate_out
            else soxr.ResampleStream(rate_in, rate_out, channels, dtype="float32")
        )

    def push(self, block: AudioBlock) -> AudioBlock:
        """Take (C, n) and return what is ready, (C, m); m may be 0."""
        self._in += block.shape[1]
        if self._stream is None:
            return block
        samples: AudioBlock = np.ascontiguousarray(block.T)
        return self._emit(self._stream.resample_chunk(samples))

    def flush(self) -> AudioBlock:
        """Return the rest, (C, m). Call once, at the end."""
        empty: AudioBlock = np.zeros((0, self._channels), np.float32)
        if self._stream is None:
            return empty.T
        rest = self._emit(self._stream.resample_chunk(empty, last=True))
        total = self._total()
        if self._out < total:
            rest = np.pad(rest, ((0, 0), (0, total - self._out)))
            self._out = total
        return rest

    def _total(self) -> int:
        return (2 * self._in * self.rate_out + self.rate_in) // (2 * self.rate_in)

    def _emit(self, ready: AudioBlock) -> AudioBlock:
        ready = ready[: max(0, self._total() - self._out)]
        self._out += len(ready)
        return np.ascontiguousarray(ready.T)


def resample_blocks(
    blocks: Iterable[AudioBlock], rate_in: int, rate_out: int
) -> Iterator[AudioBlock]:
    """Yield the resampled stream; empty pieces are left out. See ``Resampler``."""
    resampler: Resampler | None = None
    for block in blocks:
        resampler = resampler or Resampler(rate_in, rate_out, block.shape[0])
        ready = resampler.push(block)
        if ready.shape[1]:
            yield ready
    if resampler is not None:
        rest = resampler.flush()
        if rest.shape[1]:
            yield rest
