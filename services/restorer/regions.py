"""Which stretches of a recording to restore, and the removal mask over them.

Owns the reading of the classifier's events and of the segmenter's masks. Leaves out what is done
to the bins.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.domain import Event
from common.errors import ArtifactInvalid
from common.masks import EmbeddingReader, MaskReader
from services.restorer.config import (
    CONTEXT_S,
    HOPS_PER_FRAME,
    MASK_TOUCH,
    MERGE_GAP_S,
    REGION_MARGIN_S,
)
from services.restorer.spectrum import Grid

WIDEN_POWER = 0.5
"""In a second pass the mask is raised to this power: it touches bins from 0.09 on."""
_BAND_SHARE = 0.02
_MIN_CLASS = 0.02
"""A class this unlikely in a bin owns none of it, even where all others are unlikelier."""


def read_events(path: Path) -> list[Event]:
    """Return the events of an events.json.

    Raises:
        ArtifactInvalid: if it is none.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return [
            Event(
                str(event["label"]),
                float(event["onset_s"]),
                float(event["offset_s"]),
                float(event["confidence"]),
            )
            for event in document["events"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactInvalid(f"{path.name} holds no events: {error}") from error


def wanted_regions(events: Iterable[Event], labels: Iterable[str]) -> list[Event]:
    """Return the events with one of ``labels``, those of one label that nearly touch merged."""
    chosen = frozenset(labels)
    merged: list[Event] = []
    last: dict[str, int] = {}
    for event in sorted(events, key=lambda event: event.onset_s):
        if event.label not in chosen or event.offset_s <= event.onset_s:
            continue
        index = last.get(event.label)
        if index is not None and event.onset_s <= merged[index].offset_s + MERGE_GAP_S:
            before = merged[index]
            merged[index] = Event(
                event.label,
                before.onset_s,
                max(before.offset_s, event.offset_s),
                max(before.confidence, event.confidence),
            )
        else:
            last[event.label] = len(merged)
            merged.append(event)
    return merged


@dataclass(frozen=True)
class Window:
    """Frames [first, stop) restored together. ``adjoins``: the window before it ends at first."""

    first_frame: int
    stop_frame: int
    adjoins: bool


def plan_windows(regions: Iterable[Event], grid: Grid, window_s: float) -> list[Window]:
    """Return windows, in order and apart, that cover the regions with their margins.

    Stretches closer than the context become one, and what is longer than a window is cut.
    """
    gap = max(HOPS_PER_FRAME, round(CONTEXT_S / grid.hop_s))
    longest = max(1, round(window_s / grid.hop_s))
    stretches: list[list[int]] = []
    for region in sorted(regions, key=lambda region: region.onset_s):
        first = max(0, grid.frame_at(region.onset_s - REGION_MARGIN_S))
        stop = grid.frame_at(region.offset_s + REGION_MARGIN_S) + 1
        if stretches and first <= stretches[-1][1] + gap:
            stretches[-1][1] = max(stretches[-1][1], stop)
        else:
            stretches.append([first, stop])
    windows = []
    for first, stop in stretches:
        pieces = max(1, -(-(stop - first) // longest))
        edges = [first + (stop - first) * index // pieces for index in range(pieces + 1)]
        windows += [
            Window(edges[index], edges[index + 1], adjoins=index > 0) for index in range(pieces)
        ]
    return windows


class RemovalMask:
    """The removal mask of confirmed regions: foreground mask times class share, inside each."""

    def __init__(
        self,
        mask: MaskReader,
        embedding: EmbeddingReader,
        regions: list[Event],
        events: list[Event],
        grid: Grid,
    ) -> None:
        """``regions`` are to be removed; ``events`` are all that the classifier heard."""
        self._mask = mask
        self._embedding = embedding
        self.regions = regions
        self._grid = grid
        self._spans = [
            (
                grid.frame_at(region.onset_s - REGION_MARGIN_S),
                grid.frame_at(region.offset_s + REGION_MARGIN_S) + 1,
            )
            for region in regions
        ]
        self._events = events
        self._bands = [np.zeros(grid.n_bins) for _ in regions]

    def within(self, first_frame: int, stop_frame: int) -> list[int]:
        """Return the indices of the regions that reach into frames [first, stop)."""
        return [
            index
            for index, (first, stop) in enumerate(self._spans)
            if first < stop_frame and stop > first_frame
        ]

    def span(self, index: int) -> tuple[int, int]:
        """Return the frames [first, stop) of a region with its margins."""
        return self._spans[index]

    def frames(
        self, first_frame: int, stop_frame: int, widened: frozenset[int] = frozenset()
    ) -> Tensor:
        """Return the mask (T, F) in [0, 1] of frames [first, stop).

        Args:
            first_frame: may be negative; there is nothing to remove before 0.
            stop_frame: one past the last.
            widened: regions whose mask is made wider and stronger.
        """
        grid, count = self._grid, stop_frame - first_frame
        total = np.zeros((grid.n_bins, count), np.float32)
        inside = self.within(first_frame, stop_frame)
        if not inside:
            return torch.from_numpy(total.T)
        start_s = first_frame * grid.hop_s
        foreground = self._mask.on_grid(start_s, count, grid.hop_s, grid.freqs_hz)
        shares: dict[str, np.ndarray] = {}
        for index in inside:
            label = self.regions[index].label
            if label not in shares:
                shares[label] = self._class_share(label, start_s, count)
            value = foreground * shares[label]
            if index in widened:
                value = value ** np.float32(WIDEN_POWER)
            first, stop = (edge - first_frame for edge in self._spans[index])
            part = slice(max(0, first), min(count, stop))
            np.maximum(total[:, part], value[:, part], out=total[:, part])
        return torch.from_numpy(np.ascontiguousarray(total.T))

    def note(self, first_frame: int, mask: Tensor) -> None:
        """Remember in which bands the mask (T, F) from ``first_frame`` on touched each region."""
        touched = (mask >= MASK_TOUCH).numpy()
        for index in self.within(first_frame, first_frame + len(touched)):
            first, stop = (max(0, edge - first_frame) for edge in self._spans[index])
            self._bands[index] += touched[first:stop].sum(0)

    def band_hz(self, index: int) -> tuple[float, float] | None:
        """Return the band that was touched in a region, less 2 % at either end; None if none."""
        counts = self._bands[index]
        if not counts.any():
            return None
        share = np.cumsum(counts) / counts.sum()
        low = int(np.searchsorted(share, _BAND_SHARE))
        high = int(np.searchsorted(share, 1.0 - _BAND_SHARE))
        freqs = self._grid.freqs_hz
        return float(freqs[low]), float(freqs[min(high, len(freqs) - 1)])

    def _class_share(self, label: str, start_s: float, count: int) -> np.ndarray:
        """Return (F, count): the class's probability over that of the likeliest class there.

        The foreground mask already says that something sounds; what is left to say is whose bin
        it is. So a class that leads owns the bin whole, however unsure the segmenter is of it, and
        only classes that the classifier heard at that moment can lead.
        """
        centres = self._embedding.centres_hz
        own = best = np.zeros((len(centres), count), np.float32)
        for other in self._embedding.labels:
            value = self._embedding.class_on_grid(other, start_s, count, self._grid.hop_s, centres)
            if other == label:
                own = value
            else:
                value = value * self._heard(other, start_s, count)
            best = np.maximum(best, value)
        share = np.where(own >= _MIN_CLASS, own / np.maximum(best, 1e-6), 0.0).astype(np.float32)
        position = np.interp(self._grid.freqs_hz, centres, np.arange(len(centres)))
        low = np.minimum(position.astype(np.int64), len(centres) - 2)
        rest = (position - low).astype(np.float32)[:, None]
        return (1.0 - rest) * share[low] + rest * share[low + 1]

    def _heard(self, label: str, start_s: float, count: int) -> np.ndarray:
        """Return (count,) 1 in the frames in which the classifier heard ``label``, else 0."""
        times_s = start_s + np.arange(count) * self._grid.hop_s
        heard = np.zeros(count, np.float32)
        for event in self._events:
            if event.label == label:
                inside = times_s >= event.onset_s - REGION_MARGIN_S
                heard[inside & (times_s <= event.offset_s + REGION_MARGIN_S)] = 1.0
        return heard
