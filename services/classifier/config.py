"""Configuration and constants of the classifier. Pure data; no torch.

Configs come out of weights files, which may be anybody's: every field is checked for its type and
its range when a config is made, so that nothing absurd is ever allocated.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from common.errors import WeightsInvalid
from common.labels import BACKGROUND_LABELS, LABELS
from common.params import MAX_LABEL_NAME

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

POOLINGS = ("max", "mean")
WINDOWS = ("hann", "hamming", "blackman")
MAX_WIDTH = 512
"""The widest of the papers' maps. Nothing that a config may ask for takes a gigabyte."""
MAX_LABELS = 10_000


def _whole(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r:.80}")


def _wholes(name: str, value: object, count: int, high: int) -> None:
    if not isinstance(value, tuple) or len(value) != count:
        raise ValueError(f"{name} must be {count} whole numbers, not {value!r:.80}")
    for item in value:
        _whole(name, item, 1, high)


def _number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, not {value!r:.80}")


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r:.80}")


@dataclass(frozen=True)
class HybridSettings:
    """Sizes of ``networks.hybrid``: widths of both branches, of what fuses them, of the texture."""

    channels: tuple[int, ...] = (16, 32, 56, 112)
    patch_width: int = 80
    patch_layers: int = 2
    patch_heads: int = 4
    fused_width: int = 112
    texture_width: int = 256

    def __post_init__(self) -> None:
        """Raises ValueError: a wrong type, or out of range."""
        _wholes("channels", self.channels, 4, MAX_WIDTH)
        _whole("patch_width", self.patch_width, 1, MAX_WIDTH)
        _whole("patch_layers", self.patch_layers, 1, 16)
        _whole("patch_heads", self.patch_heads, 1, 64)
        _whole("fused_width", self.fused_width, 1, MAX_WIDTH)
        _whole("texture_width", self.texture_width, 1, MAX_WIDTH)
        if self.patch_width % self.patch_heads:
            raise ValueError(f"patch_width must be a multiple of patch_heads, {self.patch_heads}")


