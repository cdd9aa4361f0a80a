"""Configuration and constants of the classifier. Pure data; no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.errors import WeightsInvalid
from common.labels import BACKGROUND_LABELS, LABELS

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "classifier.safetensors"

CELL_FRAMES = 8
"""Spectrogram frames per segment: the time step of the scores."""
CELL_BANDS = 16
"""Mel bands per cell: the frequency step of the mask that weights the pooling."""

WINDOW_SEGMENTS = 64
OVERLAP_SEGMENTS = 13
"""Recordings are listened to in windows of 64 segments (5.12 s) that share 13 (1.04 s)."""

SILENCE_PEAK = 1e-5
"""A window whose samples all lie below this (-100 dB) is silence and holds nothing."""

LOW_SHARE = 0.5
"""An event starts where its score reaches the threshold and lasts while above this share of it."""
MERGE_GAP_S = 0.2
SNAP_S = 0.25
"""An event's edge moves to the edge of a mask region that lies at most this far away."""
LONG_MEDIAN_S = 1.2
SHORT_MEDIAN_S = 0.24
SHORT_LABELS = frozenset({"clock_tick", "dog", "gun_shot", "rooster", "sneezing", "speech"})


@dataclass(frozen=True)
class Config:
    """The shipped architecture, ``hybrid``.

    ``temperature`` (of all logits) and ``event_shift`` (added to the logits of segments, so that
    0.5 is the threshold with the best F1) are fitted after training.
    """

    architecture: str = "hybrid"
    labels: tuple[str, ...] = LABELS
    sample_rate: int = 32_000
    n_fft: int = 1024
    hop_length: int = 320
    n_mels: int = 64
    channels: tuple[int, ...] = (24, 40, 80, 160)
    patch_width: int = 112
    patch_layers: int = 2
    patch_heads: int = 4
    fused_width: int = 144
    dropout: float = 0.2
    temperature: float = 1.0
    event_shift: float = 0.0

    @property
    def segment_samples(self) -> int:
        """Samples per segment."""
        return CELL_FRAMES * self.hop_length

    @property
    def segment_s(self) -> float:
        """Seconds per segment."""
        return self.segment_samples / self.sample_rate

    @property
    def mask_bands(self) -> int:
        """Frequency cells of the mask."""
        return self.n_mels // CELL_BANDS

    def to_dict(self) -> dict[str, Any]:
        """Return what ``from_dict`` takes, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Config:
        """Return the config of a weights file.

        Raises:
            WeightsInvalid: unknown or missing fields, or another architecture.
        """
        try:
            config = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()})
        except TypeError as error:
            raise WeightsInvalid(f"the classifier's config does not fit: {error}") from error
        if config.architecture != "hybrid":
            raise WeightsInvalid(f"unknown classifier architecture {config.architecture!r}")
        return config


def median_segments(label: str, segment_s: float) -> int:
    """Return the odd length of the median filter of a label's scores, in segments."""
    if label in SHORT_LABELS:
        seconds = SHORT_MEDIAN_S
    else:
        seconds = LONG_MEDIAN_S if label in BACKGROUND_LABELS else 2 * SHORT_MEDIAN_S
    return 2 * (round(seconds / segment_s) // 2) + 1
