"""The classifier: a batch that is overfitted, the shipped weights."""

from __future__ import annotations

import pytest
import torch

from common.labels import LABELS
from services.classifier import infer
from services.classifier.config import Config
from services.classifier.data import Batch
from services.classifier.model import Classifier, build
from services.classifier.recipe import Recipe
from services.classifier.train import ClassifierLosses
from tests.models.networks import SMALL_HYBRID


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    return build(Config(network=SMALL_HYBRID))


def batch_of(n_items: int = 4, segments: int = 4) -> Batch:
    """Noise of a different colour per class."""
    generator = torch.Generator().manual_seed(0)
    K, T = len(LABELS), 8 * segments
    logmel = torch.randn(n_items, 64, T, generator=generator)
    present = torch.zeros(n_items, K)
    for b in range(n_items):
        logmel[b, 10 * b : 10 * b + 10] += 6.0
        present[b, b] = 1.0
    in_time = present[..., None].repeat(1, 1, segments)
    mask = torch.ones(n_items, 4, segments)
    return Batch(logmel, mask, present, present, in_time, torch.ones_like(in_time))


def test_overfits_one_batch_with_finite_gradients(model: Classifier) -> None:
    batch, losses = batch_of(), ClassifierLosses(Recipe(steps=1), multi_label=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for _ in range(30):
        parts = losses(model, batch)
        optimizer.zero_grad()
        parts["total"].backward()
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        assert all(w.grad is not None and w.grad.isfinite().all() for w in trained)
        optimizer.step()
        history.append(float(parts["total"].detach()))
    assert history[-1] < 0.1 * history[0]
    model.eval()
    scores = model(batch.logmel, batch.mask)
    assert scores.clip.argmax(1).tolist() == [0, 1, 2, 3]


def test_shipped_weights_load() -> None:
    loaded = infer.load("cpu")
    assert loaded.config.labels == LABELS
    assert 0.2 < loaded.config.temperature < 5.0
    assert len(loaded.digest) == 64
