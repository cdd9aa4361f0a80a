"""Training examples: soundscapes as features and target masks, drawn on the fly.

Making a soundscape costs about as much as a training step on it, so each stays in a pool for a
while and is drawn several times, at another place, level and equalisation each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from common.datasets import ClipBank
from common.features import LOG_FLOOR
from common.soundscapes import Cast, Soundscape, make_soundscape
from services.segmenter.config import BANDS, HOP_SAMPLES, N_FFT, SHUFFLE, SegmenterConfig
from services.segmenter.model import front_end

SCAPE_FRAMES = 512
SCAPE_S = SCAPE_FRAMES * 0.02
CROP_FRAMES = (128, 128, 256)
"""A batch has one of these lengths, most are short and cheap. The last part of training needs
``FULL_LENGTH``: the widest dilations see nothing but padding in a short excerpt."""
FULL_LENGTH = (SCAPE_FRAMES,)

INAUDIBLE_SHARE = 10.0**-6.5
"""Of the loudest pixel's power: what lies below belongs to nobody."""
REFERENCE_AREA = 3000
"""Pixels of an event (of 6400 a second) that weighs as much as the background."""
WEIGHT_RANGE = (0.5, 10.0)
WEIGHT_REACH = (9, 7)
"""Bands and frames over which an event's weight spreads, so that its outline counts as it does."""
_WEIGHT_STEP = 0.05
_GAIN_DB = (-30.0, 10.0)
_DB_TO_NATS = np.log(10.0) / 10.0  # of power


@dataclass(frozen=True)
class Example:
    """A soundscape as the network sees it and what it should answer. Compact, for the pool."""

    log_power: npt.NDArray[np.float16]  # (F, T), natural log of mel power, no floor
    mask: npt.NDArray[np.uint8]  # (F, T), amplitude ratio of the foreground * 255
    weight: npt.NDArray[np.uint8]  # (F, T), in steps of 0.05
    class_masks: dict[int, npt.NDArray[np.uint8]]  # class index to (F / 2, T / 2), ratio * 255


@dataclass(frozen=True)
class Powers:
    """Mel powers (F, T) of a soundscape's parts."""

    mixture: Tensor
    background: Tensor
    events: tuple[Tensor, ...]


