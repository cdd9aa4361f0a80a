"""Salient regions: stretches of time where the mask is high, found as the mask streams by.

Source: Canny 1986, "A computational approach to edge detection", section on thresholding with
hysteresis; here along time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.domain import Region
from common.masks import MASK_BANDS, MASK_F_MAX_HZ, MASK_HOP_S
from common.mel import mel_edges_hz
from common.params import SegmentParams

ACTIVE_BANDS = 4
"""A frame is as active as the mean of its so many highest bands: a whistle counts, a pixel not."""


@dataclass(frozen=True)
class _Run:
    """Frames ``first`` to ``last`` (inclusive) above the low threshold."""

    first: int
    last: int
    peak: float
    activity_sum: float
    band_peaks: npt.NDArray[np.float32]  # (F,)

    def joined(self, later: _Run) -> _Run:
        return _Run(
            self.first,
            later.last,
            max(self.peak, later.peak),
            self.activity_sum + later.activity_sum,
            np.maximum(self.band_peaks, later.band_peaks),
        )


class RegionFinder:
    """Collects regions from a mask that comes in pieces. Memory grows with the regions alone."""

    def __init__(self, params: SegmentParams) -> None:
        self._params = params
        self._n_frames = 0
        self._open: _Run | None = None  # reaches the last frame seen
        self._regions: list[Region] = []

    def add(self, probabilities: npt.NDArray[np.float32]) -> None:
        """Take the next frames (F, T)."""
        n_frames = probabilities.shape[1]
        if n_frames == 0:
            return
        activity = np.partition(probabilities, -ACTIVE_BANDS, axis=0)[-ACTIVE_BANDS:].mean(axis=0)
        above = np.concatenate([[False], activity >= self._params.region_low, [False]])
        changes = np.flatnonzero(np.diff(above.astype(np.int8)))
        for first, stop in changes.reshape(-1, 2):
            run = _Run(
                self._n_frames + int(first),
                self._n_frames + int(stop) - 1,
                float(activity[first:stop].max()),
                float(activity[first:stop].sum()),
                probabilities[:, first:stop].max(axis=1),
            )
            if self._open is not None and run.first == self._open.last + 1:
                run = self._open.joined(run)
            else:
                self._close()
            self._open = run
        self._n_frames += n_frames
        if self._open is not None and self._open.last < self._n_frames - 1:
            self._close()

    def finish(self, duration_s: float) -> list[Region]:
        """Return all regions in order, none overlapping, within [0, duration_s]."""
        self._close()
        return [_within(region, duration_s) for region in self._regions]

    def _close(self) -> None:
        run, self._open = self._open, None
        params = self._params
        if run is None or run.peak < params.region_high:
            return
        bands = np.flatnonzero(run.band_peaks >= params.region_high)
        edges_hz = mel_edges_hz(MASK_BANDS, 0.0, MASK_F_MAX_HZ)
        region = Region(
            max(0.0, (run.first - 0.5) * MASK_HOP_S - params.margin_s),
            (run.last + 0.5) * MASK_HOP_S + params.margin_s,
            float(edges_hz[bands[0]]),
            float(edges_hz[bands[-1] + 2]),
            run.activity_sum / (run.last - run.first + 1),
        )
        gap_s = params.merge_gap_s - 2.0 * params.margin_s
        if self._regions and region.onset_s - self._regions[-1].offset_s <= max(0.0, gap_s) + 1e-9:
            region = _merged(self._regions.pop(), region)
        self._regions.append(region)


def _merged(one: Region, two: Region) -> Region:
    lengths = one.offset_s - one.onset_s, two.offset_s - two.onset_s
    weighted = one.confidence * lengths[0] + two.confidence * lengths[1]
    return Region(
        one.onset_s,
        two.offset_s,
        min(one.low_hz, two.low_hz),
        max(one.high_hz, two.high_hz),
        weighted / sum(lengths),
    )


def _within(region: Region, duration_s: float) -> Region:
    return Region(
        round(min(region.onset_s, duration_s), 3),
        round(min(region.offset_s, duration_s), 3),
        round(region.low_hz, 1),
        round(region.high_hz, 1),
        round(region.confidence, 4),
    )
