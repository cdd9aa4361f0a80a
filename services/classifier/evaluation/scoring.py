"""Measures of tags and events, as plain functions. scikit-learn's where it has the measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    label_ranking_average_precision_score,
    precision_recall_fscore_support,
    roc_auc_score,
)

from common.domain import Event
from common.soundscapes import Soundscape

Array = np.ndarray[Any, Any]

ECE_BINS = 15
COLLAR_S = 0.2
OFFSET_SHARE = 0.5


@dataclass(frozen=True)
class ClassScore:
    """One class. ``n`` clips are of it; the rest are shares in [0, 1], higher is better.

    ``average_precision`` is None where every clip is of the class, or none.
    """

    label: str
    n: int
    precision: float
    recall: float
    f1: float
    average_precision: float | None


@dataclass(frozen=True)
class Calibration:
    """How far confidence is to be believed: a reliability diagram and its mean gap.

    ``error`` is the expected calibration error, in [0, 1], lower is better. Of each bin, from 0
    to 1 in equal steps: how many, their mean confidence and how many were right, as a share (0
    where the bin is empty).
    """

    error: float
    counts: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]


@dataclass(frozen=True)
class Confusion:
    """Which class was taken for which: ``counts[true][chosen]`` clips, both in ``labels``."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TagCounts:
    """How often one of several labels was found where it is and where it is not, in clips."""

    label: str
    hits: int
    misses: int
    false_alarms: int
    rejections: int  # rightly not found


@dataclass(frozen=True)
class ClipScores:
    """Clips with one label each. Shares in [0, 1]; higher is better but for the calibration.

    Closed: the best of the labels that the data set has. Open: the best of all that the model
    knows. The macro measures, all closed, are means over the labels that occur; ``mean_ap`` and
    ``auc`` (one against the rest) are None where no label has clips both of it and not of it.
    ``confusion`` is of the closed choice, over all labels that the data set has.
    """

    n: int
    accuracy: float
    open_accuracy: float
    top3: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    mean_ap: float | None
    auc: float | None
    calibration: Calibration
    open_calibration: Calibration
    classes: tuple[ClassScore, ...]
    confusion: Confusion

    @property
    def ece(self) -> float:
        """Expected calibration error of the closed choice."""
        return self.calibration.error

    @property
    def open_ece(self) -> float:
        """Expected calibration error of the open choice."""
        return self.open_calibration.error


@dataclass(frozen=True)
class TagScores:
    """Clips with any number of labels. Shares in [0, 1]; higher is better but for calibration.

    A label counts as found where its confidence reaches ``threshold``. ``accuracy``: exactly the
    labels of the clip were found. ``top3``: one of them is among the best three, of clips that have
    any. ``lwlrap`` is the label-weighted label-ranking average precision. The macro measures are
    means over the labels that occur. ``calibration`` is over all pairs of clip and label,
    ``counts`` are of the labels that occur or were found.
    """

    n: int
    threshold: float
    accuracy: float
    top3: float
    macro_precision: float
    macro_recall: float
    mean_ap: float | None
    auc: float | None
    lwlrap: float
    macro_f1: float
    micro_f1: float
    calibration: Calibration
    classes: tuple[ClassScore, ...]
    counts: tuple[TagCounts, ...]


