"""Noise suppression of a stream of blocks, whatever its length.

Analysis (32 kHz, all channels averaged, chunks with cross-faded logits) runs ahead of the audio;
the gains act on the audio at its own rate, the same on each channel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from common.chunking import Chunk, CrossFader, chunks
from common.features import LogMel
from common.masks import MaskReader
from common.resample import resample_blocks
from services.enhancer.config import (
    ANALYSIS_HOP,
    ANALYSIS_RATE_HZ,
    CHUNK_SAMPLES,
    GAIN_HOP_S,
    N_BANDS,
    OVERLAP_SAMPLES,
)
from services.enhancer.gains import GainApplier, GainSmoother, band_centres_hz
from services.enhancer.model import Denoiser

Array = np.ndarray[Any, np.dtype[np.float32]]

PASSING_LOGIT = 10.0
"""The logit where digital silence skips the model: a gain of one, to 0.0004 dB."""
UNKNOWN_MASK = 0.5


class Suppressor:
    """Suppresses noise in one recording. ``mean_gain_db`` holds once the stream has ended.

    Args:
        model: in eval mode on ``device``.
        front_end: its log-mel, on ``device``.
        sample_rate: Hz, of the recording.
        channels: of the recording.
        gain_floor_db: no band is turned down further.
        mask: the segmenter's; None where there is none (0.5 everywhere).
    """

    def __init__(
        self,
        model: Denoiser,
        front_end: LogMel,
        device: str,
        sample_rate: int,
        channels: int,
        gain_floor_db: float,
        mask: MaskReader | None,
    ) -> None:
        self._model, self._front_end, self._device = model, front_end, device
        self._rate = sample_rate
        self._floor = np.float32(10.0 ** (gain_floor_db / 20.0))
        self._mask = mask
        self._applier = GainApplier(sample_rate, channels)
        self._smoother = GainSmoother()
        self._waiting: deque[Array] = deque()
        self._sum_db, self._frames = 0.0, 0

    @property
    def mean_gain_db(self) -> float:
        """The mean over bands and frames of the gains in dB; 0 for an empty stream."""
        return self._sum_db / max(1, self._frames)

    def process(self, blocks: Iterable[Array]) -> Iterator[Array]:
        """Yield the cleaned stream: float32 (C, n) blocks in, as many samples out."""
        fader = CrossFader()
        analysis = resample_blocks(self._averaged(blocks), self._rate, ANALYSIS_RATE_HZ)
        for chunk in chunks(analysis, CHUNK_SAMPLES, OVERLAP_SAMPLES):
            logits = fader.add(chunk.start // ANALYSIS_HOP, self._logits(chunk))
            yield from self._apply(logits)
        yield from self._apply(fader.flush())
        rest = self._applier.flush()
        if rest.shape[1]:
            yield rest

    def _averaged(self, blocks: Iterable[Array]) -> Iterator[Array]:
        for block in blocks:
            self._waiting.append(block)
            yield block.mean(axis=0, keepdims=True)

    def _logits(self, chunk: Chunk) -> Array:
        """Return (64, T) for a chunk (1, n); T = n // hop + 1."""
        n_frames = chunk.audio.shape[1] // ANALYSIS_HOP + 1
        if not chunk.audio.any():
            return np.full((N_BANDS, n_frames), PASSING_LOGIT, np.float32)
        if self._mask is None:
            mask = np.full((N_BANDS, n_frames), UNKNOWN_MASK, np.float32)
        else:
            start_s = chunk.start / ANALYSIS_RATE_HZ
            mask = self._mask.on_grid(start_s, n_frames, GAIN_HOP_S, band_centres_hz())
        with torch.inference_mode():
            log_mel = self._front_end(torch.from_numpy(chunk.audio).to(self._device))
            seen = torch.from_numpy(mask)[None].to(self._device)
            logits: Array = self._model(log_mel, seen)[0].float().cpu().numpy()
        return logits

    def _apply(self, logits: Array | None) -> Iterator[Array]:
        if logits is not None:
            gains = np.maximum(1.0 / (1.0 + np.exp(-logits)), self._floor)
            gains = self._smoother.smooth(gains)
            self._sum_db += float(20.0 * np.log10(gains).mean(axis=0).sum())
            self._frames += gains.shape[1]
            self._applier.push_gains(gains)
        while self._waiting:
            self._applier.push_audio(self._waiting.popleft())
        ready = self._applier.pull()
        if ready.shape[1]:
            yield ready
