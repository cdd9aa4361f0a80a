"""Other ways to fill a masked bin, to compare the inpainter with. Evaluation only.

All share the rule of removal (below 0.3 untouched, up to 0.8 the gain) and differ in the bins
above 0.8. ``fast_marching`` needs OpenCV, which is no dependency: it is left out where missing.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from services.restorer.config import MASK_REPLACE
from services.restorer.fill import Expected, expect, gain_of, restore_channel
from services.restorer.model import Inpainter
from services.restorer.spectrum import Grid, power_of

Filler = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(mixture (T, F), mask (T, F), true rest (T, F), first frame) to restored (T, F)."""

IMAGE_RANGE_DB = 80.0
TELEA_RADIUS = 5


def _with_magnitude(spectrum: Tensor, mask: Tensor, magnitude: Tensor) -> Tensor:
    """Return the mixture with another magnitude, in its own phase, above 0.8."""
    unit = spectrum / spectrum.abs().clamp_min(1e-12)
    return torch.where(mask > MASK_REPLACE, magnitude * unit, spectrum * gain_of(mask))


def nothing(spectrum: Tensor, mask: Tensor, rest: Tensor, first_frame: int) -> Tensor:
    """The recording as it is."""
    return spectrum


def zero(spectrum: Tensor, mask: Tensor, rest: Tensor, first_frame: int) -> Tensor:
    """Silence."""
    return _with_magnitude(spectrum, mask, torch.zeros_like(mask))


def gain_only(spectrum: Tensor, mask: Tensor, rest: Tensor, first_frame: int) -> Tensor:
    """The gain sqrt(1 - M^2) everywhere."""
    return spectrum * gain_of(mask)


def interpolation(spectrum: Tensor, mask: Tensor, rest: Tensor, first_frame: int) -> Tensor:
    """A straight line in log magnitude between the nearest kept frames of each frequency."""
    level = torch.log(spectrum.abs() * gain_of(mask) + 1e-9).numpy()
    keep = (mask <= MASK_REPLACE).numpy()
    frames = np.arange(len(level))
    for index in range(level.shape[1]):
        known = np.flatnonzero(keep[:, index])
        if len(known):
            level[:, index] = np.interp(frames, known, level[known, index])
        else:
            level[:, index] = -20.0
    return _with_magnitude(spectrum, mask, torch.from_numpy(level).exp())


def has_fast_marching() -> bool:
    """Return whether OpenCV is installed."""
    return find_spec("cv2") is not None


def fast_marching(spectrum: Tensor, mask: Tensor, rest: Tensor, first_frame: int) -> Tensor:
    """Telea 2004, "An image inpainting technique based on the fast marching method", by OpenCV.

    On the log spectrogram as an 8-bit picture of 80 dB, with a radius of 5 bins.
    """
    cv2 = import_module("cv2")
    level_db = 20.0 * torch.log10(spectrum.abs() * gain_of(mask) + 1e-9).numpy()
    top = float(level_db.max())
    picture = np.clip((level_db - top + IMAGE_RANGE_DB) / IMAGE_RANGE_DB, 0.0, 1.0) * 255.0
    hole = (mask > MASK_REPLACE).to(torch.uint8).numpy()
    filled = cv2.inpaint(np.rint(picture).astype(np.uint8), hole, TELEA_RADIUS, cv2.INPAINT_TELEA)
    level_db = filled.astype(np.float32) / 255.0 * IMAGE_RANGE_DB - IMAGE_RANGE_DB + top
    return _with_magnitude(spectrum, mask, torch.from_numpy(10.0 ** (level_db / 20.0)))


def learned(inpainter: Inpainter | None, grid: Grid, *, draw: bool = True) -> Filler:
    """Return the service's own way; without a model it draws from interpolation in time."""

    def fill(spectrum: Tensor, mask: Tensor, rest: Tensor, first_frame: int) -> Tensor:
        expected = expect(inpainter, power_of(spectrum), mask, grid)
        return restore_channel(spectrum, mask, expected, grid, first_frame=first_frame, draw=draw)

    return fill


def true_magnitude(grid: Grid) -> Filler:
    """Return the ceiling of every fill: the true magnitude in the phase that is found for it."""

    def fill(spectrum: Tensor, mask: Tensor, rest: Tensor, first_frame: int) -> Tensor:
        level = torch.log(rest.abs() + 1e-9)
        expected = Expected(level, torch.zeros_like(level))
        return restore_channel(spectrum, mask, expected, grid, first_frame=first_frame, draw=False)

    return fill
