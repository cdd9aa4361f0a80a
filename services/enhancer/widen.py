"""Widening of a stream of blocks: upsampling plus the generated top band.

The upsampled waveform passes by untouched. The generated band goes through a steep high-pass before
it is added, so that below the cut-off the output is the upsampled input, to ``STOPBAND_DB`` of the
generated band's own level.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from scipy import fft

from common.chunking import CHUNK_S, OVERLAP_S, CrossFader, chunks
from common.resample import resample_blocks
from services.enhancer.model import Generator

Array = np.ndarray[Any, np.dtype[np.float32]]

STOPBAND_DB = 100.0
TRANSITION_HZ = 400.0
"""The high-pass rises over so many hertz, and ends at the cut-off."""
MAX_CHANNELS_AT_ONCE = 4


def high_pass(cutoff_hz: float, sample_rate: int) -> Array:
    """Return the taps of a linear-phase high-pass, an odd number.

    Source: Kaiser 1974, "Nonrecursive digital filter design using the I0-sinh window function".
    """
    width = 2.0 * np.pi * TRANSITION_HZ / sample_rate  # radians per sample
    half = int(np.ceil((STOPBAND_DB - 7.95) / (2.285 * width) / 2.0))
    window = np.kaiser(2 * half + 1, 0.1102 * (STOPBAND_DB - 8.7))
    middle = 2.0 * (cutoff_hz - 0.5 * TRANSITION_HZ) / sample_rate
    low_pass = middle * np.sinc(middle * np.arange(-half, half + 1)) * window
    low_pass /= low_pass.sum()
    taps = -low_pass
    taps[half] += 1.0
    return taps.astype(np.float32)


def filtered(waveform: Array, taps: Array) -> Array:
    """Return (n,) filtered by symmetric taps, without delay; zeros outside."""
    n, delay = len(waveform), len(taps) // 2
    size = fft.next_fast_len(n + len(taps) - 1, real=True)
    spectrum = fft.rfft(waveform, size) * fft.rfft(taps, size)
    result: Array = fft.irfft(spectrum, size)[delay : delay + n]
    return result


class Widener:
    """Widens one recording from ``rate_in`` to ``rate_out``."""

    def __init__(self, model: Generator, device: str, rate_in: int, rate_out: int) -> None:
        self._model, self._device = model, device
        self._rate_in, self._rate_out = rate_in, rate_out
        hop = model.config.hop_length
        # whole hops, so that neighbouring chunks share one grid and fade in phase
        self._overlap = round(OVERLAP_S * rate_out / hop) * hop
        self._chunk = round(CHUNK_S * rate_out / hop) * hop
        cutoff_hz = model.cutoff_bin(rate_in, rate_out) * rate_out / model.config.n_fft
        self._taps = high_pass(cutoff_hz, rate_out)
        self._waiting: deque[Array] = deque()

    def process(self, blocks: Iterable[Array]) -> Iterator[Array]:
        """Yield the widened stream: (C, n) at ``rate_in`` in, round(n * out / in) samples out."""
        fader = CrossFader()
        upsampled = self._kept(resample_blocks(blocks, self._rate_in, self._rate_out))
        for chunk in chunks(upsampled, self._chunk, self._overlap):
            yield from self._added(fader.add(chunk.start, self.top_band(chunk.audio)))
        yield from self._added(fader.flush())

    def top_band(self, upsampled: Array) -> Array:
        """Return the generated band alone, (C, n), for a stretch (C, n) at ``rate_out``."""
        made = np.zeros_like(upsampled)
        n = upsampled.shape[1]
        sounding = np.flatnonzero(upsampled.any(axis=1))
        short = max(0, self._model.config.n_fft - n)
        for start in range(0, len(sounding), MAX_CHANNELS_AT_ONCE):
            batch = sounding[start : start + MAX_CHANNELS_AT_ONCE]
            waveforms = torch.from_numpy(np.pad(upsampled[batch], ((0, 0), (0, short))))
            with torch.inference_mode():
                top = self._model(waveforms.to(self._device), self._rate_in, self._rate_out)
            made[batch] = top.waveform.float().cpu().numpy()[:, :n]
        for channel in sounding:
            made[channel] = filtered(made[channel], self._taps)
        return made

    def _kept(self, blocks: Iterable[Array]) -> Iterator[Array]:
        for block in blocks:
            self._waiting.append(block)
            yield block

    def _added(self, top: Array | None) -> Iterator[Array]:
        """Yield ``top`` plus as much of the waiting upsampled stream."""
        done = 0
        while top is not None and done < top.shape[1]:
            block = self._waiting.popleft()
            n = min(block.shape[1], top.shape[1] - done)
            yield block[:, :n] + top[:, done : done + n]
            if n < block.shape[1]:
                self._waiting.appendleft(block[:, n:])
            done += n
