"""Training data of the enhancer: noisy soundscapes with degraded oracle masks, and wide clips.

The denoiser sees mixtures of labelled events over lasting backgrounds and, as its second input, an
oracle mask that is blurred, noisy, partly missing or absent: it learns to use the segmenter's mask
and to doubt it. The generator sees clips of which only the low band is left; clips whose own band
is narrow are no targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor

from common.datasets import Clip, ClipBank
from common.features import LogMel
from common.soundscapes import Cast, make_soundscape
from services.enhancer.config import (
    ANALYSIS_HOP,
    ANALYSIS_N_FFT,
    ANALYSIS_RATE_HZ,
    CD_RATE_HZ,
    N_BANDS,
)

Waveform = np.ndarray[Any, np.dtype[np.float32]]

SOUNDSCAPE_S = 5.0
EXCERPT_S = 3.0
"""What is trained on, from anywhere in a soundscape."""
TRAINING_RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000)
CROP_SAMPLES = 28 * 1024
RESAMPLING_MARGIN = 2048
MIN_BANDWIDTH_HZ = 15_000.0
BANDWIDTH_RANGE_DB = 75.0
QUIET_RMS = 1e-4


# Noise suppression


@dataclass(frozen=True)
class NoisyBatch:
    """Mixtures and their foreground (B, samples), and a mask (B, 64, T) as a segmenter's."""

    mixture: Tensor
    foreground: Tensor
    mask: Tensor


def log_mel() -> LogMel:
    """Return the denoiser's front end."""
    return LogMel(ANALYSIS_RATE_HZ, ANALYSIS_N_FFT, ANALYSIS_HOP, N_BANDS)


def noisy_batches(
    bank: ClipBank, cast: Cast, batch_size: int, seed: int | list[int]
) -> Iterator[NoisyBatch]:
    """Yield batches without end, at 32 kHz, reproducible from ``seed``."""
    rng = np.random.default_rng(seed)
    front_end = log_mel()
    while True:
        mixtures, foregrounds = [], []
        for _ in range(batch_size):
            noise_only = rng.random() < 0.05
            scape = make_soundscape(
                bank,
                cast.foreground,
                cast.background,
                rng,
                duration_s=SOUNDSCAPE_S,
                max_events=0 if noise_only else 4,
                snr_db=(-8.0, 22.0),
                min_events=0 if noise_only else 1,
            )
            gain = np.float32(10.0 ** (rng.uniform(-20.0, 6.0) / 20.0))
            start = int(rng.integers(round((SOUNDSCAPE_S - EXCERPT_S) * scape.sample_rate) + 1))
            excerpt = slice(start, start + round(EXCERPT_S * scape.sample_rate))
            mixture, background = scape.mixture[excerpt], scape.background[excerpt]
            mixtures.append(torch.from_numpy(mixture * gain))
            foregrounds.append(torch.from_numpy((mixture - background) * gain))
        mixed, wanted = torch.stack(mixtures), torch.stack(foregrounds)
        oracle = oracle_mask(front_end, wanted, mixed - wanted)
        masks = [degraded(mask, rng) for mask in oracle.numpy()]
        yield NoisyBatch(mixed, wanted, torch.from_numpy(np.stack(masks)))


@torch.no_grad()
def oracle_mask(front_end: LogMel, foreground: Tensor, background: Tensor) -> Tensor:
    """Return the foreground's share of the power per band, (B, 64, T) in [0, 1]."""
    return torch.sigmoid(front_end(foreground) - front_end(background))