@dataclass(frozen=True)
class Counts:
    """Hits, false alarms, misses."""

    hits: int = 0
    false_alarms: int = 0
    misses: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.hits + other.hits,
            self.false_alarms + other.false_alarms,
            self.misses + other.misses,
        )

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 where there is nothing at all."""
        return 2 * self.hits / max(1, 2 * self.hits + self.false_alarms + self.misses)


def calibration_of(confidence: Array, correct: Array, bins: int = ECE_BINS) -> Calibration:
    """Return the reliability of confidences.

    Source: Guo et al. 2017, equation 3, with bins of equal width.

    Args:
        confidence: (N,) in [0, 1].
        correct: (N,) of bool.
        bins: how many.
    """
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(which, minlength=bins)
    sure = np.bincount(which, weights=confidence, minlength=bins)
    right = np.bincount(which, weights=correct, minlength=bins)
    each = np.maximum(counts, 1)
    return Calibration(
        error=float(np.abs(sure - right).sum() / max(1, len(confidence))),
        counts=tuple(counts.tolist()),
        confidence=tuple((sure / each).tolist()),
        accuracy=tuple((right / each).tolist()),
    )


def closed_choice(confidence: Array, among: Sequence[int]) -> Array:
    """Return (N,) the class number with the highest confidence (N, K) of those in ``among``."""
    allowed = np.sort(np.asarray(among))
    best: Array = allowed[confidence[:, allowed].argmax(axis=1)]
    return best


def confusion_of(
    truth: Array, choice: Array, labels: Sequence[str], among: Sequence[int]
) -> Confusion:
    """Return which class was taken for which.

    Args:
        truth: (N,) class numbers.
        choice: (N,) class numbers.
        labels: the K classes.
        among: the numbers of those that the matrix has, all of ``truth`` and ``choice`` in them.
    """
    place = {k: at for at, k in enumerate(among)}
    counts = np.zeros((len(among), len(among)), np.int64)
    for true, chosen in zip(truth.tolist(), choice.tolist(), strict=True):
        counts[place[true], place[chosen]] += 1
    return Confusion(tuple(labels[k] for k in among), tuple(map(tuple, counts.tolist())))


def score_clips(
    confidence: Array, truth: Array, labels: Sequence[str], among: Sequence[int] | None = None
) -> ClipScores:
    """Return all measures of clips with one label each.

    Args:
        confidence: (N, K) in [0, 1].
        truth: (N,) class numbers.
        labels: the K classes.
        among: the class numbers of the data set, all of ``truth`` in them; None means all K.
    """
    allowed: Array = np.arange(len(labels)) if among is None else np.sort(np.asarray(among))
    best, open_best = closed_choice(confidence, allowed.tolist()), confidence.argmax(axis=1)
    top3 = allowed[np.argsort(-confidence[:, allowed], axis=1, kind="stable")[:, :3]]
    present = truth[:, None] == np.arange(len(labels))
    classes = _class_scores(present, best[:, None] == np.arange(len(labels)), confidence, labels)
    rows = np.arange(len(truth))
    return ClipScores(
        n=len(truth),
        accuracy=float((best == truth).mean()),
        open_accuracy=float((open_best == truth).mean()),
        top3=float((top3 == truth[:, None]).any(axis=1).mean()),
        macro_precision=float(np.mean([score.precision for score in classes])),
        macro_recall=float(np.mean([score.recall for score in classes])),
        macro_f1=float(np.mean([score.f1 for score in classes])),
        mean_ap=_mean_ap(classes),
        auc=_auc(present, confidence),
        calibration=calibration_of(confidence[rows, best], best == truth),
        open_calibration=calibration_of(confidence[rows, open_best], open_best == truth),
        classes=classes,
        confusion=confusion_of(truth, best, labels, allowed.tolist()),
    )


def score_tags(
    confidence: Array, present: Array, labels: Sequence[str], threshold: float
) -> TagScores:
    """Return all measures of clips with any number of labels.

    Args:
        confidence: (N, K) in [0, 1].
        present: (N, K) of bool.
        labels: the K classes; the macro measures are over those that occur.
        threshold: from which confidence on a label counts as found.

    Source of the label-weighted ranking precision: Fonseca et al. 2019, "Audio tagging with noisy
    labels and minimal supervision", section 4.1; it is scikit-learn's with clips weighted by how
    many labels they have.
    """
    found = confidence >= threshold
    classes = _class_scores(present, found, confidence, labels)
    return TagScores(
        n=len(present),
        threshold=threshold,
        accuracy=float((found == present).all(axis=1).mean()),
        top3=_top3(confidence, present),
        macro_precision=float(np.mean([score.precision for score in classes])),
        macro_recall=float(np.mean([score.recall for score in classes])),
        mean_ap=_mean_ap(classes),
        auc=_auc(present, confidence),
        lwlrap=float(
            label_ranking_average_precision_score(
                present, confidence, sample_weight=present.sum(axis=1)
            )
        ),
        macro_f1=float(np.mean([score.f1 for score in classes])),
        micro_f1=float(f1_score(present, found, average="micro", zero_division=0)),
        calibration=calibration_of(confidence.ravel(), present.ravel()),
        classes=classes,
        counts=_tag_counts(present, found, labels),
    )


def _top3(confidence: Array, present: Array) -> float:
    """Return the share of the clips with labels that have one among their best three."""
    labelled = present.any(axis=1)
    best = np.argsort(-confidence[labelled], axis=1, kind="stable")[:, :3]
    hit = np.take_along_axis(present[labelled], best, axis=1).any(axis=1)
    return float(hit.mean()) if len(hit) else 0.0


def _tag_counts(present: Array, found: Array, labels: Sequence[str]) -> tuple[TagCounts, ...]:
    """Return the counts of the labels that occur or were found, from (N, K) of bool, twice."""
    return tuple(
        TagCounts(
            label=labels[k],
            hits=int((present[:, k] & found[:, k]).sum()),
            misses=int((present[:, k] & ~found[:, k]).sum()),
            false_alarms=int((~present[:, k] & found[:, k]).sum()),
            rejections=int((~present[:, k] & ~found[:, k]).sum()),
        )
        for k in np.flatnonzero((present | found).any(axis=0)).tolist()
    )


def _class_scores(
    present: Array, found: Array, confidence: Array, labels: Sequence[str]
) -> tuple[ClassScore, ...]:
    """Return the scores of the labels that occur, from (N, K) of bool, bool and [0, 1]."""
    precision, recall, f1, n = precision_recall_fscore_support(
        present, found, average=None, zero_division=0
    )
    return tuple(
        ClassScore(
            label=labels[k],
            n=int(n[k]),
            precision=float(precision[k]),
            recall=float(recall[k]),
            f1=float(f1[k]),
            average_precision=float(average_precision_score(present[:, k], confidence[:, k]))
            if n[k] < len(present)
            else None,
        )
        for k in np.flatnonzero(n).tolist()
    )


def _mean_ap(classes: Sequence[ClassScore]) -> float | None:
    known = [c.average_precision for c in classes if c.average_precision is not None]
    return float(np.mean(known)) if known else None


def _auc(present: Array, confidence: Array) -> float | None:
    both = present.any(axis=0) & ~present.all(axis=0)
    if not both.any():
        return None
    return float(
        np.mean([roc_auc_score(present[:, k], confidence[:, k]) for k in np.flatnonzero(both)])
    )


def truth_of(scene: Soundscape) -> list[Event]:
    """Return the true events of a soundscape, one for each label of each of its sounds.

    A labelled background lasts throughout.
    """
    events = [
        Event(label, sound.onset_s, sound.offset_s, 1.0)
        for sound in scene.events
        for label in sound.labels
    ]
    duration_s = len(scene.mixture) / scene.sample_rate
    return events + [Event(label, 0.0, duration_s, 1.0) for label in scene.background_labels]


def match_events(
    found: Sequence[Event], truth: Sequence[Event], offset_share: float = OFFSET_SHARE
) -> Counts:
    """Return the counts of events matched one to one, in order of onset.

    Source: Mesaros et al. 2016, "Metrics for polyphonic sound event detection": the same label,
    onsets within 200 ms, offsets within 200 ms or half the true length, whichever is longer.

    Args:
        found: events to judge.
        truth: events to judge them by.
        offset_share: the share of the true length; 0 leaves offsets the 200 ms alone.
    """
    left = sorted(found, key=lambda event: event.onset_s)
    hits = 0
    for event in sorted(truth, key=lambda event: event.onset_s):
        slack_s = max(COLLAR_S, offset_share * (event.offset_s - event.onset_s))
        for candidate in left:
            if (
                candidate.label == event.label
                and abs(candidate.onset_s - event.onset_s) <= COLLAR_S
                and abs(candidate.offset_s - event.offset_s) <= slack_s
            ):
                left.remove(candidate)
                hits += 1
                break
    return Counts(hits, len(left), len(truth) - hits)


def match_seconds(found: Sequence[Event], truth: Sequence[Event], duration_s: float) -> Counts:
    """Return the counts of (label, second) pairs in which an event sounds. Source: the same."""
    a, b = _seconds(found, duration_s), _seconds(truth, duration_s)
    return Counts(len(a & b), len(a - b), len(b - a))


def _seconds(events: Sequence[Event], duration_s: float) -> set[tuple[str, int]]:
    last = int(np.ceil(duration_s))
    return {
        (event.label, second)
        for event in events
        for second in range(int(event.onset_s), min(last, int(np.ceil(event.offset_s))))
    }
