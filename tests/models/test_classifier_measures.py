"""The measures of the classifier's evaluation, against values worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.domain import Event
from common.soundscapes import PlacedEvent, Soundscape
from services.classifier.calibration import Scale
from services.classifier.evaluation.pictures import (
    evaluation_picture,
    grid_picture,
    tags_picture,
)
from services.classifier.evaluation.predictions import Predictions, PredictionsInvalid, pooled
from services.classifier.evaluation.results import Summary, judged, scales, spread
from services.classifier.evaluation.scoring import (
    Counts,
    TagCounts,
    calibration_of,
    closed_choice,
    confusion_of,
    match_events,
    match_seconds,
    score_clips,
    score_tags,
    truth_of,
)

LABELS = ("a", "b", "c", "d")


def test_scores_of_clips_by_hand() -> None:
    confidence = np.array([[0.9, 0.1, 0.0, 0.0], [0.6, 0.3, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]])
    scores = score_clips(confidence, np.array([0, 1, 0]), LABELS)
    assert scores.accuracy == scores.open_accuracy == pytest.approx(1 / 3)
    assert scores.top3 == pytest.approx(2 / 3)
    assert scores.confusion.labels == LABELS
    assert scores.confusion.counts == ((1, 0, 0, 1), (1, 0, 0, 0), (0,) * 4, (0,) * 4)
    # a: 1 hit of 2 found and of 2 there; b: none; c and d do not occur
    assert [(c.label, c.n, c.precision, c.recall, c.f1) for c in scores.classes] == [
        ("a", 2, 0.5, 0.5, 0.5),
        ("b", 1, 0.0, 0.0, 0.0),
    ]
    assert scores.macro_precision == scores.macro_recall == scores.macro_f1 == 0.25
    # a by confidence: right, wrong, right: (1/1 + 2/3) / 2; b: right at once
    assert scores.classes[0].average_precision == pytest.approx(5 / 6)
    assert scores.mean_ap == pytest.approx((5 / 6 + 1) / 2)
    # a: of its two clips one stands above the other clip, one below; b: above both
    assert scores.auc == pytest.approx((0.5 + 1.0) / 2)
    # every confidence in its own bin: |0.9 - 1| + |0.6 - 0| + |0.4 - 0|
    assert scores.ece == scores.open_ece == pytest.approx((0.1 + 0.6 + 0.4) / 3)


def test_closed_accuracy_chooses_among_the_data_set_s_own_classes() -> None:
    confidence = np.array([[0.2, 0.1, 0.0, 0.9], [0.1, 0.4, 0.3, 0.0], [0.1, 0.6, 0.0, 0.7]])
    truth = np.array([0, 1, 0])
    scores = score_clips(confidence, truth, LABELS, among=[1, 0])
    assert closed_choice(confidence, [1, 0]).tolist() == [0, 1, 1]
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.open_accuracy == pytest.approx(1 / 3)
    assert scores.ece == pytest.approx((0.8 + 0.6 + 0.6) / 3)  # 0.2 right, 0.4 right, 0.6 wrong
    assert scores.open_ece == pytest.approx((0.9 + 0.6 + 0.7) / 3)
    assert scores.top3 == 1.0


def test_a_set_of_one_class_has_no_ranking() -> None:
    scores = score_clips(np.array([[0.9, 0.2], [0.1, 0.3]]), np.array([0, 0]), ("a", "b"))
    assert scores.accuracy == 0.5
    assert scores.mean_ap is None
    assert scores.auc is None
    assert scores.classes[0].average_precision is None


def test_calibration_by_hand() -> None:
    # bins of a half: two clips in the first (mean 0.3, one right), two in the second (0.85, both)
    found = calibration_of(
        np.array([0.2, 0.4, 0.7, 1.0]), np.array([False, True, True, True]), bins=2
    )
    assert found.counts == (2, 2)
    assert found.confidence == pytest.approx((0.3, 0.85))
    assert found.accuracy == (0.5, 1.0)
    assert found.error == pytest.approx((2 * 0.2 + 2 * 0.15) / 4)
    sure = calibration_of(np.ones(3), np.ones(3, np.bool_))
    assert sure.error == 0.0
    assert sure.counts == (*[0] * 14, 3)


def test_scores_of_tags_by_hand() -> None:
    confidence = np.array([[0.9, 0.8, 0.1], [0.6, 0.2, 0.7]])
    present = np.array([[True, False, True], [True, False, False]])
    scores = score_tags(confidence, present, ("a", "b", "c"), threshold=0.5)
    # label-weighted: first clip, a is right at rank 1, c at rank 3 with two right: 1, 2/3;
    # second clip, a at rank 2: 1/2; three labels in all
    assert scores.lwlrap == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)
    # found: a, b | a, c; a: both right; c: missed once, found wrongly once
    assert scores.micro_f1 == pytest.approx(2 * 2 / (2 * 2 + 2 + 1))
    assert scores.macro_f1 == pytest.approx((1.0 + 0.0) / 2)
    assert (scores.macro_precision, scores.macro_recall) == (0.5, 0.5)
    assert scores.accuracy == 0.0
    assert scores.top3 == 1.0
    assert scores.counts == (
        TagCounts("a", hits=2, misses=0, false_alarms=0, rejections=0),
        TagCounts("b", hits=0, misses=0, false_alarms=1, rejections=1),
        TagCounts("c", hits=0, misses=1, false_alarms=1, rejections=0),
    )
    # a is there always and has no ranking; c stands below the clip without it
    assert scores.mean_ap == pytest.approx(0.5)
    assert scores.auc == 0.0
    gaps = [0.1, 0.8, 0.9, 0.4, 0.2, 0.7]  # every pair in a bin of its own but 0.1 and 0.2
    assert scores.calibration.error == pytest.approx(sum(gaps) / 6)


def test_exact_sets_and_the_best_three_of_tags_by_hand() -> None:
    confidence = np.array([[0.9, 0.8, 0.7, 0.6], [0.9, 0.1, 0.2, 0.3], [0.9, 0.8, 0.1, 0.7]])
    present = np.array([[0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]], np.bool_)
    scores = score_tags(confidence, present, LABELS, threshold=0.5)
    assert scores.accuracy == pytest.approx(1 / 3)  # the second has its one label and no other
    assert scores.top3 == 0.5  # the first has its label in the fourth place; the third has none


def test_event_counts_by_hand() -> None:
    truth = [Event("dog", 1.0, 2.0, 1.0), Event("siren", 0.0, 4.0, 1.0)]
    found = [
        Event("dog", 1.15, 2.4, 0.9),  # within the collar, offset within half the length
        Event("siren", 0.3, 4.0, 0.9),  # begins too late
        Event("rain", 0.0, 1.0, 0.9),
    ]
    counts = match_events(found, truth)
    assert (counts.hits, counts.false_alarms, counts.misses) == (1, 2, 1)
    assert counts.f1 == pytest.approx(0.4)
    seconds = match_seconds(found, truth, 4.0)
    # dog: 1 right (2 is wrong); siren: 4 right; rain: 1 wrong
    assert (seconds.hits, seconds.false_alarms, seconds.misses) == (5, 2, 0)
    assert Counts().f1 == 0.0


def test_event_counts_with_offsets_as_strict_as_onsets_by_hand() -> None:
    one = [Event("dog", 1.0, 2.0, 0.9), Event("dog", 5.0, 6.0, 0.9), Event("rain", 0.0, 9.0, 0.9)]
    assert match_events(one, one, offset_share=0.0) == Counts(3, 0, 0)
    assert match_events([], one, offset_share=0.0) == Counts(0, 0, 3)
    moved = [Event("dog", 1.15, 1.85, 0.5), Event("dog", 5.0, 6.3, 0.9), Event("siren", 0, 9, 0.9)]
    # the second ends too late, the third is another label
    assert match_events(moved, one, offset_share=0.0) == Counts(1, 2, 2)
    assert match_events([moved[0], moved[0]], one[:1], offset_share=0.0) == Counts(1, 1, 0)


def test_the_truth_holds_every_label_of_a_sound() -> None:
    strum = PlacedEvent(("guitar", "music"), 0.5, 1.0, 0.0, np.ones(5, np.float32), 5, 20)
    silence = np.zeros(20, np.float32)
    truth = truth_of(Soundscape(10, strum.stem, silence, ("rain", "water"), (strum,)))
    assert truth == [
        Event("guitar", 0.5, 1.0, 1.0),
        Event("music", 0.5, 1.0, 1.0),
        Event("rain", 0.0, 2.0, 1.0),
        Event("water", 0.0, 2.0, 1.0),
    ]
    assert match_events(truth, truth) == Counts(4, 0, 0)
    # two seconds of rain and of water, one of the others
    assert match_seconds(truth, truth, 2.0) == Counts(6, 0, 0)
    assert truth_of(Soundscape(10, silence, silence, (), ())) == []


# Predictions and what is made of them


def drawn(fold: int, n: int, sharpness: float, seed: int = 0) -> Predictions:
    """Softmax logits that are ``sharpness`` times those their labels were drawn from."""
    rng = np.random.default_rng([seed, fold])
    honest = rng.normal(0.0, 1.5, (n, len(LABELS)))
    shares = np.exp(honest) / np.exp(honest).sum(1, keepdims=True)
    truth = np.array([rng.choice(len(LABELS), p=row) for row in shares])
    return Predictions(
        logits=(sharpness * honest).astype(np.float32),
        present=truth[:, None] == np.arange(len(LABELS)),
        labels=LABELS,
        multi_label=False,
        clips=tuple(f"set/{fold}/{n}" for n in range(n)),
        folds=np.full(n, fold),
    )


def test_predictions_survive_their_file(tmp_path: Path) -> None:
    made = drawn(1, 5, 1.0)
    made.save(tmp_path / "deep" / "p.npz")
    read = Predictions.load(tmp_path / "deep" / "p.npz")
    for name in ("logits", "present", "folds"):
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name))
    assert (read.labels, read.clips, read.multi_label) == (made.labels, made.clips, False)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["p.npz"]
    (tmp_path / "p.npz").write_bytes(b"nothing")
    with pytest.raises(PredictionsInvalid, match=r"p\.npz holds no predictions"):
        Predictions.load(tmp_path / "p.npz")
    replace(made, labels=("a", "b")).save(tmp_path / "p.npz")
    with pytest.raises(PredictionsInvalid, match="its parts do not fit each other"):
        Predictions.load(tmp_path / "p.npz")
    np.save(tmp_path / "alone.npy", np.zeros(3))
    with pytest.raises(PredictionsInvalid, match="holds no predictions"):
        Predictions.load(tmp_path / "alone.npy")


def test_confidence_by_hand() -> None:
    logits = np.array([[2.0, 0.0]], np.float32)
    present = np.array([[True, False]])
    several = Predictions(logits, present, ("a", "b"), True, ("x",), np.array([1]))
    assert several.confidence(Scale(2.0))[0] == pytest.approx([1 / (1 + math.exp(-1)), 0.5])
    shifted = several.confidence(Scale(2.0, shift=-2.0))[0]
    assert shifted == pytest.approx([0.5, 1 / (1 + math.exp(1))])
    one = Predictions(logits, present, ("a", "b"), False, ("x",), np.array([1]))
    assert one.confidence(Scale())[0].sum() == pytest.approx(1.0)
    with pytest.raises(PredictionsInvalid, match="different labels"):
        pooled([several, one])


def test_the_calibration_of_a_fold_never_sees_that_fold() -> None:
    by_fold = {1: drawn(1, 1500, 3.0), 2: drawn(2, 1500, 2.0)}
    fitted = scales(by_fold)
    assert fitted[1].temperature == pytest.approx(2.0, rel=0.15)  # from fold 2
    assert fitted[2].temperature == pytest.approx(3.0, rel=0.15)
    first = by_fold[1]
    wrong = Predictions(
        first.logits,
        np.roll(first.present, 1, axis=1),
        first.labels,
        first.multi_label,
        first.clips,
        first.folds,
    )
    changed = scales({1: wrong, 2: by_fold[2]})
    assert changed[1] == fitted[1]
    assert changed[2].temperature > 2 * fitted[2].temperature
    assert scales({1: first}) == {1: Scale()}


def test_a_result_by_hand() -> None:
    def said(fold: int, rights: int) -> Predictions:
        truth = np.array([0, 1, 0, 1])
        chosen = np.where(np.arange(4) < rights, truth, 1 - truth)
        logits = np.eye(2, dtype=np.float32)[chosen]
        present = truth[:, None] == np.arange(2)
        clips = tuple(f"{fold}/{n}" for n in range(4))
        return Predictions(logits, present, ("a", "b"), False, clips, np.full(4, fold))

    rights = {(0, 1): 4, (0, 2): 2, (1, 1): 3, (1, 2): 1, (2, 1): 3, (2, 2): 3}
    made = {key: said(key[1], n) for key, n in rights.items()}
    result = judged("by hand", "a method", made, [0, 1])
    accuracy = result.summary.measures["accuracy"]
    assert accuracy.by_seed == (0.75, 0.5, 0.75)
    assert accuracy.by_fold == pytest.approx((10 / 12, 6 / 12))
    assert accuracy.median == 0.75
    assert accuracy.std == pytest.approx(0.25 / math.sqrt(3))
    assert result.summary.n == 8
    assert [scores.accuracy for scores in result.by_seed] == [0.75, 0.5, 0.75]
    assert [(t.seed, t.fold) for t in result.trials] == sorted(rights)
    assert spread(np.array([[0.5, 0.7]])).std == 0.0
    raw = {"method": "m", "protocol": "p", "folds": [1], "seeds": [0], "n": 3}
    kept = {"by_fold": [0.5], "by_seed": [0.5], "median": 0.5, "std": 0.0}
    assert Summary.from_dict(raw | {"measures": {"accuracy": kept}}).measures[
        "accuracy"
    ].by_fold == (0.5,)


# Pictures


def size_of(path: Path) -> tuple[int, int]:
    """Return width and height of a PNG, as its header says."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert head[12:16] == b"IHDR"
    return int.from_bytes(head[16:20]), int.from_bytes(head[20:24])


