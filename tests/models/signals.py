"""Signals that tests of models take in."""

from __future__ import annotations

import numpy as np


def noise(channels: int, n: int, level: float = 0.1, seed: int = 0) -> np.ndarray:
    """White noise of this RMS level, (C, n)."""
    rng = np.random.default_rng(seed)
    return (level * rng.standard_normal((channels, n))).astype(np.float32)
