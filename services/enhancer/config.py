"""Configurations and constants of the enhancer: its two models and how they are applied.

The denoiser looks at 32 kHz on ``N_BANDS`` mel bands, 100 frames a second; its gains are applied at
the recording's own rate. The generator works at the widened rate on a frequency-folded grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from common.chunking import CHUNK_S, OVERLAP_S
from common.features import ANALYSIS_RATE_HZ

WEIGHTS = Path(__file__).parent / "weights"

# Noise suppression: analysis
N_BANDS = 64
ANALYSIS_N_FFT = 1024
ANALYSIS_HOP = ANALYSIS_RATE_HZ // 100
GAIN_HOP_S = ANALYSIS_HOP / ANALYSIS_RATE_HZ
CHUNK_SAMPLES = round(CHUNK_S * ANALYSIS_RATE_HZ)
OVERLAP_SAMPLES = round(OVERLAP_S * ANALYSIS_RATE_HZ)

# Noise suppression: application
ATTACK_S = 0.005
RELEASE_S = 0.050
WINDOW_HOPS = 4
"""Windows of the native-rate STFT last this many hops of ``GAIN_HOP_S``."""

# Widening
MIN_WIDEN_RATE_HZ = 8_000
MAX_WIDEN_RATE_HZ = 24_000
CD_FAMILY_HZ = (11_025, 22_050)
CD_RATE_HZ = 44_100
STUDIO_RATE_HZ = 48_000


@dataclass(frozen=True)
class DenoiserConfig:
    """A convolutional U in frequency with a recurrent layer over time at its bottom."""

    channels: tuple[int, ...] = (16, 24, 32, 48)
    hidden: int = 96


@dataclass(frozen=True)
class GeneratorConfig:
    """Residual-in-residual dense blocks on a frequency-folded log-magnitude grid.

    ``fold`` neighbouring bins become channels of one position. ``cutoff_share`` of the input's
    Nyquist frequency is where the generated band begins: resamplers roll off above it.
    """

    n_fft: int = 1024
    hop_length: int = 512
    fold: int = 16
    width: int = 32
    growth: int = 16
    blocks: int = 2
    dense_per_block: int = 3
    convs_per_dense: int = 3
    cutoff_share: float = 0.92


@dataclass(frozen=True)
class DiscriminatorConfig:
    """A patch discriminator over the log-magnitude grid; used in training only."""

    channels: tuple[int, ...] = (16, 32, 48, 64)


def widened_rate(sample_rate: int) -> int | None:
    """Return the rate to widen to, or None where the top band is not missing in this version."""
    if not MIN_WIDEN_RATE_HZ <= sample_rate <= MAX_WIDEN_RATE_HZ:
        return None
    return CD_RATE_HZ if sample_rate in CD_FAMILY_HZ else STUDIO_RATE_HZ


def one_pole(time_s: float) -> float:
    """Return the coefficient of a one-pole smoother with this time constant, per gain frame."""
    return math.exp(-GAIN_HOP_S / time_s)