@dataclass(frozen=True)
class ResNetSettings:
    """Sizes of ``networks.resnet``: width of the first stage, and residual blocks per stage."""

    width: int = 16
    blocks: tuple[int, ...] = (2, 2, 2, 2)

    def __post_init__(self) -> None:
        """Raises ValueError: a wrong type, or out of range."""
        _whole("width", self.width, 1, MAX_WIDTH // 8)
        _wholes("blocks", self.blocks, 4, 8)


@dataclass(frozen=True)
class VggSlatSettings:
    """Sizes of ``networks.vgg_slat``, how segments are pooled, and its LSTM; a width of 0: none."""

    channels: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    segment_width: int = 1024
    pooling: str = "max"
    lstm_width: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError: a wrong type, or out of range."""
        _wholes("channels", self.channels, 6, MAX_WIDTH)
        _whole("segment_width", self.segment_width, 1, 2 * MAX_WIDTH)
        _one_of("pooling", self.pooling, POOLINGS)
        _whole("lstm_width", self.lstm_width, 0, MAX_WIDTH)


@dataclass(frozen=True)
class StrideCnnSettings:
    """Sizes of ``networks.stride_cnn``: the width of each block."""

    channels: tuple[int, ...] = (8, 16, 32, 64)

    def __post_init__(self) -> None:
        """Raises ValueError: a wrong type, or out of range."""
        _wholes("channels", self.channels, 4, MAX_WIDTH)


NetworkSettings = HybridSettings | ResNetSettings | VggSlatSettings | StrideCnnSettings

SETTINGS: dict[str, type[NetworkSettings]] = {
    "hybrid": HybridSettings,
    "resnet": ResNetSettings,
    "vgg_slat": VggSlatSettings,
    "stride_cnn": StrideCnnSettings,
}
"""The architectures by name, and what each can be set to."""


@dataclass(frozen=True)
class Config:
    """A classifier: what it tells apart, its front end, its network and its calibration.

    ``multi_label``: several labels can sound at once (sigmoids); else exactly one (softmax).
    The calibration is fitted after training: the clip's logits become ``(logit + shift) /
    temperature``, those of segments ``sigmoid((logit + segment_shift) / segment_temperature)``, and
    ``event_threshold`` is what such a probability has to reach unless a request says otherwise.
    """

    architecture: str = "hybrid"
    labels: tuple[str, ...] = LABELS
    multi_label: bool = True
    sample_rate: int = 32_000
    n_fft: int = 1024
    hop_length: int = 320
    n_mels: int = 64
    window: str = "hann"
    dropout: float = 0.2
    network: NetworkSettings = HybridSettings()
    temperature: float = 1.0
    shift: float = 0.0
    segment_temperature: float = 1.0
    segment_shift: float = 0.0
    event_threshold: float = 0.5

    def __post_init__(self) -> None:
        """Raises ValueError: a wrong type, out of range, or fields that do not fit each other."""
        _one_of("architecture", self.architecture, tuple(SETTINGS))
        if type(self.network) is not SETTINGS[self.architecture]:
            raise ValueError(f"these are no network settings of {self.architecture}")
        _check_labels(self.labels)
        if type(self.multi_label) is not bool:
            raise ValueError(f"multi_label must be true or false, not {self.multi_label!r:.80}")
        _whole("sample_rate", self.sample_rate, 4_000, 192_000)
        _whole("n_fft", self.n_fft, 64, 16_384)
        _whole("hop_length", self.hop_length, 16, self.n_fft)
        _whole("n_mels", self.n_mels, CELL_BANDS, 512)
        if self.n_mels % CELL_BANDS:
            raise ValueError(f"n_mels must be a multiple of {CELL_BANDS}, not {self.n_mels}")
        _one_of("window", self.window, WINDOWS)
        _number("dropout", self.dropout, 0.0, 0.95)
        _number("temperature", self.temperature, 0.01, 100.0)
        _number("shift", self.shift, -100.0, 100.0)
        _number("segment_temperature", self.segment_temperature, 0.01, 100.0)
        _number("segment_shift", self.segment_shift, -100.0, 100.0)
        _number("event_threshold", self.event_threshold, 0.0, 1.0)

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
        """Return the config of a weights file, or of a recipe; fields left out have defaults.

        Raises:
            WeightsInvalid: an unknown architecture or field, a wrong type, out of range.
        """
        try:
            architecture = raw.get("architecture", cls.architecture)
            _one_of("architecture", architecture, tuple(SETTINGS))
            network = raw.get("network", {})
            if not isinstance(network, dict):
                raise ValueError(f"network must be a table of settings, not {network!r:.80}")
            settings = _from_dict(SETTINGS[architecture], network)
            config: Config = _from_dict(
                cls, raw | {"architecture": architecture, "network": settings}
            )
        except ValueError as error:
            raise WeightsInvalid(f"the classifier's config does not fit: {error}") from error
        return config


def median_segments(label: str, segment_s: float) -> int:
    """Return the odd length of the median filter of a label's scores, in segments."""
    if label in SHORT_LABELS:
        seconds = SHORT_MEDIAN_S
    else:
        seconds = LONG_MEDIAN_S if label in BACKGROUND_LABELS else 2 * SHORT_MEDIAN_S
    return 2 * (round(seconds / segment_s) // 2) + 1


def _check_labels(labels: object) -> None:
    if not isinstance(labels, tuple) or not 1 <= len(labels) <= MAX_LABELS:
        raise ValueError(f"labels must be a list of 1 to {MAX_LABELS} names")
    if not all(isinstance(label, str) and 1 <= len(label) <= MAX_LABEL_NAME for label in labels):
        raise ValueError(f"every label must be a text of 1 to {MAX_LABEL_NAME} characters")
    if len(set(labels)) < len(labels):
        raise ValueError("a label is there twice")


def _from_dict(kind: type[Any], raw: dict[str, Any]) -> Any:
    """Return a dataclass of fields as JSON has them, lists for tuples."""
    unknown = sorted(map(str, raw.keys() - {field.name for field in fields(kind)}))
    if unknown:
        raise ValueError(f"there is no field {unknown[0]!r:.80}")
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in raw.items()})
