"""What training does to spectrograms so that no two passes over a clip are alike.

All of it works on log-mel or mel power of shape (T, F). Mixing belongs to ``data``.

Sources: SpecAugment, Park et al. 2019; mixup, Zhang et al. 2018; random equalisers and narrower
bands against classes that are told apart by the recording device, as in Schmid et al. 2022, "Device
generalisation by equalisation".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.signal import lfilter

from common.features import LOG_FLOOR

Array = np.ndarray[Any, np.dtype[np.float32]]

DB = 10.0 / np.log(10.0)
"""Decibels per unit of the natural logarithm of power."""
MIXUP_ALPHA = 0.4
LOWEST = np.float32(np.log(LOG_FLOOR))


@dataclass(frozen=True)
class Augmentation:
    """How often something is done to a clip or a crop (shares in [0, 1]), and how much.

    Items are ``alone_share`` clips alone, ``pair_share`` two clips mixed, the rest scenes of a
    background and placed events.
    """

    alone_share: float = 0.35
    pair_share: float = 0.45
    gain_db: float = 6.0  # deviation of a clip's level
    stretch_share: float = 0.3
    stretch_deviation: float = 0.15  # of the logarithm of the tempo
    pitch_share: float = 0.5
    pitch_bands: float = 2.0  # deviation, in mel bands
    equalise_share: float = 0.8
    equalise_db: float = 6.0  # deviation of each of three bumps
    low_pass_share: float = 0.25
    reverb_share: float = 0.15  # of the sounds of scenes
    noise_share: float = 0.2
    mixup_share: float = 0.0  # of spectrograms laid over another of the batch, targets likewise
    blank_share: float = 0.6  # of two stripes in time and two in frequency, each
    blank_bands: int = 8  # at most
    blank_time_share: float = 0.15  # of the crop, at most


def varied(logmel: Array, how: Augmentation, rng: np.random.Generator) -> Array:
    """Return a spectrogram (T, F) with another pitch, equaliser, bandwidth and level."""
    axis = np.arange(logmel.shape[1], dtype=np.float32)
    if rng.random() < how.pitch_share:
        shift = float(rng.normal(0.0, how.pitch_bands))
        at = np.clip(axis - shift, 0.0, len(axis) - 1.0)
        left = np.minimum(at.astype(np.int64), len(at) - 2)
        part = (at - left).astype(np.float32)
        logmel = logmel[:, left] * (1.0 - part) + logmel[:, left + 1] * part
    curve = np.full_like(axis, rng.normal(0.0, how.gain_db))
    if rng.random() < how.equalise_share:
        for _ in range(3):
            centre, width = rng.uniform(0.0, len(axis)), rng.uniform(4.0, 20.0)
            bump = np.exp(-0.5 * ((axis - centre) / width) ** 2)
            curve += np.float32(rng.normal(0.0, how.equalise_db)) * bump
    if rng.random() < how.low_pass_share:
        # bands 32 to 62 of 64: about 3.2 to 15 kHz; digits end at 4 kHz, UrbanSound8K at 11
        edge = float(rng.choice([rng.uniform(32.0, 62.0), 37.5, 56.5], p=[0.6, 0.25, 0.15]))
        slope_db = float(rng.uniform(6.0, 40.0))
        curve -= np.clip(axis - edge * len(axis) / 64.0, 0.0, None) * slope_db
    return np.maximum(logmel + np.float32(1.0 / DB) * curve, LOWEST).astype(np.float32)


def reverberated(power: Array, hop_s: float, rng: np.random.Generator) -> Array:
    """Return power (T, F) with the decay of a room, 0.15 to 1 s long (by 60 dB)."""
    keep = 10.0 ** (-6.0 * hop_s / rng.uniform(0.15, 1.0))
    tail = lfilter([1.0 - keep], [1.0, -keep], power, axis=0)
    wet = np.float32(10.0 ** rng.uniform(-1.5, 0.0))
    return np.asarray(power + wet * tail, np.float32)


def soft_noise(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Return the power of a soft stationary noise of random colour, (T, F)."""
    T, F = shape
    level_db, tilt_db = rng.uniform(-45.0, 5.0), rng.uniform(-25.0, 10.0)
    spectrum = 10.0 ** ((level_db + tilt_db * np.arange(F) / F) / 10.0)
    return (spectrum * rng.gamma(3.0, 1.0 / 3.0, (T, F))).astype(np.float32)


def mixed_up(
    arrays: Sequence[Array], how: Augmentation, rng: np.random.Generator
) -> tuple[Array, ...]:
    """Return a batch with a share of its items laid over their neighbours, targets alike.

    An item becomes ``a * item + (1 - a) * neighbour``, a from Beta(MIXUP_ALPHA, MIXUP_ALPHA).

    Args:
        arrays: inputs and targets, the items along the first axis of each.
        how: says how many.
        rng: draws items and weights.
    """
    n_items = len(arrays[0])
    keep = rng.beta(MIXUP_ALPHA, MIXUP_ALPHA, n_items).astype(np.float32)
    keep[rng.random(n_items) >= how.mixup_share] = 1.0

    def mixed(array: Array) -> Array:
        part = keep.reshape(-1, *[1] * (array.ndim - 1))
        return part * array + (1.0 - part) * np.roll(array, 1, axis=0)

    return tuple(mixed(array) for array in arrays)


def blank_stripes(logmel: Array, how: Augmentation, rng: np.random.Generator) -> None:
    """Blank stretches of time and of frequency in place, in a (T, F) spectrogram."""
    T, F = logmel.shape
    fill = logmel.mean()
    for _ in range(2):
        if rng.random() < how.blank_share:
            width = int(rng.integers(1, how.blank_bands + 1))
            start = int(rng.integers(0, F - width))
            logmel[:, start : start + width] = fill
        if rng.random() < how.blank_share:
            width = int(rng.integers(1, max(2, round(T * how.blank_time_share))))
            start = int(rng.integers(0, T - width))
            logmel[start : start + width] = fill
