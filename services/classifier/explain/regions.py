"""From relevance per bin to the bins that matter most, and to places in seconds and hertz."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from common.mel import mel_edges_hz
from services.classifier.config import Config
from services.classifier.explain.question import FloatArray

SMOOTH_BANDS, SMOOTH_FRAMES = 1.0, 2.0
"""Standard deviations, in bins, of the smoothing before bins are chosen."""

TOP_SHARE = 0.5
"""The most relevant bins are the fewest that together hold this share of what speaks for it."""
TOP_BINS = 0.15
"""They are at most this share of all bins: where relevance is everywhere, its peaks are shown."""
TOP_REGIONS = 5
CORNERS_TOO = np.ones((3, 3), dtype=bool)

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class RelevantRegion:
    """A connected patch of most relevant bins. Times in seconds from the recording's start.

    ``share`` is its part of all that speaks for the label.
    """

    onset_s: float
    offset_s: float
    low_hz: float
    high_hz: float
    share: float


def positive(relevance: FloatArray) -> FloatArray:
    """Return what speaks for the label, smoothed a little, (F, T), at least 0."""
    smooth = ndimage.gaussian_filter(
        np.maximum(relevance, 0.0), (SMOOTH_BANDS, SMOOTH_FRAMES), mode="nearest"
    )
    return np.asarray(smooth, np.float32)


def most_relevant(relevance: FloatArray) -> BoolArray:
    """Return which bins (F, T) matter most; none where nothing speaks for the label."""
    weight = positive(relevance).ravel()
    order = np.argsort(-weight, kind="stable")
    held = np.cumsum(weight[order], dtype=np.float64)
    chosen = np.zeros(weight.size, dtype=bool)
    if held[-1] > 0.0:
        enough = int(np.searchsorted(held, TOP_SHARE * held[-1])) + 1
        chosen[order[: min(enough, max(1, int(TOP_BINS * weight.size)))]] = True
    return chosen.reshape(relevance.shape)


def regions_of(
    relevance: FloatArray, chosen: BoolArray, start_s: float, stop_s: float, config: Config
) -> list[RelevantRegion]:
    """Return the connected patches among ``chosen`` (F, T) that hold most, the largest first.

    Args:
        relevance: (F, T).
        chosen: from ``most_relevant``.
        start_s: where the window starts in the recording; frames are centred on whole hops.
        stop_s: where it ends: no region lasts longer.
        config: has the scale of bands and frames.
    """
    weight = positive(relevance)
    total = float(weight.sum(dtype=np.float64))
    patches, _ = ndimage.label(chosen, structure=CORNERS_TOO)
    edges_hz = mel_edges_hz(config.n_mels, 0.0, config.sample_rate / 2)
    between_hz = np.concatenate([[edges_hz[0]], (edges_hz[1:-2] + edges_hz[2:-1]) / 2])
    limits_hz = np.append(between_hz, edges_hz[-1])  # (F + 1,): band i lies between i and i + 1
    hop_s = config.hop_length / config.sample_rate
    regions = []
    for number, place in enumerate(ndimage.find_objects(patches), start=1):
        bands, frames = place
        share = float(weight[place][patches[place] == number].sum(dtype=np.float64)) / total
        regions.append(
            RelevantRegion(
                onset_s=round(max(start_s, start_s + (frames.start - 0.5) * hop_s), 3),
                offset_s=round(min(stop_s, start_s + (frames.stop - 0.5) * hop_s), 3),
                low_hz=round(float(limits_hz[bands.start]), 1),
                high_hz=round(float(limits_hz[bands.stop]), 1),
                share=round(share, 4),
            )
        )
    return sorted(regions, key=lambda region: -region.share)[:TOP_REGIONS]
