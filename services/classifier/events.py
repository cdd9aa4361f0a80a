"""From scores per segment to events: smoothing, hysteresis, and edges taken from mask regions.

Works on the whole recording at once, so that an event may cross any window border. NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from common.domain import Event
from common.labels import BACKGROUND_LABELS
from services.classifier.config import LOW_SHARE, MERGE_GAP_S, SNAP_S, median_segments

Array = np.ndarray[Any, np.dtype[np.floating[Any]]]
Span = tuple[float, float]


def spans_above(scores: Array, high: float, low: float) -> list[tuple[int, int]]:
    """Return [start, stop) runs of ``scores`` (T,) at or above ``low`` that reach ``high``."""
    above = np.concatenate([[False], scores >= low, [False]])
    edges = np.flatnonzero(above[1:] != above[:-1])
    runs = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    return [(start, stop) for start, stop in runs if scores[start:stop].max() >= high]


def union_of(spans: Sequence[Span], gap_s: float = 0.0) -> list[Span]:
    """Return spans in order, those that overlap or lie at most ``gap_s`` apart made one."""
    merged: list[Span] = []
    for onset_s, offset_s in sorted(spans):
        if merged and onset_s <= merged[-1][1] + gap_s:
            merged[-1] = (merged[-1][0], max(merged[-1][1], offset_s))
        else:
            merged.append((onset_s, offset_s))
    return merged


def snapped(span: Span, regions: Sequence[Span]) -> Span:
    """Return a span whose edges are those of regions it overlaps, where they lie near enough."""
    onset_s, offset_s = span
    touched = [region for region in regions if region[0] < offset_s and region[1] > onset_s]
    onsets = [region[0] for region in touched if abs(region[0] - onset_s) <= SNAP_S]
    offsets = [region[1] for region in touched if abs(region[1] - offset_s) <= SNAP_S]
    start_s = min(onsets, key=lambda edge: abs(edge - onset_s), default=onset_s)
    stop_s = min(offsets, key=lambda edge: abs(edge - offset_s), default=offset_s)
    return (start_s, stop_s) if stop_s > start_s else span


def smoothed(scores: Array, size: int) -> Array:
    """Return the running median of ``scores`` (T,) over ``size`` values, an odd number.

    Beyond the ends their values go on; fewer scores than ``size`` are smoothed over fewer.
    """
    half = min(size // 2, (len(scores) - 1) // 2)
    windows = sliding_window_view(np.pad(scores, half, mode="edge"), 2 * half + 1)
    median: Array = np.partition(windows, half, axis=1)[:, half]
    return median


def find_events(
    probabilities: Array,
    label: str,
    regions: Sequence[Span],
    threshold: float,
    segment_s: float,
    duration_s: float,
) -> list[Event]:
    """Return the events of one label, in order.

    Args:
        probabilities: (T,) in [0, 1], one per segment.
        label: the class; decides how much is smoothed and whether regions are looked at.
        regions: (onset, offset) of the foreground in seconds, in order, apart from each other.
        threshold: an event's smoothed score reaches this; it lasts above ``LOW_SHARE`` of it.
        segment_s: length of a segment.
        duration_s: no event ends later.
    """
    # a threshold of 0 asks for everything, silence still holds nothing
    high = max(threshold, 1e-6)
    if probabilities.max() < high:
        return []
    smooth = smoothed(probabilities, median_segments(label, segment_s))
    spans = union_of(
        [
            (start * segment_s, stop * segment_s)
            for start, stop in spans_above(smooth, high, LOW_SHARE * high)
        ],
        MERGE_GAP_S,
    )
    starts_s = np.array([region[0] for region in regions])
    stops_s = np.array([region[1] for region in regions])
    events = []
    for span in spans:
        first, last = round(span[0] / segment_s), round(span[1] / segment_s)
        confidence = float(smooth[first:last].max())
        if label not in BACKGROUND_LABELS:
            near = slice(
                int(np.searchsorted(stops_s, span[0])), int(np.searchsorted(starts_s, span[1]))
            )
            span = snapped(span, regions[near])
        onset_s, offset_s = round(span[0], 3), round(min(span[1], duration_s), 3)
        if offset_s > onset_s:
            events.append(Event(label, onset_s, offset_s, round(confidence, 4)))
    return events
