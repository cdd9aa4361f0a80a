"""Losses of the restorer's two models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.losses import GaussianNLL, weighted_mean
from services.restorer.model import Fill

PRESENT_DB = -8.0
ABSENT_DB = -25.0


class PartiallyLabelledBce(nn.Module):
    """Binary cross-entropy over the outputs whose truth is known, in nats; lower is better.

    An event that is barely audible in a crop is neither present nor absent: it has weight 0.
    """

    def forward(self, logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
        """Return the loss; all three are (B, K), ``known`` non-negative."""
        nats = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return weighted_mean(nats, known)


class FillLoss(nn.Module):
    """Likelihood of the true background in the replaced bins, in nats; lower is better.

    Source: ``common.losses.GaussianNLL``. To it comes the distance of mean levels over small
    patches: a likelihood per bin hardly sees an error of level that all bins of a hole share, and
    an ear hears nothing else. An error beyond ``max_error`` comes from a sound that nothing around
    the hole tells of; it counts as that much and moves no mean.
    """

    def __init__(
        self,
        level_weight: float = 0.5,
        patch: tuple[int, int] = (8, 8),
        max_error: float = 3.0,
    ) -> None:
        """``patch`` is in bins and frames, ``max_error`` in nepers."""
        super().__init__()
        self.max_error = max_error
        self.likelihood = GaussianNLL()
        self.level_weight = level_weight
        self.patch = patch

    def forward(self, fill: Fill, target: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Return ``likelihood``, ``level`` (nepers) and ``total``.

        Args:
            fill: prediction, (B, F, T).
            target: (B, F, T) true log-magnitude of what remains.
            weight: (B, F, T), 0 outside the holes.
        """
        error = (fill.mean - target).clamp(-self.max_error, self.max_error)
        likelihood = self.likelihood(error, fill.log_variance, torch.zeros_like(error), weight)
        inside = F.avg_pool2d(weight, self.patch)
        error = F.avg_pool2d(weight * error, self.patch) / inside.clamp_min(1e-3)
        level = weighted_mean(error.abs(), (inside > 0.1).to(inside.dtype) * inside)
        return {
            "likelihood": likelihood,
            "level": level,
            "total": likelihood + self.level_weight * level,
        }


def recogniser_target(
    event_db: Tensor, present_db: float = PRESENT_DB, absent_db: float = ABSENT_DB
) -> tuple[Tensor, Tensor]:
    """Return targets and weights of the label outputs from how loud each label is.

    Args:
        event_db: (..., K) level of each label's stem against everything else in the crop.
        present_db: from here on the label counts as sounding.
        absent_db: from here down it counts as absent; in between its weight is zero.
    """
    target = (event_db >= present_db).to(torch.float32)
    known = ((event_db >= present_db) | (event_db <= absent_db)).to(torch.float32)
    return target, known
