"""The batches that the classifier learns from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from common.datasets import Clip, ClipBank
from common.labels import LABELS
from services.classifier.augment import Augmentation, mixed_up
from services.classifier.config import Config
from services.classifier.data import TYPICAL_DB, BatchMaker, MelBank, activity, gain_to
from services.classifier.recipe import Recipe
from services.classifier.train import StepBatches
from tests.models.networks import SMALL_HYBRID

SMALL = Config(network=SMALL_HYBRID)
RATE = SMALL.sample_rate
RECIPE = Recipe(steps=6, batch_segments=64)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_a_click_is_no_louder_than_what_lasts() -> None:
    """Its power is 10 dB over the level that a lasting sound gets, not without end."""
    lasting, click = np.full((128, 64), 1e-3, np.float32), np.zeros((128, 64), np.float32)
    click[60:63] = 1e-3
    level = 10.0 ** (TYPICAL_DB / 10.0)
    assert gain_to(lasting, TYPICAL_DB) * lasting.sum(1).max() == pytest.approx(level, rel=1e-5)
    assert gain_to(click, TYPICAL_DB) * click.sum(1).max() == pytest.approx(10 * level, rel=1e-5)


def test_activity_by_hand() -> None:
    def power(*levels: float) -> np.ndarray:
        return np.repeat(np.array(levels, np.float32), 8)[:, None] * np.ones((1, 64), np.float32)

    layer = power(1.0, 0.5, 0.005, 0.0)  # a dog: on within 16 dB, off from 26 dB, between unknown
    on, known = activity(layer, "dog", layer)
    assert on.tolist() == [1, 1, 0, 0]
    assert known.tolist() == [1, 1, 0, 1]
    on, known = activity(layer, "dog", layer + power(0.0, 100.0, 0.0, 100.0))
    assert on.tolist() == [1, 1, 0, 0]
    assert known.tolist() == [1, 0, 0, 1]  # the second is drowned


def test_mixup_lays_items_over_their_neighbours_and_targets_alike() -> None:
    items = np.arange(6, dtype=np.float32).reshape(6, 1, 1) * np.ones((1, 2, 3), np.float32)
    targets = np.eye(6, dtype=np.float32)
    rng = np.random.default_rng(0)
    mixed, shares = mixed_up((items, targets), Augmentation(mixup_share=1.0), rng)
    assert shares.sum(1) == pytest.approx(np.ones(6))
    kept = shares.diagonal()
    assert ((kept > 0) & (kept < 1)).all()
    for n in range(6):
        neighbour = (n - 1) % 6
        assert shares[n, neighbour] == pytest.approx(1 - kept[n])
        assert mixed[n] == pytest.approx(kept[n] * n + (1 - kept[n]) * neighbour)
    draws = np.concatenate(
        [
            mixed_up((targets,), Augmentation(mixup_share=1.0), rng)[0].diagonal()
            for _ in range(2000)
        ]
    )
    assert draws.var() == pytest.approx(0.25 / 1.8, rel=0.05)  # that of Beta(0.4, 0.4)
    alone, _ = mixed_up((items, targets), Augmentation(mixup_share=0.0), rng)
    np.testing.assert_array_equal(alone, items)


@pytest.fixture
def maker(tmp_path: Path) -> BatchMaker:
    rng = np.random.default_rng(0)
    clips = []
    for n, label in enumerate(("dog", "rain", "speech", "siren", "speech")):
        path = tmp_path / f"{n}.wav"
        seconds = 0.3 if label == "speech" else 1.5
        soundfile.write(path, 0.1 * rng.standard_normal(int(seconds * RATE)), RATE)
        clips.append(Clip(path, label, "esc10", 1, "one", n))
    bank = ClipBank.open(clips, tmp_path / "cache", RATE)
    return BatchMaker(MelBank(bank, clips, SMALL), SMALL, seed=1)


def test_batches_are_well_formed(maker: BatchMaker) -> None:
    known = {LABELS.index(label) for label in ("dog", "rain", "speech", "siren")}
    for segments in (1, 6, 32):
        batch = maker.batch(24, segments)
        assert batch.logmel.shape == (24, 64, 8 * segments)
        assert batch.mask.shape == (24, 4, segments)
        assert batch.segment_present.shape == batch.segment_weight.shape == (24, 20, segments)
        for tensor in vars(batch).values():
            assert tensor.isfinite().all()
        for tensor in (batch.mask, batch.segment_present, batch.segment_weight):
            assert 0.0 <= float(tensor.min()) <= float(tensor.max()) <= 1.0
        assert set(batch.present.nonzero()[:, 1].tolist()) <= known
        sums = batch.share.sum(1)
        assert torch.isclose(sums, (batch.present.sum(1) > 0).float(), atol=1e-4).all()


def test_batches_are_a_function_of_the_step(maker: BatchMaker) -> None:
    batches = StepBatches(maker, replace(RECIPE, final_full_share=0.25), seed=1)
    first, last = batches(3, 0.1), batches(4, 0.8)
    again = batches(3, 0.1)
    assert all(torch.equal(vars(first)[name], vars(again)[name]) for name in vars(first))
    assert last.segment_present.shape == (1, 20, 64)  # windows of use in the last quarter
    other = StepBatches(maker, RECIPE, seed=2)(3, 0.1)
    assert first.logmel.shape != other.logmel.shape or not torch.equal(first.logmel, other.logmel)
