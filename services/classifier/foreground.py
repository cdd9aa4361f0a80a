"""The foreground mask on the classifier's own grid, whatever its front end: one mean per cell.

Source: the mean of a step function over a span is the difference of its integral at the span's ends
by the span's length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from common.masks import MASK_BANDS, MASK_F_MAX_HZ, MASK_HOP_S, MaskReader
from common.mel import hz_to_mel
from services.classifier.config import Config

Array = np.ndarray[Any, np.dtype[np.float32]]


def span_means(values: Array, edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the means of ``values`` between each edge and the next, (n, M).

    Args:
        values: (N, M), N at least 1; row i lies from i to i + 1, and the first and last go on
            beyond the ends.
        edges: (n + 1,) rising, in rows.
    """
    before = np.zeros((len(values), values.shape[1]))  # the integral up to each row
    np.cumsum(values[:-1], axis=0, out=before[1:])
    row = np.clip(np.floor(edges).astype(np.int64), 0, len(values) - 1)
    integral = before[row] + (edges - row)[:, None] * values[row]
    means: npt.NDArray[np.float64] = np.diff(integral, axis=0) / np.diff(edges)[:, None]
    return means


def mask_cells(mask: MaskReader, start: int, n_segments: int, config: Config) -> Array:
    """Return the mask averaged over cells, (f, t), for ``n_segments`` from segment ``start``.

    A frame, of the mask as of the spectrogram, stands for the time from its centre to the next, and
    a band for an equal part of the mel axis. Above 16 kHz, where the mask ends, its top band holds.
    """
    top = hz_to_mel(config.sample_rate / 2) / hz_to_mel(MASK_F_MAX_HZ)
    bands = np.linspace(0.0, MASK_BANDS * top, config.mask_bands + 1)
    frame_samples = MASK_HOP_S * config.sample_rate
    segments = np.arange(start, start + n_segments + 1)
    frames = segments * config.segment_samples / frame_samples
    first = int(frames[0])
    values = mask.frames(first, int(np.ceil(frames[-1])))  # (128, T)
    by_band = span_means(values, bands)
    cells: Array = span_means(by_band.T, frames - first).T.astype(np.float32)
    return cells
