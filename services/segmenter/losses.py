"""What the segmenter is trained on: masks at every level, classes, pixels by their event's size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.losses import SoftDiceLoss, weighted_mean
from services.segmenter.model import Segmenter

SIDE_SHARE = 0.3
CLASS_SHARE = 0.5
PRESENCE_SHARE = 0.5


class WeightedBceLoss(nn.Module):
    """Binary cross-entropy in nats under pixel weights; lower is better.

    With soft targets its least value is their entropy, reached where the probability is the target.
    Source: Ronneberger et al. 2015, "U-Net", equations 1 and 2, for the weight map.
    """

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Return the weighted mean of logits and targets in [0, 1] of one shape."""
        nats = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return weighted_mean(nats, weight)


class ClassLoss(nn.Module):
    """Class masks: cross-entropy summed over classes, plus soft Dice of the classes that sound."""

    def __init__(self) -> None:
        super().__init__()
        self.dice = SoftDiceLoss()

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Return the loss.

        Args:
            logits: (B, K, f, t).
            target: (B, K, f, t) in [0, 1].
            weight: (B, f, t).
        """
        nats = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)
        loss = weighted_mean(nats, weight)
        sounding = target.amax(dim=(2, 3)) > 0.5  # (B, K)
        if bool(sounding.any()):
            weights = weight[:, None].expand_as(target)[sounding]
            loss = loss + self.dice(torch.sigmoid(logits[sounding]), target[sounding], weights)
        return loss


def presence_loss(logits: Tensor, class_mask: Tensor) -> Tensor:
    """Return the cross-entropy, summed over classes, of which classes sound in each time cell.

    Args:
        logits: (B, K, cells).
        class_mask: (B, K, f, t) in [0, 1], t a multiple of the cells.
    """
    n_cells = logits.shape[-1]
    loudest = class_mask.amax(2).unflatten(-1, (n_cells, -1)).amax(-1)
    target = (loudest > 0.5).to(logits.dtype)  # audible beside the rest in one band at least
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1).mean()


class SegmenterLoss(nn.Module):
    """The sum of all, by name; ``total`` is minimised.

    Source: Qin et al. 2020, equation 1 (deep supervision); Dice beside cross-entropy as in
    Isensee et al. 2021, "nnU-Net".
    """

    def __init__(self) -> None:
        super().__init__()
        self.bce = WeightedBceLoss()
        self.dice = SoftDiceLoss()
        self.classes = ClassLoss()

    def forward(self, model: Segmenter, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return named losses of a batch as ``data.BatchMaker`` gives it, in train mode."""
        features, mask, weight = batch["features"], batch["mask"], batch["weight"]
        with torch.autocast(features.device.type, torch.bfloat16):
            found = model(features)
        logits = found.mask_logits.float()
        losses = {
            "bce": self.bce(logits, mask, weight),
            "dice": self.dice(torch.sigmoid(logits), mask, weight),
            "side": self._sides(found.side_logits, mask, weight),
            # every other frame is enough to learn from, at half the cost
            "class": self.classes(
                model.class_logits(found.embedding[..., ::2].float()),
                batch["class_mask"][..., ::2],
                F.avg_pool2d(weight, 2)[..., ::2],
            ),
        }
        if found.presence_logits is not None:
            losses["presence"] = presence_loss(found.presence_logits.float(), batch["class_mask"])
        shares = {"side": SIDE_SHARE, "class": CLASS_SHARE, "presence": PRESENCE_SHARE}
        losses["total"] = sum(
            (shares.get(name, 1.0) * loss for name, loss in losses.items()), logits.new_zeros(())
        )
        return losses

    def _sides(self, sides: tuple[Tensor, ...], mask: Tensor, weight: Tensor) -> Tensor:
        total = mask.new_zeros(())
        for side in sides:
            cell = mask.shape[-2] // side.shape[-2]
            coarse_mask, coarse_weight = F.avg_pool2d(mask, cell), F.avg_pool2d(weight, cell)
            total = total + self.bce(side.float(), coarse_mask, coarse_weight)
        return total / max(1, len(sides))
