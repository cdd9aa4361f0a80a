"""From scores per segment to events: smoothing, hysteresis, and edges taken from mask regions.

Works on the whole recording at once, so that an event may cross any window border. NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from common.domain import Event
from common.labels import BACKGROUND_LABELS
from services.classifier.config import LOW_SHARE, MERGE_GAP_S, SNAP_S, median_segments

Array = np.ndarray[Any, np.dtype[np.floating[Any]]]
Span = tuple[float, float]

CONFIDENCE_QUANTILE = 0.75
KEPT_SHARE = 0.5
"""No edge moves so far in that less than this share of a span is left."""


@dataclass(frozen=True)
class Stretch:
    """Where a label sounds: its span in seconds, and the scores [first, last) that tell so."""

    span: Span
    first: int
    last: int


def spans_above(scores: Array, high: float, low: float) -> list[tuple[int, int]]:
    """Return [start, stop) runs of ``scores`` (T,) at or above ``low`` that reach ``high``."""
    above = np.concatenate([[False], scores >= low, [False]])
    edges = np.flatnonzero(above[1:] != above[:-1])
    runs = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    return [(start, stop) for start, stop in runs if scores[start:stop].max() >= high]


def union_of(spans: Sequence[Span], gap: float = 0.0) -> list[Span]:
    """Return spans in order, those that overlap or lie at most ``gap`` apart made one."""
    merged: list[Span] = []
    for start, stop in sorted(spans):
        if merged and start <= merged[-1][1] + gap:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged


def snapped(span: Span, regions: Sequence[Span]) -> Span:
    """Return a span whose edges are those of regions it overlaps, where they lie near enough.

    Where both edges would cut off too much only the onset moves, or else only the offset.
    """
    onset_s, offset_s = span
    touched = [region for region in regions if region[0] < offset_s and region[1] > onset_s]
    onsets = [region[0] for region in touched if abs(region[0] - onset_s) <= SNAP_S]
    offsets = [region[1] for region in touched if abs(region[1] - offset_s) <= SNAP_S]
    start_s = min(onsets, key=lambda edge: abs(edge - onset_s), default=onset_s)
    stop_s = min(offsets, key=lambda edge: abs(edge - offset_s), default=offset_s)
    for first_s, last_s in ((start_s, stop_s), (start_s, offset_s), (onset_s, stop_s)):
        kept_s = min(last_s, offset_s) - max(first_s, onset_s)
        if kept_s >= KEPT_SHARE * (offset_s - onset_s):
            return first_s, last_s
    return span


def reunited(found: Sequence[Stretch]) -> list[Stretch]:
    """Return stretches in order, those whose spans meet made one.

    Two that moved to the edges of one region may overlap, though there was a gap between them.
    """
    united: list[Stretch] = []
    for stretch in sorted(found, key=lambda stretch: stretch.span):
        if united and stretch.span[0] <= united[-1].span[1]:
            before = united.pop()
            span = (before.span[0], max(before.span[1], stretch.span[1]))
            first, last = min(before.first, stretch.first), max(before.last, stretch.last)
            stretch = Stretch(span, first, last)
        united.append(stretch)
    return united


def smoothed(scores: Array, size: int) -> Array:
    """Return the running median of ``scores`` (T,) over ``size`` values, an odd number.

    Beyond the ends their values go on; fewer scores than ``size`` are smoothed over fewer.
    """
    half = min(size // 2, (len(scores) - 1) // 2)
    windows = sliding_window_view(np.pad(scores, half, mode="edge"), 2 * half + 1)
    median: Array = np.partition(windows, half, axis=1)[:, half]
    return median


def stretches(scores: Array, threshold: float, gap: float) -> list[tuple[int, int]]:
    """Return [start, stop) where a label sounds: hysteresis, short gaps closed.

    A stretch reaches the threshold and lasts while above ``LOW_SHARE`` of it. Where less than a
    quarter of it reaches the threshold, only the parts of it that do are returned.

    Args:
        scores: (T,) in [0, 1], smoothed.
        threshold: above 0.
        gap: stretches at most so many scores apart are one.
    """
    found: list[tuple[int, int]] = []
    for start, stop in _united(spans_above(scores, threshold, LOW_SHARE * threshold), gap):
        if _confidence(scores[start:stop]) >= threshold:
            found.append((start, stop))
        else:
            parts = spans_above(scores[start:stop], threshold, threshold)
            found += [(start + first, start + last) for first, last in _united(parts, gap)]
    return found


def find_events(
    probabilities: Array,
    label: str,
    regions: Sequence[Span],
    threshold: float,
    segment_s: float,
    duration_s: float,
) -> list[Event]:
    """Return the events of one label, in order.

    An event's confidence is the upper quartile of its smoothed probabilities: their mean is too
    humble, as an event fades in and out, and their maximum too bold. It is no less than the
    threshold.

    Args:
        probabilities: (T,) in [0, 1], calibrated, one per segment.
        label: the class; decides how much is smoothed and whether regions are looked at.
        regions: (onset, offset) of the foreground in seconds, in order, apart from each other.
        threshold: in [0, 1], see ``stretches``.
        segment_s: length of a segment.
        duration_s: no event ends later.
    """
    # a threshold of 0 asks for everything, silence still holds nothing
    threshold = max(threshold, 1e-6)
    if probabilities.max() < threshold:
        return []
    smooth = smoothed(probabilities, median_segments(label, segment_s))
    starts_s = np.array([region[0] for region in regions])
    stops_s = np.array([region[1] for region in regions])
    found = []
    for first, last in stretches(smooth, threshold, MERGE_GAP_S / segment_s):
        span = (first * segment_s, last * segment_s)
        if label not in BACKGROUND_LABELS:
            near = slice(
                int(np.searchsorted(stops_s, span[0])), int(np.searchsorted(starts_s, span[1]))
            )
            span = snapped(span, regions[near])
        found.append(Stretch(span, first, last))
    events = []
    for stretch in reunited(found):
        confidence = max(threshold, _confidence(smooth[stretch.first : stretch.last]))
        onset_s, offset_s = round(stretch.span[0], 3), round(min(stretch.span[1], duration_s), 3)
        if offset_s > onset_s:
            events.append(Event(label, onset_s, offset_s, round(confidence, 4)))
    return events


def _united(spans: Sequence[tuple[int, int]], gap: float) -> list[tuple[int, int]]:
    return [(int(start), int(stop)) for start, stop in union_of(spans, gap)]


def _confidence(scores: Array) -> float:
    return float(np.quantile(scores, CONFIDENCE_QUANTILE))