def degraded(mask: Waveform, rng: np.random.Generator) -> Waveform:
    """Return a mask (F, T) as a real segmenter might have made it, in [0, 1].

    One in six is wholly unknown (0.5); the others are blurred in time and frequency, sharpened or
    flattened, noisy, and have rectangles missing or invented.
    """
    if rng.random() < 1 / 6:
        return np.full_like(mask, 0.5)
    F, T = mask.shape
    result = mask.astype(np.float32)
    result = _blurred(result, int(rng.integers(1, 24)), axis=1)
    result = _blurred(result, int(rng.integers(1, 10)), axis=0)
    logits = np.log((result + 1e-3) / (1.0 - result + 1e-3))
    logits = logits * rng.uniform(0.4, 1.6) + rng.normal(0.0, 0.7)
    noise = rng.normal(0.0, rng.uniform(0.0, 1.5), (-(-F // 4), -(-T // 8)))
    logits += np.kron(noise, np.ones((4, 8)))[:F, :T]
    result = (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
    for _ in range(int(rng.integers(0, 4))):
        width, height = int(rng.integers(4, T // 3 + 5)), int(rng.integers(4, F + 1))
        t, f = int(rng.integers(T)), int(rng.integers(F))
        value = rng.choice([0.03, 0.5, 0.9], p=[0.6, 0.2, 0.2])
        result[f : f + height, t : t + width] = value
    return result


def _blurred(values: Waveform, width: int, axis: int) -> Waveform:
    if width <= 1:
        return values
    padding = [(0, 0), (0, 0)]
    padding[axis] = (width // 2 + 1, width - width // 2 - 1)
    sums = np.cumsum(np.pad(values, padding, mode="edge"), axis=axis, dtype=np.float64)
    n = values.shape[axis]
    last = np.take(sums, np.arange(width, width + n), axis=axis)
    first = np.take(sums, np.arange(n), axis=axis)
    return ((last - first) / width).astype(np.float32)


# Widening


@dataclass(frozen=True)
class NarrowBatch:
    """``upsampled`` (B, samples) at 44.1 kHz from ``rate_in``, and the ``target`` it was."""

    upsampled: Tensor
    target: Tensor
    rate_in: int


def bandwidth_hz(waveform: Waveform, sample_rate: int) -> float:
    """Return the highest frequency within 75 dB of the mean spectrum's peak; 0 for silence.

    Frames below a hundred-thousandth of the loudest one's energy are left out.
    """
    n_fft = 2048
    if len(waveform) < n_fft:
        waveform = np.pad(waveform, (0, n_fft - len(waveform)))
    frames = np.lib.stride_tricks.sliding_window_view(waveform, n_fft)[:: n_fft // 2]
    power = np.abs(np.fft.rfft(frames * np.hanning(n_fft), axis=1)) ** 2
    energy = power.sum(axis=1)
    if energy.max() <= 0.0:
        return 0.0
    mean_db = 10.0 * np.log10(power[energy > 1e-5 * energy.max()].mean(axis=0) + 1e-20)
    loud = np.flatnonzero(mean_db > mean_db.max() - BANDWIDTH_RANGE_DB)
    return float(loud[-1] * sample_rate / n_fft)


def wide_clips(bank: ClipBank, clips: list[Clip]) -> list[Clip]:
    """Return the clips whose true bandwidth makes them targets."""
    return [
        clip
        for clip in clips
        if bandwidth_hz(bank.waveform(clip), bank.sample_rate) >= MIN_BANDWIDTH_HZ
    ]


def narrowed(target: Waveform, rate_in: int, sample_rate: int) -> Waveform:
    """Return ``target`` (n,) as it sounds after a recording at ``rate_in``, at its own rate."""
    narrow = soxr.resample(target, sample_rate, rate_in, quality="HQ")
    upsampled = soxr.resample(narrow, rate_in, sample_rate, quality="HQ")
    missing = max(0, len(target) - len(upsampled))
    return np.pad(upsampled, (0, missing))[: len(target)].astype(np.float32)


def narrow_batches(
    bank: ClipBank, clips: list[Clip], batch_size: int, seed: int | list[int]
) -> Iterator[NarrowBatch]:
    """Yield batches without end from a bank at 44.1 kHz, reproducible from ``seed``."""
    rng = np.random.default_rng(seed)
    while True:
        rate_in = int(rng.choice(TRAINING_RATES_HZ))
        targets, sources = [], []
        while len(targets) < batch_size:
            target = _crop(bank.waveform(clips[rng.integers(len(clips))]), rng)
            if target is None:
                continue
            target *= np.float32(10.0 ** (rng.uniform(-15.0, 6.0) / 20.0))
            source = narrowed(target, rate_in, CD_RATE_HZ)
            inner = slice(RESAMPLING_MARGIN, RESAMPLING_MARGIN + CROP_SAMPLES)
            targets.append(torch.from_numpy(target[inner]))
            sources.append(torch.from_numpy(source[inner]))
        yield NarrowBatch(torch.stack(sources), torch.stack(targets), rate_in)


def _crop(waveform: Waveform, rng: np.random.Generator) -> Waveform | None:
    """Return a stretch that sounds, with margins for the resampler, or None."""
    n = CROP_SAMPLES + 2 * RESAMPLING_MARGIN
    if len(waveform) < n:
        waveform = np.pad(waveform, (0, n - len(waveform)))
    for _ in range(4):
        start = int(rng.integers(len(waveform) - n + 1))
        crop = waveform[start : start + n].copy()
        if np.sqrt(np.square(crop).mean()) > QUIET_RMS:
            return crop
    return None
