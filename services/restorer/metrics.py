"""What the evaluation measures. Each function says its unit and which way is better."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.losses import NegativeSiSdr

RANGE_DB = 60.0
"""Levels further than this below the loudest bin of the reference count as this far below."""
TEXTURE_PATCH = (16, 12)
"""Bins and frames (500 Hz, 96 ms) whose power is one level to the ear."""


@dataclass(frozen=True)
class InsideDistance:
    """Distances in dB between two spectra where a mask is; lower is better.

    ``lsd_db`` is the root mean square over bins: two draws of one noise are 7.9 dB apart, its
    smooth mean 5.6 dB. ``texture_db`` is the mean absolute difference of the power of small
    patches, which does not mind that noise is drawn anew, only its level.
    ``roughness`` is the spread of bin levels inside patches over that of the reference: 1 where
    the fill is as grainy as what it stands for.
    """

    lsd_db: float
    texture_db: float
    roughness: float


def si_sdr_db(estimate: np.ndarray, reference: np.ndarray) -> float:
    """Return the SI-SDR of (n,) signals, dB; higher is better."""
    pair = (torch.from_numpy(np.asarray(x, np.float64)) for x in (estimate, reference))
    return -float(NegativeSiSdr()(*pair))


def damage_snr_db(output: np.ndarray, given: np.ndarray, outside: np.ndarray) -> float:
    """Return signal over change in dB where ``outside`` (n,) is true; infinite without change."""
    change = float(np.square(output[outside] - given[outside], dtype=np.float64).sum())
    power = float(np.square(given[outside], dtype=np.float64).sum())
    return float("inf") if change == 0.0 else 10.0 * float(np.log10(power / change))


def inside_distance(estimate: Tensor, reference: Tensor, mask: Tensor) -> InsideDistance:
    """Return the distances of power spectra where ``mask`` is true; all three (T, F)."""
    floor = float(reference.max()) * 10.0 ** (-RANGE_DB / 10.0) + 1e-20
    levels = [10.0 * torch.log10(power + floor) for power in (estimate, reference)]
    inside = mask.to(levels[0].dtype)
    count = inside.sum().clamp_min(1.0)
    lsd = ((levels[0] - levels[1]).square() * inside).sum() / count

    def pooled(values: Tensor) -> Tensor:
        return F.avg_pool2d((values * inside).T[None], TEXTURE_PATCH)[0]

    share = pooled(torch.ones_like(inside))
    full = share > 0.5
    if not bool(full.any()):
        return InsideDistance(float(lsd.sqrt()), float("nan"), float("nan"))
    patches = [
        10.0 * torch.log10(pooled(p)[full] / share[full] + floor) for p in (estimate, reference)
    ]
    spreads = []
    for level in levels:
        mean = pooled(level)[full] / share[full]
        square = pooled(level.square())[full] / share[full]
        spreads.append((square - mean.square()).clamp_min(0.0).sqrt().mean())
    return InsideDistance(
        float(lsd.sqrt()),
        float((patches[0] - patches[1]).abs().mean()),
        float(spreads[0] / spreads[1].clamp_min(1e-6)),
    )
