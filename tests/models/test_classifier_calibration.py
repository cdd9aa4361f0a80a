"""Calibration: known temperatures, shifts and thresholds are found again in logits made by them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from common.domain import Event
from common.labels import LABELS
from common.soundscapes import PlacedEvent, Soundscape
from services.classifier.calibration import (
    HeardScene,
    activity_of,
    best_threshold,
    fit_clips,
    fit_sigmoids,
    hear_scenes,
    with_segments_fitted,
)
from services.classifier.config import Config, HybridSettings
from services.classifier.model import Classifier, Scores

SMALL = Config(
    network=HybridSettings(channels=(8, 8, 16, 16), patch_width=16, patch_layers=1, fused_width=16)
)
K = len(LABELS)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


# Clips


@pytest.mark.parametrize("temperature", [0.25, 0.8, 1.0, 3.0])
def test_temperature_and_shift_of_sigmoids_are_found_again(temperature: float) -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(-1.0, 2.0, (10_000, 10))
    present = rng.random(honest.shape) < sigmoid(honest)
    found = fit_clips(temperature * honest - 0.7, present, multi_label=True)
    assert found.temperature == pytest.approx(temperature, rel=0.02)
    assert found.shift == pytest.approx(0.7, abs=0.03 * temperature)


@pytest.mark.parametrize("temperature", [0.25, 0.8, 1.0, 3.0])
def test_a_temperature_of_a_softmax_is_found_again(temperature: float) -> None:
    rng = np.random.default_rng(1)
    honest = rng.normal(0.0, 2.0, (30_000, 8))
    # the largest of logits and Gumbel noise is drawn as a softmax says
    drawn = (honest + rng.gumbel(size=honest.shape)).argmax(axis=1)
    found = fit_clips(temperature * honest, np.eye(8)[drawn], multi_label=False)
    assert found.temperature == pytest.approx(temperature, rel=0.02)
    assert found.shift == 0.0


def test_perfect_logits_keep_the_temperature_within_bounds() -> None:
    """Right every time, they could be surer without end."""
    truth = np.eye(4)[np.arange(40) % 4]
    for multi_label in (True, False):
        assert 0.04 < fit_clips(8.0 * truth - 4.0, truth, multi_label).temperature < 0.5


@pytest.mark.parametrize(
    ("logits", "present"),
    [
        (np.zeros((0, 3)), np.zeros((0, 3))),
        (np.zeros((2, 3)), np.zeros((2, 4))),
        (np.array([[np.nan, 0.0]]), np.array([[1.0, 0.0]])),
        (np.array([[np.inf, 0.0]]), np.array([[1.0, 0.0]])),
    ],
    ids=["none", "shapes", "nan", "infinite"],
)
def test_what_cannot_be_calibrated_is_refused(logits: np.ndarray, present: np.ndarray) -> None:
    for multi_label in (True, False):
        with pytest.raises(ValueError, match=r"fit|finite"):
            fit_clips(logits, present, multi_label)
    with pytest.raises(ValueError, match=r"fit|finite"):
        fit_sigmoids(logits, present)


# Segments


@pytest.mark.parametrize(("temperature", "shift"), [(0.5, 1.5), (1.0, 0.0), (2.5, -3.0)])
def test_a_shift_and_a_temperature_are_found_again(temperature: float, shift: float) -> None:
    rng = np.random.default_rng(2)
    honest = rng.normal(-2.0, 2.0, (20, 10_000))
    present = rng.random(honest.shape) < sigmoid(honest)
    found = fit_sigmoids(temperature * honest - shift, present)
    assert found.temperature == pytest.approx(temperature, rel=0.02)
    assert found.shift == pytest.approx(shift, abs=0.02 * temperature)


def test_segments_are_fitted_as_logistic_regression_fits_them() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(-1.0, 3.0, 2_000)
    present = rng.random(2_000) < sigmoid(0.4 * logits - 1.0)
    peer = LogisticRegression(C=np.inf, tol=1e-8).fit(logits[:, None], present)
    found = fit_sigmoids(logits, present)
    assert 1.0 / found.temperature == pytest.approx(peer.coef_[0, 0], rel=1e-3)
    assert found.shift / found.temperature == pytest.approx(peer.intercept_[0], rel=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_segments_all_alike_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="both needed"):
        fit_sigmoids(np.zeros(5), np.full(5, value))


def test_activity_by_hand() -> None:
    events = (Event("dog", 0.13, 0.30, 1.0), Event("rain", 0.0, 0.4, 1.0), Event("owl", 0, 1, 1.0))
    scene = HeardScene(np.zeros((K, 5), np.float32), events, 0.4)
    active = activity_of(scene, LABELS, 0.08)
    # the dog: from the end of the second segment to the end of the fourth
    assert active[LABELS.index("dog")].tolist() == [False, False, True, True, False]
    assert active[LABELS.index("rain")].all()
    assert active.sum() == 7


def test_the_threshold_parts_true_from_false_events() -> None:
    """True dogs at 0.4, false ones at 0.25: only thresholds between find all and nothing else."""
    logits = np.full((K, 100), -9.0, np.float32)
    dog = logits[LABELS.index("dog")]
    dog[10:20], dog[40:50] = np.log(0.4 / 0.6), np.log(0.25 / 0.75)
    scene = HeardScene(logits, (Event("dog", 0.8, 1.6, 1.0),), 8.0)
    assert 0.25 < best_threshold([scene], SMALL) <= 0.4


def test_a_model_is_calibrated_on_soundscapes() -> None:
    """A model that says -1 where a dog is and -5 elsewhere, and is right three times in four."""
    rate = SMALL.sample_rate

    class Timid(Classifier):
        def forward(self, logmel: torch.Tensor, mask: torch.Tensor | None = None) -> Scores:
            logits = torch.full((1, K, 100), -5.0)
            logits[0, LABELS.index("dog"), 25:75] = -1.0
            return Scores(logits[..., 0], logits, (), logits)

    def scene(present: bool) -> Soundscape:
        n = 8 * rate
        silence = np.zeros(n, np.float32)
        bark = PlacedEvent(("dog",), 2.0, 6.0, 10.0, np.ones(4 * rate, np.float32), 2 * rate, n)
        return Soundscape(rate, bark.stem, silence, (), (bark,) if present else ())

    heard = hear_scenes(Timid(SMALL).eval(), [scene(n > 0) for n in range(4)])
    config = with_segments_fitted(SMALL, heard)
    probability = sigmoid(np.array(-1.0 + config.segment_shift) / config.segment_temperature)
    assert probability == pytest.approx(0.75, abs=0.01)
    assert config.event_threshold <= 0.75
    assert config.temperature == SMALL.temperature


def test_a_sound_with_two_labels_calibrates_both() -> None:
    """A model that is right of both labels of each bark is to be believed of both."""
    rate = SMALL.sample_rate
    barks = [LABELS.index(label) for label in ("dog", "speech")]

    class Keen(Classifier):
        def forward(self, logmel: torch.Tensor, mask: torch.Tensor | None = None) -> Scores:
            logits = torch.full((1, K, 100), -5.0)
            logits[0, barks, 25:75] = 1.0
            return Scores(logits[..., 0], logits, (), logits)

    n = 8 * rate
    bark = PlacedEvent(("dog", "speech"), 2.0, 6.0, 0.0, np.ones(4 * rate, np.float32), 2 * rate, n)
    scene = Soundscape(rate, bark.stem, np.zeros(n, np.float32), (), (bark,))
    [heard] = hear_scenes(Keen(SMALL).eval(), [scene])
    active = activity_of(heard, LABELS, SMALL.segment_s)
    assert active.sum(axis=1)[barks].tolist() == [50, 50]
    assert active.sum() == 100
    config = with_segments_fitted(SMALL, [heard])
    # were one of the labels false, it could be no surer than 0.5
    assert sigmoid((1.0 + config.segment_shift) / config.segment_temperature) > 0.99
