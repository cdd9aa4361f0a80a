"""Measures of tags and events, as plain functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.domain import Event
from common.soundscapes import Soundscape

Array = np.ndarray[Any, Any]

ECE_BINS = 15
COLLAR_S = 0.2
OFFSET_SHARE = 0.5


@dataclass(frozen=True)
class ClassScore:
    """One class. ``n`` clips are of it; the rest are shares in [0, 1], higher is better."""

    label: str
    n: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ClipScores:
    """Shares in [0, 1]. Higher is better but for ``ece``, the calibration error."""

    n: int
    accuracy: float
    top3: float
    macro_f1: float
    ece: float
    classes: tuple[ClassScore, ...]


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


def calibration_error(confidence: Array, correct: Array, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error: mean gap between confidence and accuracy.

    Source: Guo et al. 2017, equation 3, with bins of equal width.

    Args:
        confidence: (N,) of the best class, in [0, 1].
        correct: (N,) of bool.
        bins: how many.
    """
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(float(confidence[which == b].sum()) - float(correct[which == b].sum()))
        for b in range(bins)
    ]
    return sum(gaps) / len(confidence)


def score_clips(confidence: Array, truth: Array, labels: Sequence[str]) -> ClipScores:
    """Return all measures of clips with one label each.

    Args:
        confidence: (N, K) in [0, 1].
        truth: (N,) class numbers; the macro-F1 is over those that occur here.
        labels: the K classes.
    """
    order = np.argsort(-confidence, axis=1, kind="stable")
    best = order[:, 0]
    classes = []
    for k in sorted(set(truth.tolist())):
        hits = int(((best == k) & (truth == k)).sum())
        n, found = int((truth == k).sum()), int((best == k).sum())
        recall, precision = hits / n, hits / found if found else 0.0
        classes.append(ClassScore(labels[k], n, precision, recall, 2 * hits / (n + found)))
    return ClipScores(
        n=len(truth),
        accuracy=float((best == truth).mean()),
        top3=float((order[:, :3] == truth[:, None]).any(axis=1).mean()),
        macro_f1=float(np.mean([score.f1 for score in classes])),
        ece=calibration_error(confidence.max(axis=1), best == truth),
        classes=tuple(classes),
    )


def truth_of(scene: Soundscape) -> list[Event]:
    """Return the true events of a soundscape; a labelled background lasts throughout."""
    events = [Event(e.label, e.onset_s, e.offset_s, 1.0) for e in scene.events]
    if scene.background_label is not None:
        duration_s = len(scene.mixture) / scene.sample_rate
        events.append(Event(scene.background_label, 0.0, duration_s, 1.0))
    return events


def match_events(found: Sequence[Event], truth: Sequence[Event]) -> Counts:
    """Return the counts of events matched one to one, in order of onset.

    Source: Mesaros et al. 2016, "Metrics for polyphonic sound event detection": the same label,
    onsets within 200 ms, offsets within 200 ms or half the true length, whichever is longer.
    """
    left = sorted(found, key=lambda event: event.onset_s)
    hits = 0
    for event in sorted(truth, key=lambda event: event.onset_s):
        slack_s = max(COLLAR_S, OFFSET_SHARE * (event.offset_s - event.onset_s))
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
