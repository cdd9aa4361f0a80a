"""What is explained: one label's logit in one window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.features import LOG_FLOOR
from services.classifier.model import Classifier

FloatArray = npt.NDArray[np.float32]

SILENCE = float(np.log(LOG_FLOOR))
"""The log-mel of no sound at all: what integrated gradients compare with."""

QUIET_QUANTILE = 0.1
"""Per band, the level that a tenth of the window's frames do not reach: its background."""


@dataclass(frozen=True)
class Question:
    """Why this label? ``logmel`` (1, F, T); ``cells`` the mask (1, f, t), or None for all ones."""

    model: Classifier
    logmel: Tensor
    cells: Tensor | None
    label: int

    def logits(self, logmel: Tensor, cells: Tensor | None = None) -> Tensor:
        """Return the label's logit (B,) of log-mels (B, F, T): what captum differentiates."""
        clip: Tensor = self.model(logmel, cells).clip
        return clip[:, self.label]

    @torch.no_grad()
    def probabilities(self, logmel: Tensor) -> FloatArray:
        """Return the label's calibrated probability (B,) of log-mels (B, F, T), under the mask."""
        cells = None if self.cells is None else self.cells.expand(len(logmel), -1, -1)
        clip = self.model(logmel, cells).clip
        probabilities: FloatArray = self.model.probabilities(clip)[:, self.label].cpu().numpy()
        return probabilities

    def background(self) -> Tensor:
        """Return the window with every frame at its quiet level, (1, F, T)."""
        quiet = torch.quantile(self.logmel, QUIET_QUANTILE, dim=2, keepdim=True)
        return quiet.expand_as(self.logmel)


@dataclass(frozen=True)
class Relevance:
    """How much each bin speaks for the label. ``values`` (F, T), negative: speaks against it.

    ``total`` is what ``values`` and ``beyond`` should sum up to, ``conservation_error`` by what
    share of it they miss it; both None where the method promises no sum. ``beyond`` is the
    relevance of what a network fills up a short window with. ``spread`` is the share of the
    relevance that no input accounts for and that was spread evenly on its way, None where a method
    spreads none.
    """

    values: FloatArray
    total: float | None = None
    conservation_error: float | None = None
    beyond: float = 0.0
    spread: float | None = None


def relevance_of(values: Tensor, total: float | None = None) -> Relevance:
    """Return relevance (F, T) and, where ``total`` is known, how far its sum is from it."""
    array: FloatArray = values.detach().cpu().numpy().astype(np.float32)
    if total is None:
        return Relevance(array)
    missing = abs(float(array.sum(dtype=np.float64)) - total)
    return Relevance(array, total, missing / max(abs(total), 1e-6))
