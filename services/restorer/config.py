"""Configurations and constants of the restorer: its two models and the rule of removal.

The thresholds follow the design: a time-frequency bin whose removal mask M is below 0.3 stays
untouched, up to 0.8 it gets the gain sqrt(1 - M^2), above that it is drawn anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.labels import LABELS

RECOGNISER_FILE = "recogniser.safetensors"
INPAINTER_FILE = "inpainter.safetensors"
"""The files in the folder of weights."""

MASK_TOUCH = 0.3
"""Removal mask from which a bin is changed at all."""
MASK_REPLACE = 0.8
"""Removal mask above which a bin is replaced instead of attenuated."""

FRAME_S = 0.032
HOPS_PER_FRAME = 4
HOP_S = FRAME_S / HOPS_PER_FRAME
INPAINT_RATE_HZ = 32_000
"""The grid the inpainter is trained on; other rates are mapped to it by frequency in hertz."""
BIN_HZ = 1.0 / FRAME_S
INPAINT_BINS = int(INPAINT_RATE_HZ / 2 * FRAME_S) + 1

WINDOW_S = 10.0
"""Longest stretch restored at once."""
CONTEXT_S = 1.5
"""What the inpainter sees on either side of it."""
REGION_MARGIN_S = 0.1
"""A region is widened by this before its mask is read."""
MERGE_GAP_S = 0.1
"""Events of one label closer than this are one region."""
GRIFFIN_LIM_ROUNDS = 4
MAX_PASSES = 2
"""Removal passes over one stretch; the second widens the mask."""
BUFFER_SAMPLES = 12_000_000
"""Samples, all channels together, that may wait in memory; wide formats get shorter windows."""

RAYLEIGH_LOG_STD = math.pi / math.sqrt(24.0)
"""Standard deviation of ln|X| where X is complex Gaussian: the texture of noise."""
LOG_FLOOR = 1e-10
"""Added to power before the logarithm: -100 dB of full scale per bin."""


@dataclass(frozen=True)
class RecogniserConfig:
    """The recurrent recogniser over log-mel of a region.

    ``threshold`` is fitted on the validation split by ``train``: below it the recogniser abstains.
    """

    labels: tuple[str, ...] = LABELS
    n_fft: int = 1024
    hop_length: int = 320
    n_mels: int = 64
    channels: tuple[int, ...] = (16, 32, 64, 96)
    hidden: int = 96
    threshold: float = 0.5
    window_s: float = 4.0  # longest stretch heard at once
    min_window_s: float = 0.5  # a shorter region is heard with its surroundings


@dataclass(frozen=True)
class InpainterConfig:
    """The gated convolutional inpainter over log-magnitude patches."""

    fold_bins: int = 4  # frequency bins folded into channels
    fold_frames: int = 2  # frames folded into channels
    width: int = 24
    deep_width: int = 40
    dilations: tuple[int, ...] = (1, 2, 4, 8)
    max_delta: float = 3.0  # bound on the correction of the prior's mean, in nepers
