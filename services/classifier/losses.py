"""The losses of the classifier. Lower is better; all are in nats."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TINY = 1e-8


class ShareLoss(nn.Module):
    """Cross-entropy of the softmax against shares of classes; items without a share count nothing.

    Source: Tokozume et al. 2018, "Learning from between-class examples", equation 3, as
    cross-entropy, which differs from their divergence by a constant.
    """

    def forward(self, logits: Tensor, share: Tensor) -> Tensor:
        """Return the mean over items of logits (B, K) and shares (B, K), rows summing to 1 or 0."""
        nats = -(share * F.log_softmax(logits, dim=1)).sum(1)
        return nats.sum() / share.sum().clamp_min(TINY)


class PresenceLoss(nn.Module):
    """Binary cross-entropy summed over the classes, averaged over all else, under a weight."""

    def forward(self, logits: Tensor, present: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the loss.

        Args:
            logits: (B, K) or (B, K, t).
            present: the same shape, in [0, 1].
            weight: the same shape, non-negative, or None; a class of weight 0 counts nothing.
        """
        nats = F.binary_cross_entropy_with_logits(logits, present, weight, reduction="none")
        return nats.sum(1).mean()


class FocalLoss(nn.Module):
    """``PresenceLoss`` whose terms count less the surer they already are: (1 - p)^gamma of them.

    p is the probability given to what is true. A gamma of 0 is binary cross-entropy.

    Source: Lin et al. 2017, "Focal loss for dense object detection", equation 4; their balance of
    the classes, alpha, is left out, since a weight can be given.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        """``gamma`` is at least 0; the paper's is 2."""
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Tensor, present: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the loss; the arguments are those of ``PresenceLoss``."""
        # powers of probabilities by way of logarithms: their gradient is finite at 0 and 1
        log_present, log_absent = F.logsigmoid(logits), F.logsigmoid(-logits)
        nats = -present * torch.exp(self.gamma * log_absent) * log_present
        nats = nats - (1.0 - present) * torch.exp(self.gamma * log_present) * log_absent
        if weight is not None:
            nats = nats * weight
        return nats.sum(1).mean()
