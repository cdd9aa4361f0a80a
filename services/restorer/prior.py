"""What the known bins say about the unknown ones: interpolation along time, per frequency.

It is the peer that the inpainter has to beat, and the starting point that it corrects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft
from scipy.ndimage import uniform_filter1d

from services.restorer.config import MASK_REPLACE, MASK_TOUCH, RAYLEIGH_LOG_STD

_TIME_CONSTANTS_S = (0.06, 0.4, 3.0)
_SHARES = (1.0, 0.1, 0.01)
"""The nearest known frames count most; far ones only where there are no others."""
_PARTIAL_WEIGHT = 0.05
_NEIGHBOUR_SHARE = 1e-4
_NEIGHBOUR_BINS = 17
_NOISE_FRAMES = 4.0
"""Weight, in frames, of the expectation that a bin is noise when its variance is estimated."""


@dataclass(frozen=True)
class Prior:
    """Mean (F, T) and log-variance (F, T) of the log-magnitude, float32."""

    mean: np.ndarray
    log_variance: np.ndarray


def known_weight(mask: np.ndarray) -> np.ndarray:
    """Return how far each bin (F, T) tells of the background: 1 untouched, 0 replaced."""
    weight = np.where(mask < MASK_TOUCH, np.float32(1.0), np.float32(_PARTIAL_WEIGHT))
    return np.where(mask > MASK_REPLACE, np.float32(0.0), weight)


def _nearby(values: np.ndarray, hop_s: float) -> np.ndarray:
    """Return sums over time (..., T) under a kernel that falls with distance, at all its speeds."""
    frames = values.shape[-1]
    n = fft.next_fast_len(2 * frames, real=True)
    distance_s = np.minimum(np.arange(n), n - np.arange(n)) * hop_s
    kernel = sum(
        share * np.exp(-distance_s / time_constant_s)
        for time_constant_s, share in zip(_TIME_CONSTANTS_S, _SHARES, strict=True)
    )
    response = fft.rfft(np.asarray(kernel, np.float32)).real
    return fft.irfft(fft.rfft(values, n) * response, n)[..., :frames]


def interpolate_in_time(log_magnitude: np.ndarray, weight: np.ndarray, hop_s: float) -> Prior:
    """Return what the weighted bins suggest for every bin.

    Args:
        log_magnitude: (F, T) float32, natural logarithm.
        weight: (F, T) float32 in [0, 1]; where it is 0 the value is not looked at.
        hop_s: seconds between frames.

    Returns:
        The prior; where nothing is known in any bin, the tenth percentile of each frequency.
    """
    if not weight.any():
        low = np.percentile(log_magnitude, 10, axis=1, keepdims=True).astype(np.float32)
        return Prior(
            mean=np.broadcast_to(low, log_magnitude.shape).copy(),
            log_variance=np.full_like(log_magnitude, 2.0 * np.log(RAYLEIGH_LOG_STD)),
        )
    centre = np.float32((weight * log_magnitude).sum() / weight.sum())
    shifted = log_magnitude - centre
    terms = np.stack([weight, weight * shifted, weight * shifted**2])  # (3, F, T)
    sums = _nearby(terms, hop_s)
    # where a frequency is never known: its neighbours, then everything
    sums += np.float32(_NEIGHBOUR_SHARE) * uniform_filter1d(
        sums, _NEIGHBOUR_BINS, axis=1, mode="nearest"
    )
    sums += np.float32(_NEIGHBOUR_SHARE**2) * sums.mean(axis=1, keepdims=True)
    total = np.maximum(sums[0], np.float32(1e-12))
    mean = sums[1] / total
    spread = np.maximum(sums[2] / total - mean**2, 0.0)
    variance = (total * spread + _NOISE_FRAMES * RAYLEIGH_LOG_STD**2) / (total + _NOISE_FRAMES)
    return Prior(
        mean=(mean + centre).astype(np.float32),
        log_variance=np.log(variance).astype(np.float32),
    )