def test_confusion_by_hand() -> None:
    truth, choice = np.array([2, 2, 3, 3, 3]), np.array([2, 3, 3, 3, 2])
    found = confusion_of(truth, choice, LABELS, [2, 3])
    assert found.labels == ("c", "d")
    assert found.counts == ((1, 1), (1, 2))


@pytest.mark.parametrize("n_classes", [1, 10, 50])
def test_pictures_of_any_number_of_classes(n_classes: int, tmp_path: Path) -> None:
    labels = [f"class_{k}" for k in range(n_classes)]
    truth = np.arange(4 * n_classes) % n_classes
    calibration = calibration_of(np.linspace(0, 1, len(truth)), truth >= 0)
    evaluation_picture(
        tmp_path / "p.png",
        "a title",
        confusion_of(truth, truth, labels, range(n_classes)),
        calibration,
        {label: [0.4, 0.6] for label in labels},
        "F1",
    )
    width, height = size_of(tmp_path / "p.png")
    assert 900 < width < 2500
    assert 500 < height < 2500
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


def test_pictures_of_tags_and_of_grids(tmp_path: Path) -> None:
    calibration = calibration_of(np.ones(2), np.ones(2))
    counts = [TagCounts("a", 3, 0, 1, 12), TagCounts("b", 0, 0, 0, 16)]
    tags_picture(tmp_path / "t.png", "tags", counts, calibration, {"a": [1.0]}, "F1")
    values = np.array([[0.1, np.nan], [0.3, 0.4]])
    grid_picture(
        tmp_path / "g.png", "grid", {f"panel {n}": values for n in range(5)}, ["x", "y"], ["1", "2"]
    )
    assert min(size_of(tmp_path / "t.png")) > 400
    assert min(size_of(tmp_path / "g.png")) > 200
