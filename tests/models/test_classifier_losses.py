"""The classifier's losses by hand, and which a recipe asks for."""

from __future__ import annotations

import math

import pytest
import torch

from services.classifier.config import Config
from services.classifier.data import Batch
from services.classifier.losses import FocalLoss, PresenceLoss, ShareLoss
from services.classifier.model import build
from services.classifier.recipe import Recipe
from services.classifier.train import ClassifierLosses
from tests.models.networks import SMALL_HYBRID


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_share_loss_by_hand() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [5.0, 1.0]])  # softmax of the first: 3/4, 1/4
    share = torch.tensor([[0.5, 0.5], [0.0, 0.0]])
    wanted = -0.5 * math.log(0.75) - 0.5 * math.log(0.25)
    assert float(ShareLoss()(logits, share)) == pytest.approx(wanted)
    assert float(ShareLoss()(logits, torch.zeros(2, 2))) == 0.0


def test_presence_loss_by_hand() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0]])  # sigmoids 3/4 and 1/2
    present = torch.tensor([[1.0, 0.0]])
    wanted = -math.log(0.75) - math.log(0.5)
    assert float(PresenceLoss()(logits, present)) == pytest.approx(wanted)
    weight = torch.tensor([[1.0, 0.0]])
    assert float(PresenceLoss()(logits, present, weight)) == pytest.approx(-math.log(0.75))


def test_focal_loss_by_hand() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0, -math.log(3.0)]])  # sigmoids 3/4, 1/2 and 1/4
    present = torch.tensor([[1.0, 0.0, 1.0]])  # what is true has 3/4, 1/2 and 1/4
    terms = [-((1 - p) ** 2) * math.log(p) for p in (0.75, 0.5, 0.25)]
    assert float(FocalLoss()(logits, present)) == pytest.approx(sum(terms))
    weight = torch.tensor([[1.0, 0.0, 0.5]])
    wanted = terms[0] + 0.5 * terms[2]
    assert float(FocalLoss()(logits, present, weight)) == pytest.approx(wanted)


def test_focal_loss_without_focus_is_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(3, 4, 7, generator=generator)
    present = torch.rand(3, 4, 7, generator=generator)
    torch.testing.assert_close(
        FocalLoss(gamma=0.0)(logits, present), PresenceLoss()(logits, present)
    )


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_has_finite_gradients(gamma: float) -> None:
    logits = torch.tensor([[-200.0, 200.0, -200.0, 200.0]], requires_grad=True)
    loss = FocalLoss(gamma)(logits, torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(400.0)  # two of them wrong by 200 nats
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([-1.0, 1.0, 0.0, 0.0])


def one_batch() -> Batch:
    torch.manual_seed(0)
    present = torch.zeros(2, 20)
    present[0, 3] = present[0, 5] = present[1, 7] = 1.0
    return Batch(
        logmel=torch.randn(2, 64, 32),
        mask=torch.ones(2, 4, 4),
        share=present / present.sum(1, keepdim=True),
        present=present,
        segment_present=present[..., None] * torch.tensor([1.0, 0.0, 0.0, 1.0]),
        segment_weight=torch.ones(2, 20, 4),
    )


@torch.no_grad()
def test_the_recipe_decides_the_losses() -> None:
    batch, model = one_batch(), build(Config(network=SMALL_HYBRID)).eval()
    scores = model(batch.logmel, batch.mask)
    clip, segments = scores.clip, scores.segments
    everywhere = batch.present[..., None].expand_as(segments)

    def parts(multi_label: bool = True, **settings: object) -> dict[str, float]:
        recipe = Recipe(steps=1, **settings)
        losses = ClassifierLosses(recipe, multi_label)(model, batch)
        return {name: float(value) for name, value in losses.items()}

    mine = parts(segment_weight=0.5)
    assert mine["share"] == pytest.approx(float(ShareLoss()(clip, batch.share)))
    assert mine["presence"] == pytest.approx(float(PresenceLoss()(clip, batch.present)))
    active = float(PresenceLoss()(segments, batch.segment_present, batch.segment_weight))
    assert mine["segments"] == pytest.approx(0.5 * active)
    both = sum(float(ShareLoss()(branch, batch.share)) for branch in scores.branches)
    assert mine["branches"] == pytest.approx(0.3 * both)
    assert mine["total"] == pytest.approx(sum(v for k, v in mine.items() if k != "total"))

    focal = parts(loss="focal", focal_gamma=3.0)
    assert focal["presence"] == pytest.approx(float(FocalLoss(3.0)(clip, batch.present)))

    strong = parts(segment_targets="clip", segment_weight=1.0)
    assert strong["segments"] == pytest.approx(float(PresenceLoss()(segments, everywhere)))

    single = parts(multi_label=False, segment_targets="clip", segment_weight=1.0)
    assert "presence" not in single
    # the mean over segments of the cross-entropy with the clip's shares
    by_hand = torch.stack([ShareLoss()(segments[..., t], batch.share) for t in range(4)]).mean()
    assert single["segments"] == pytest.approx(float(by_hand))
