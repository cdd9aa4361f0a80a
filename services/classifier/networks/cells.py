"""What the networks share: the mask's part in pooling, and the way onto the grid of cells.

A cell is 8 frames (80 ms) by 16 mel bands: scores come one per cell of time, the mask one per cell.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from services.classifier.config import CELL_FRAMES

MASK_FLOOR = 0.05
"""Added to the mask's weights: where nothing is foreground, all cells weigh the same."""

RARE_LOGIT = -3.0


def head(width: int, n_labels: int) -> nn.Linear:
    """Return a linear head that says at first that nothing sounds."""
    linear = nn.Linear(width, n_labels)
    nn.init.constant_(linear.bias, RARE_LOGIT)
    return linear


def mean_of_bands(maps: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over the bands of maps (B, C, f, t), (B, C, t).

    Args:
        maps: feature maps.
        mask: (B, f, t) weights of the same size, or None for equal ones.
    """
    if mask is None:
        return maps.mean(2)
    weight = mask[:, None] + MASK_FLOOR
    return (maps * weight).sum(2) / weight.sum(2)


def mean_of_all(maps: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over bands and time of maps (B, C, f, t), (B, C). See ``mean_of_bands``."""
    if mask is None:
        return maps.mean((2, 3))
    weight = mask[:, None] + MASK_FLOOR
    return (maps * weight).sum((2, 3)) / weight.sum((2, 3))


def on_cells(columns: Tensor, step_frames: int, first_frame: float, n_cells: int) -> Tensor:
    """Return columns (B, C, n), read at the centres of cells by straight lines, (B, C, n_cells).

    Before the centre of the first column and after that of the last, these hold.

    Args:
        columns: features or scores, one per ``step_frames``.
        step_frames: frames between the centres of columns.
        first_frame: centre of the first column, in frames.
        n_cells: cells wanted.
    """
    cells = torch.arange(n_cells, device=columns.device)
    centres = CELL_FRAMES * cells + (CELL_FRAMES - 1) / 2
    last = columns.shape[2] - 1
    position = ((centres - first_frame) / step_frames).clamp(0, last)
    left = position.floor().long()
    part = (position - left).to(columns.dtype)
    right = (left + 1).clamp_max(last)
    return columns[..., left] * (1 - part) + columns[..., right] * part
