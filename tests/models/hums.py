"""A small data set that a small network can learn: hums, of a height for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile


def hum(number: int, seconds: float, seed: int) -> np.ndarray:
    """A tone of its class: an octave apart, of a random phase, with some noise."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * 16_000)) / 16_000
    tone = np.sin(2 * np.pi * 250 * 2**number * time_s + rng.uniform(0, 6.28))
    return 0.3 * tone + 0.003 * rng.standard_normal(len(time_s))


def hums(folder: Path, labels: Sequence[str], n_clips: int, seconds: float = 0.8) -> Path:
    """Write a folder per class of hums; class number k hums k octaves above the first."""
    for k, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for n in range(n_clips):
            soundfile.write(folder / label / f"{n}.wav", hum(k, seconds, 100 * k + n), 16_000)
    return folder
