"""Ways to find foreground without learning, for comparison. Each gives scores, more is foreground.

All take mel powers (F, T), T frames of 20 ms, and return scores (F, T). Those with ``soft`` scores
return amplitude ratios in [0, 1], comparable with the segmenter's; the others are only thresholded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage, signal

Map = npt.NDArray[np.float64]

_TINY = 1e-10


def energy(power: Map) -> Map:
    """Return the level in dB over the recording's median: the simplest activity detector."""
    level_db = 10.0 * np.log10(power + _TINY)
    return np.asarray(level_db - np.median(level_db))


def pcen(power: Map) -> Map:
    """Return per-channel energy normalisation with the published defaults.

    Source: Wang et al. 2017, "Trainable frontend for robust and far-field keyword spotting",
    equations 1 and 2; on magnitudes, with time constant 0.4 s as in Lostanlen et al. 2019.
    """
    smooth, gain, bias, root = 0.05, 0.98, 2.0, 0.5  # 0.02 s hop over 0.4 s
    magnitude = np.sqrt(power) * 2.0**7
    start = magnitude[:, :1] * (1.0 - smooth)
    slow, _ = signal.lfilter([smooth], [1.0, smooth - 1.0], magnitude, axis=1, zi=start)
    return np.asarray((magnitude / (1e-6 + slow) ** gain + bias) ** root - bias**root)


def spectral_median(power: Map) -> Map:
    """Return the ratio mask over each band's median, taken as the power of the background.

    Source: Boll 1979, "Suppression of acoustic noise in speech using spectral subtraction", with
    the median in place of a stretch known to be noise.
    """
    background = np.median(power, axis=1, keepdims=True)
    return np.asarray(np.sqrt(np.clip(1.0 - background / (power + _TINY), 0.0, 1.0)))


def hpss(power: Map) -> Map:
    """Return the ratio mask of the percussive part.

    Source: Fitzgerald 2010, "Harmonic/percussive separation using median filtering", equations 1
    to 4; medians over 0.62 s and 31 bands.
    """
    magnitude = np.sqrt(power)
    harmonic = ndimage.median_filter(magnitude, size=(1, 31), mode="nearest") ** 2
    percussive = ndimage.median_filter(magnitude, size=(31, 1), mode="nearest") ** 2
    return np.asarray(np.sqrt(percussive / (harmonic + percussive + _TINY)))


@dataclass(frozen=True)
class Peer:
    """A method by name."""

    name: str
    scores: Callable[[Map], Map]
    soft: bool


PEERS = (
    Peer("energy threshold", energy, soft=False),
    Peer("PCEN threshold", pcen, soft=False),
    Peer("spectral median", spectral_median, soft=True),
    Peer("HPSS, percussive part", hpss, soft=True),
)
