"""Batches for training: crops and mixtures of clips with targets per clip and per segment.

Clips are kept as log-mel spectrograms, and everything that is done to them (mixing, and what
``augment`` does) is done there: the power of a mixture is taken as the sum of the powers, which
holds on average for sounds that are independent of each other.

Source: between-class mixing, Tokozume et al. 2018, "Learning from between-class examples".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.datasets import Clip, ClipBank
from common.features import LOG_FLOOR
from common.labels import BACKGROUND_LABELS
from services.classifier.augment import (
    DB,
    LOWEST,
    Augmentation,
    blank_stripes,
    mixed_up,
    reverberated,
    soft_noise,
    varied,
)
from services.classifier.config import CELL_BANDS, CELL_FRAMES, SHORT_LABELS, Config
from services.classifier.model import front_end

Array = np.ndarray[Any, np.dtype[np.float32]]
Places = np.ndarray[Any, np.dtype[np.int64]]

MAX_BATCH = 64
CROP_SEGMENTS = ((16, 0.6), (32, 0.4))
"""Lengths of crops in segments, and how often; a batch holds crops of one length."""
SPEECH_SHARE = 0.05
PAIR_GAP_DB = 12.0
"""The two of a pair differ in level by at most this."""
SCENE_EVENTS = (0.08, 0.30, 0.27, 0.18, 0.10, 0.07)
"""How often a scene has 0, 1, 2, ... events beside its background."""
RUMBLE_BANDS = 2
"""The lowest mel bands (under about 100 Hz) do not count when activity is judged."""
PEAK_DB = 10.0
"""The loudest frame of a sound is at most so far above the level that it is brought to."""
TYPICAL_DB = 28.0
"""Level of the power summed over the bands: about -25 dB of full scale."""


@dataclass(frozen=True)
class Batch:
    """A training batch. Letters as in ``model``."""

    logmel: Tensor  # (B, F, T)
    mask: Tensor  # (B, f, t) in [0, 1]
    share: Tensor  # (B, K), rows sum to 1, or 0 where nothing sounds
    present: Tensor  # (B, K), 0 or 1, in between after mixup
    segment_present: Tensor  # (B, K, t), likewise
    segment_weight: Tensor  # (B, K, t), 0 where it is not known

    def to(self, device: str, non_blocking: bool = False) -> Batch:
        """Return the batch on a device."""
        return Batch(
            **{
                name: tensor.to(device, non_blocking=non_blocking)
                for name, tensor in vars(self).items()
            }
        )


class MelBank:
    """The log-mel spectrograms of clips, computed once, in half precision."""

    def __init__(self, bank: ClipBank, clips: Sequence[Clip], config: Config) -> None:
        self.clips = tuple(clips)
        self.labels = config.labels
        front = front_end(config)
        with torch.inference_mode():
            self._spectrograms = [
                front(torch.from_numpy(bank.waveform(clip))[None])[0, :, :-1]
                .T.numpy()
                .astype(np.float16)
                for clip in clips
            ]
        self.usable = [n for n, s in enumerate(self._spectrograms) if len(s) >= 2]
        # the strongest band of each frame, by which a crop is known to hold something
        self._levels = [s[:, RUMBLE_BANDS:].max(1).astype(np.float32) for s in self._spectrograms]
        self._tops = [_quantile(v, 0.98).item() if len(v) else 0.0 for v in self._levels]

    def logmel(self, number: int, frames: slice | Places = slice(None)) -> Array:
        """Return the (T, F) spectrogram of clip ``number`` in ``clips``, or frames of it."""
        return self._spectrograms[number][frames].astype(np.float32)

    def levels(self, number: int) -> Array:
        """Return the highest log power of each frame of clip ``number``, rumble left out, (T,)."""
        return self._levels[number]

    def top(self, number: int) -> float:
        """Return what all but a fiftieth of these levels stay under."""
        return self._tops[number]

    def n_frames(self, number: int) -> int:
        """Return the frames of clip ``number``."""
        return len(self._spectrograms[number])


@dataclass(frozen=True)
class Layer:
    """One sound of a mixture: its labels and its power, (T, F), zeros where it is not."""

    labels: tuple[str, ...]
    power: Array


@dataclass(frozen=True)
class Weighted:
    """Clips of one class and how often each is drawn; the shares sum to 1."""

    numbers: np.ndarray[Any, np.dtype[np.int64]]
    shares: np.ndarray[Any, np.dtype[np.float64]]


def activity(layer: Array, label: str, total: Array) -> tuple[Array, Array]:
    """Return per segment whether a layer sounds and whether that is known, both (t,) of 0 or 1.

    A layer sounds where its level comes near its own highest; how near depends on the class. It
    is not known in between, nor where the rest of the mixture drowns it.

    Args:
        layer: (T, F) power of the layer.
        label: its class.
        total: (T, F) power of the mixture.
    """
    levels = layer[:, RUMBLE_BANDS:].sum(1).reshape(-1, CELL_FRAMES).mean(1) + 1e-9
    totals = total[:, RUMBLE_BANDS:].sum(1).reshape(-1, CELL_FRAMES).mean(1) + 1e-9
    top = levels.max()
    below_db = DB * np.log(top / levels)
    if label in BACKGROUND_LABELS:
        near_db, far_db = 30.0, 45.0
    elif label in SHORT_LABELS:
        near_db, far_db = 16.0, 26.0
    else:
        near_db, far_db = 25.0, 38.0
    on, off = below_db <= near_db, below_db >= far_db
    drowned = on & (DB * np.log(totals / levels) > 15.0)
    return on.astype(np.float32), ((on | off) & ~drowned).astype(np.float32)


def _quantile(values: Array, share: float) -> Array:
    """Return what ``share`` of the values lie under, along the first axis, to the nearest rank.

    NumPy's own interpolates between ranks and takes five times as long.
    """
    rank = round(share * (len(values) - 1))
    ranked: Array = np.partition(values, rank, axis=0)
    return ranked[rank]


def gain_to(power: Array, level_db: float) -> float:
    """Return the gain that brings the loudest tenth of frames (T, F) to ``level_db``.

    What sounds for less than that tenth has its peak PEAK_DB above that level.
    """
    levels = power.sum(1)
    level = max(_quantile(levels, 0.9).item(), levels.max().item() * 10.0 ** (-PEAK_DB / 10.0))
    return min(max(10.0 ** (level_db / 10.0) / max(level, 1e-9), 1e-6), 1e6)


def _source(clip: Clip) -> str:
    """Return what tells the recordings of a class apart."""
    return f"{clip.dataset}/{clip.label}/{clip.source_id}"


class BatchMaker:
    """Draws batches; what it draws follows from ``rng``, which may be replaced between batches.

    A class is drawn as often as the root of its number of clips says, and within a class a clip
    the less often the more clips its recording gave: ten slices of one engine are hardly more than
    one.
    """

    def __init__(
        self, mels: MelBank, config: Config, seed: int, how: Augmentation | None = None
    ) -> None:
        self.mels = mels
        self.config = config
        self.how = how or Augmentation()
        self.rng = np.random.default_rng(seed)
        self.by_source: dict[str, list[int]] = defaultdict(list)
        by_label: dict[str, list[int]] = defaultdict(list)
        for number in mels.usable:
            clip = mels.clips[number]
            by_label[clip.label].append(number)
            self.by_source[_source(clip)].append(number)
        self.by_label = {label: self._weighted(numbers) for label, numbers in by_label.items()}
        self.known = sorted(by_label)
        weight = np.array([len(by_label[label]) ** 0.5 for label in self.known])
        if "speech" in self.known and len(self.known) > 1:
            speech = self.known.index("speech")
            weight[speech] = 0.0
            weight[speech] = SPEECH_SHARE * weight.sum()
        self.label_shares = weight / weight.sum()

    def batch(self, n_items: int, segments: int) -> Batch:
        """Return a batch of ``n_items`` crops of ``segments`` segments."""
        K, t = len(self.config.labels), segments
        f, T = self.config.mask_bands, segments * CELL_FRAMES
        logmel = np.empty((n_items, T, self.config.n_mels), np.float32)
        mask = np.ones((n_items, f, t), np.float32)
        share, present = np.zeros((n_items, K), np.float32), np.zeros((n_items, K), np.float32)
        segment_present = np.zeros((n_items, K, t), np.float32)
        segment_weight = np.ones((n_items, K, t), np.float32)
        for b in range(n_items):
            layers = self._layers(T)
            total = np.zeros((T, self.config.n_mels), np.float32)
            for layer in layers:
                total += layer.power
            if self.rng.random() < self.how.noise_share:
                total += soft_noise((T, self.config.n_mels), self.rng)
            logmel[b] = np.log(total + np.float32(LOG_FLOOR))
            for layer in layers:
                for label in layer.labels:
                    k = self.config.labels.index(label)
                    on, known = activity(layer.power, label, total)
                    present[b, k] = 1.0
                    share[b, k] += float(np.sqrt(layer.power.mean()))
                    before, certain = segment_present[b, k], segment_weight[b, k]
                    sure = np.maximum(on * known, before * certain)
                    segment_weight[b, k] = np.where(on + before > 0, sure, known * certain)
                    segment_present[b, k] = np.maximum(before, on)
            mask[b] = self._mask(layers, total)
            blank_stripes(logmel[b], self.how, self.rng)
        share /= np.maximum(share.sum(1, keepdims=True), 1e-9)
        arrays = (logmel, mask, share, present, segment_present, segment_weight)
        if self.how.mixup_share > 0.0:
            arrays = mixed_up(arrays, self.how, self.rng)
        return Batch(
            torch.from_numpy(np.ascontiguousarray(arrays[0].transpose(0, 2, 1))),
            *(torch.from_numpy(array) for array in arrays[1:]),
        )

    def _weighted(self, numbers: Sequence[int]) -> Weighted:
        """Return clips and how often each is drawn."""
        slices = [len(self.by_source[_source(self.mels.clips[n])]) for n in numbers]
        weight = 1.0 / np.sqrt(np.array(slices, np.float64))
        return Weighted(np.array(numbers), weight / weight.sum())

    def _layers(self, T: int) -> list[Layer]:
        """Return a clip alone, two mixed, or a scene of a background and placed events."""
        draw = self.rng.random()
        if draw < self.how.alone_share:
            number = self._number(self._label())
            power = np.exp(self._crop(number, T)) - np.float32(LOG_FLOOR)
            # half the way to a common level: what is recorded softly stays softer
            change = np.float32(gain_to(power, TYPICAL_DB) ** 0.5)
            return [Layer(self._labels(number), np.maximum(power, 0.0) * change)]
        level_db = float(self.rng.normal(TYPICAL_DB, 9.0))
        if draw < self.how.alone_share + self.how.pair_share:
            gap_db = float(self.rng.uniform(-PAIR_GAP_DB, PAIR_GAP_DB))
            return [self._whole(T, level_db), self._whole(T, level_db + gap_db)]
        layers: list[Layer] = []
        backgrounds = [label for label in self.known if label in BACKGROUND_LABELS]
        if backgrounds and self.rng.random() < 0.6:
            layers.append(self._whole(T, level_db, str(self.rng.choice(backgrounds)), in_room=True))
        for _ in range(int(self.rng.choice(len(SCENE_EVENTS), p=SCENE_EVENTS))):
            layers.append(self._placed(T, level_db + float(self.rng.uniform(-3.0, 20.0))))
        return layers

    def _label(self) -> str:
        return str(self.rng.choice(self.known, p=self.label_shares))

    def _number(self, label: str) -> int:
        """Return a random clip of a class."""
        clips = self.by_label[label]
        return int(self.rng.choice(clips.numbers, p=clips.shares))

    def _labels(self, number: int) -> tuple[str, ...]:
        return self.mels.clips[number].labels

    def _whole(self, T: int, level_db: float, label: str = "", in_room: bool = False) -> Layer:
        """Return a layer that fills the crop; of a random class where none is named."""
        number = self._number(label or self._label())
        return Layer(self._labels(number), self._levelled(self._crop(number, T), level_db, in_room))

    def _placed(self, T: int, level_db: float) -> Layer:
        """Return a layer that fills only a part of the crop."""
        number = self._number(self._label())
        length = max(2, int(T * self.rng.uniform(0.1, 0.6)))
        start = int(self.rng.integers(0, T - length + 1))
        power = np.zeros((T, self.config.n_mels), np.float32)
        sound = self._levelled(self._crop(number, length), level_db, in_room=True)
        power[start : start + length] = sound
        return Layer(self._labels(number), power)

    def _levelled(self, logmel: Array, level_db: float, in_room: bool) -> Array:
        """Return power (T, F) at ``level_db``, some of it with the decay of a room."""
        power = np.maximum(np.exp(logmel) - np.float32(LOG_FLOOR), 0.0)
        if in_room and self.rng.random() < self.how.reverb_share:
            hop_s = self.config.hop_length / self.config.sample_rate
            power = reverberated(power, hop_s, self.rng)
        return np.asarray(power * gain_to(power, level_db), np.float32)

    def _crop(self, number: int, T: int) -> Array:
        """Return T frames of a clip as log-mel (T, F), varied."""
        stretch = 1.0
        if self.rng.random() < self.how.stretch_share:
            stretch = float(np.exp(self.rng.normal(0.0, self.how.stretch_deviation)))
        need = max(2, round(T * stretch))
        n = self.mels.n_frames(number)
        if n < need and self.mels.clips[number].label == "speech":
            source = self._joined(number, need)
        else:
            start = self._start(number, need)
            source = self.mels.logmel(number, (start + np.arange(need)) % n)
        if need != T:
            source = source[(np.arange(T) * (need / T)).astype(np.int64)]
        return varied(source, self.how, self.rng)

    def _start(self, number: int, need: int) -> int:
        """Return a start whose crop holds something near the clip's own highest level."""
        levels, floor = self.mels.levels(number), self.mels.top(number) - 20.0 / DB
        n = len(levels)
        for _ in range(4):
            start = int(self.rng.integers(0, n))
            crop = levels[(start + np.arange(min(need, n))) % n]
            if crop.max() > floor:
                return start
        return int(np.argmax(levels)) - int(self.rng.integers(0, min(need, n)))

    def _joined(self, number: int, need: int) -> Array:
        """Return short clips of one speaker one after the other, with pauses."""
        clip = self.mels.clips[number]
        others = self.by_source[_source(clip)]
        joined = np.full((need, self.config.n_mels), LOWEST, np.float32)
        at = int(self.rng.integers(0, max(1, min(need // 2, 30))))
        while at < need:
            word = self.mels.logmel(number, slice(need - at))
            joined[at : at + len(word)] = word
            at += len(word) + int(self.rng.integers(3, 60))
            number = int(self.rng.choice(others))
            if self.rng.random() < 0.15:
                break
        return joined

    def _mask(self, layers: Sequence[Layer], total: Array) -> Array:
        """Return a mask per cell, (f, t): all ones, from the true layers, or from energy alone."""
        rng = self.rng
        T, F = total.shape
        draw = rng.random()
        if draw < 0.4:
            return np.ones((F // CELL_BANDS, T // CELL_FRAMES), np.float32)
        front = [layer.power for layer in layers if not BACKGROUND_LABELS.issuperset(layer.labels)]
        if draw < 0.75 and front:
            ahead = sum(front, np.float32(0.0))
            floor = _quantile(ahead, 0.15)
            ratio = (ahead + 1e-9) / (total - ahead + 2.0 * floor + 1e-6)
        else:
            floor = _quantile(total, rng.uniform(0.1, 0.5))
            ratio = (total + 1e-9) / (floor * np.float32(10.0 ** rng.uniform(0.3, 1.0)) + 1e-6)
        softness = float(rng.uniform(0.7, 2.0))
        odds = np.clip(ratio, 1e-8, 1e8) ** softness
        mask = (odds / (1.0 + odds)).astype(np.float32)
        cells = mask.reshape(T // CELL_FRAMES, CELL_FRAMES, F // CELL_BANDS, CELL_BANDS)
        grid = np.asarray(cells.mean((1, 3)).T)
        if rng.random() < 0.3:
            grid = grid * np.float32(rng.uniform(0.2, 1.0))
            grid = np.clip(grid + rng.normal(0.0, 0.15, grid.shape), 0.0, 1.0)
        return grid.astype(np.float32)
