"""The shape of the segmenter and of what it looks at. Its grid is that of ``common.masks``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from common.errors import WeightsInvalid
from common.features import ANALYSIS_RATE_HZ
from common.labels import LABELS
from common.masks import EMBEDDING_FACTOR, MASK_BANDS, MASK_HOP_S

HOP_SAMPLES = round(MASK_HOP_S * ANALYSIS_RATE_HZ)
N_FFT = 2048  # 64 ms: the least power of two at which each of 128 mel bands has a bin

FRAME_MULTIPLE = 32
"""Frames per cell of the coarsest grid: two by the shuffle, halved four times.

Chunks begin on multiples of it, so that every chunk is pooled on the same grid as the whole.
"""
CHUNK_FRAMES = 48 * FRAME_MULTIPLE
OVERLAP_FRAMES = 8 * FRAME_MULTIPLE
TRIM_FRAMES = 3 * FRAME_MULTIPLE
"""Left out at a chunk's border, where the model sees no surroundings, before the cross-fade."""
CHUNK_SAMPLES = CHUNK_FRAMES * HOP_SAMPLES
OVERLAP_SAMPLES = OVERLAP_FRAMES * HOP_SAMPLES


@dataclass(frozen=True)
class SegmenterConfig:
    """The architecture; see ``model.py`` for what the numbers mean."""

    labels: tuple[str, ...] = LABELS
    embedding_dim: int = 8
    # per encoder level, finest first: height of its inner U, its inner and its outer channels
    heights: tuple[int, ...] = (5, 4, 4, 4, 4)
    inner: tuple[int, ...] = (16, 16, 16, 16, 16)
    outer: tuple[int, ...] = (32, 32, 48, 64, 64)
    dilated_from: int = 3  # levels from this one on dilate instead of pooling
    contrast_frames: int = 101  # the mean over so many frames is what a frame is compared with

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> SegmenterConfig:
        """Return the config of a weights file.

        Raises:
            WeightsInvalid: a field is missing or unknown.
        """
        try:
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()})
        except TypeError as error:
            raise WeightsInvalid(
                f"the config of the weights is another model's: {error}"
            ) from error

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


BANDS = MASK_BANDS
SHUFFLE = EMBEDDING_FACTOR