class Spectra:
    """Mel powers of soundscapes; of an event only the frames that it reaches are computed."""

    def __init__(self) -> None:
        self._front_end = front_end()

    @torch.inference_mode()
    def __call__(self, scape: Soundscape) -> Powers:
        """Return the powers of all parts, T = samples // hop + 1."""
        whole = torch.from_numpy(np.stack([scape.mixture, scape.background]))
        mixture, background = self._front_end.power(whole)
        events = []
        for event in scape.events:
            power = torch.zeros_like(background)
            stop = event.start + len(event.segment)
            first = max(0, event.start - N_FFT // 2) // HOP_SAMPLES
            last = min((stop + N_FFT // 2) // HOP_SAMPLES, mixture.shape[1] - 1)
            part = np.zeros((1, max(stop, last * HOP_SAMPLES) - first * HOP_SAMPLES), np.float32)
            at = event.start - first * HOP_SAMPLES
            part[0, at : at + len(event.segment)] = event.segment
            reached = self._front_end.power(torch.from_numpy(part))[0]
            power[:, first : last + 1] = reached[:, : last + 1 - first]
            events.append(power)
        return Powers(mixture, background, tuple(events))


@dataclass(frozen=True)
class Targets:
    """What a perfect segmenter answers. Ratios are of amplitudes: sqrt(part / whole) of powers."""

    mask: Tensor  # (F, T) in [0, 1]
    events: tuple[Tensor, ...]  # (F, T) each, in [0, 1]
    class_masks: dict[int, Tensor]  # class index to (F / 2, ceil(T / 2)) in [0, 1]


def targets_of(scape: Soundscape, powers: Powers, labels: tuple[str, ...]) -> Targets:
    """Return the oracle masks of a soundscape; a background with a label is a class as well."""
    foreground = sum(powers.events, torch.zeros_like(powers.background))
    floor = INAUDIBLE_SHARE * powers.mixture.max() + 1e-8
    whole = foreground + powers.background + floor
    by_label: dict[str, Tensor] = {}
    sounding = [event.label for event in scape.events]
    parts = [*powers.events, powers.background]
    for label, power in zip([*sounding, scape.background_label], parts, strict=True):
        if label is not None:
            by_label[label] = by_label.get(label, torch.zeros_like(whole)) + power
    coarse_whole = _coarse(whole)
    return Targets(
        (foreground / whole).sqrt(),
        tuple((power / whole).sqrt() for power in powers.events),
        {labels.index(k): (_coarse(p) / coarse_whole).sqrt() for k, p in by_label.items()},
    )


def weights_of(targets: Targets) -> Tensor:
    """Return pixel weights (F, T): 1, and where an event sounds the inverse of its area.

    The weight of a small event reaches a few pixels around it; else the network would learn to
    answer too much there.
    """
    weight = torch.zeros_like(targets.mask)
    for event in targets.events:
        sounding = event > 0.5
        area = max(1, int(sounding.sum()))
        own = min(max(REFERENCE_AREA / area, WEIGHT_RANGE[0]), WEIGHT_RANGE[1])
        weight = torch.maximum(weight, own * sounding)
    reach = tuple(n // 2 for n in WEIGHT_REACH)
    around = F.max_pool2d(weight[None], WEIGHT_REACH, stride=1, padding=reach)[0]
    return torch.where(weight > 0.0, torch.maximum(weight, around), around.clamp_min(1.0))


class ExampleMaker:
    """Makes examples from the clips of one split."""

    def __init__(self, bank: ClipBank, cast: Cast, config: SegmenterConfig, seed: int) -> None:
        self._bank, self._cast, self._labels = bank, cast, config.labels
        self._spectra = Spectra()
        self._rng = np.random.default_rng(seed)

    def make(self) -> Example:
        """Return a new example."""
        scape = make_soundscape(
            self._bank,
            self._cast.foreground,
            self._cast.background,
            self._rng,
            duration_s=SCAPE_S,
            min_events=0,
        )
        powers = self._spectra(scape)
        targets = targets_of(scape, powers, self._labels)
        weight = weights_of(targets) / _WEIGHT_STEP
        return Example(
            (powers.mixture + 1e-12).log().numpy().astype(np.float16)[:, :SCAPE_FRAMES],
            _bytes(targets.mask)[:, :SCAPE_FRAMES],
            weight.round().to(torch.uint8).numpy()[:, :SCAPE_FRAMES],
            {
                k: _bytes(mask)[:, : SCAPE_FRAMES // SHUFFLE]
                for k, mask in targets.class_masks.items()
            },
        )


class BatchMaker:
    """An endless iterator of batches, drawn from a pool of examples that is slowly renewed."""

    def __init__(
        self,
        maker: ExampleMaker,
        config: SegmenterConfig,
        batch_size: int,
        pool_size: int = 400,
        fresh_per_batch: int = 2,
        seed: int = 0,
        crop_frames: tuple[int, ...] = CROP_FRAMES,
    ) -> None:
        self._crop_frames = crop_frames
        self._maker, self._n_labels = maker, len(config.labels)
        self._batch_size, self._fresh, self._pool_size = batch_size, fresh_per_batch, pool_size
        self._pool: list[Example] = []
        self._made = 0
        self._rng = np.random.default_rng([seed, 1])

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self

    def __next__(self) -> dict[str, Tensor]:
        """Return features, mask, weight (B, F, T) and class_mask (B, K, F / 2, T / 2)."""
        wanted = self._batch_size if len(self._pool) < self._batch_size else self._fresh
        for _ in range(wanted):
            self._add(self._maker.make())
        chosen = self._rng.choice(len(self._pool), self._batch_size, replace=False)
        n_frames = int(self._rng.choice(self._crop_frames))
        crops = [self._crop(self._pool[i], n_frames) for i in chosen]
        return {name: torch.stack([crop[name] for crop in crops]) for name in crops[0]}

    def _add(self, example: Example) -> None:
        if len(self._pool) < self._pool_size:
            self._pool.append(example)
        else:
            self._pool[self._made % self._pool_size] = example
        self._made += 1

    def _crop(self, example: Example, n_frames: int) -> dict[str, Tensor]:
        rng = self._rng
        half = int(rng.integers((SCAPE_FRAMES - n_frames) // SHUFFLE + 1))
        start = half * SHUFFLE
        window = slice(start, start + n_frames)
        coarse = slice(half, half + n_frames // SHUFFLE)
        log_power = torch.from_numpy(example.log_power[:, window].astype(np.float32))
        power = (log_power + torch.from_numpy(_colouring(rng))).exp()
        # what no longer rises from the floor can no longer be asked for
        audible = (power / (power + 10.0 * LOG_FLOOR)).sqrt()
        class_mask = torch.zeros(
            self._n_labels, BANDS // SHUFFLE, n_frames // SHUFFLE, dtype=torch.float32
        )
        coarse_audible = F.avg_pool2d(audible[None], SHUFFLE)[0]
        for k, mask in example.class_masks.items():
            class_mask[k] = torch.from_numpy(mask[:, coarse] / np.float32(255)) * coarse_audible
        return {
            "features": (power + LOG_FLOOR).log(),
            "mask": torch.from_numpy(example.mask[:, window] / np.float32(255)) * audible,
            "weight": torch.from_numpy(example.weight[:, window] * np.float32(_WEIGHT_STEP)),
            "class_mask": class_mask,
        }


def _colouring(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return what is added to log power, (F, 1) nats: level, equalisation, sometimes low-pass."""
    bands = np.arange(BANDS)
    knots_db = rng.normal(0.0, 3.0, 6)
    curve_db = rng.uniform(*_GAIN_DB) + np.interp(bands, np.linspace(0, BANDS - 1, 6), knots_db)
    if rng.random() < 0.3:
        cutoff = rng.uniform(0.45 * BANDS, BANDS)
        curve_db = curve_db - np.clip(20.0 * (bands - cutoff), 0.0, 90.0)
    return (curve_db * _DB_TO_NATS).astype(np.float32)[:, None]


def _coarse(power: Tensor) -> Tensor:
    return F.avg_pool2d(power[None], SHUFFLE, ceil_mode=True)[0]


def _bytes(mask: Tensor) -> npt.NDArray[np.uint8]:
    return (mask * 255.0).round().to(torch.uint8).numpy()
