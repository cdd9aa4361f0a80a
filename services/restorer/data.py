"""Training batches of the restorer, cut from soundscapes whose stems are all known.

Soundscapes cost more than crops of them, so a small pool of them is kept, from which every batch
draws; one is replaced per batch. Everything is at 32 kHz.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.ndimage import maximum_filter, uniform_filter1d
from torch import Tensor

from common.datasets import Clip, ClipBank
from common.labels import LABELS
from common.mel import hz_to_mel
from common.soundscapes import PlacedEvent, Soundscape, cast_of, make_soundscape
from services.restorer.config import INPAINT_BINS, INPAINT_RATE_HZ, MASK_REPLACE
from services.restorer.fill import gain_of
from services.restorer.losses import ABSENT_DB, PRESENT_DB, recogniser_target
from services.restorer.prior import interpolate_in_time, known_weight
from services.restorer.spectrum import Grid, analyse, log_magnitude, power_of

GRID = Grid(INPAINT_RATE_HZ)
POOL_SIZE = 24
MAX_EVENTS = 6
MAX_EVENTS_INPAINTING = 3
"""Fewer, since the recogniser needs overlaps, but what the inpainter restores is background."""
MASK_BAND_MEL = 27.3
"""Width of one band of the segmenter's mask: the frequency detail that a mask has."""
MASK_FRAMES = 3
"""The segmenter's frames of 20 ms in frames of this grid, rounded up."""

CROP_LENGTHS_S = (0.64, 1.28, 2.56)
SCENE_FRAMES = 625
"""What the prior sees: 5 s."""
PATCH_FRAMES = 256
"""What the inpainter is trained on."""
PATCH_BINS = 256


class SoundscapePool:
    """Soundscapes that are used several times before each is replaced."""

    def __init__(
        self,
        bank: ClipBank,
        clips: list[Clip],
        seed: int,
        size: int = POOL_SIZE,
        max_events: int = MAX_EVENTS,
    ) -> None:
        self.bank = bank
        self.rng = np.random.default_rng(seed)
        self.clips = clips
        self.cast = cast_of(clips)
        self.size = size
        self.max_events = max_events
        self._held: list[Soundscape] = []

    def refresh(self) -> None:
        """Make one new soundscape; the oldest goes."""
        scape = make_soundscape(
            self.bank,
            self.cast.foreground,
            self.cast.background,
            self.rng,
            max_events=self.max_events,
        )
        self._held.append(scape)
        del self._held[: -self.size]

    def draw(self) -> Soundscape:
        """Return one of those held."""
        if not self._held:
            self.refresh()
        return self._held[self.rng.integers(len(self._held))]


@dataclass(frozen=True)
class RecogniserBatch:
    """Waveforms (B, samples) at 32 kHz; target and known (B, K + 1), the last for "none"."""

    waveforms: Tensor
    target: Tensor
    known: Tensor


def level_db(event: np.ndarray, rest: np.ndarray) -> float:
    """Return the level of ``event`` against ``rest`` in dB, bounded to +-100."""
    ratio = (np.square(event).sum() + 1e-12) / (np.square(rest).sum() + 1e-12)
    return float(np.clip(10.0 * np.log10(ratio), -100.0, 100.0))


def _start_near(event: PlacedEvent, samples: int, total: int, rng: np.random.Generator) -> int:
    """Return a start so that a crop of ``samples`` shows part of the event."""
    onset, offset = (int(t * INPAINT_RATE_HZ) for t in (event.onset_s, event.offset_s))
    low = onset - samples // 2 if offset - onset < samples // 2 else onset - samples // 4
    high = max(low + 1, offset - samples // 2)
    return int(np.clip(rng.integers(low, high), 0, max(0, total - samples)))


def label_levels(events: tuple[PlacedEvent, ...], mixture: np.ndarray, part: slice) -> Tensor:
    """Return (K,) how loud each label is in a part of a mixture against the rest, dB."""
    levels = torch.full((len(LABELS),), -100.0)
    for label in {event.label for event in events}:
        stem = sum(event.stem[part] for event in events if event.label == label)
        levels[LABELS.index(label)] = level_db(stem, mixture[part] - stem)
    return levels


def _soundscape_crop(
    pool: SoundscapePool, samples: int, rng: np.random.Generator
) -> tuple[np.ndarray, Tensor, Tensor]:
    """Return waveform, target (K + 1,) and known (K + 1,) of a crop of a soundscape."""
    scape = pool.draw()
    events = scape.events
    if not events or rng.random() < 0.15:
        start = int(rng.integers(0, max(1, len(scape.mixture) - samples)))
    else:
        chosen = events[rng.integers(len(events))]
        start = _start_near(chosen, samples, len(scape.mixture), rng)
    part = slice(start, start + samples)
    waveform = scape.mixture[part]
    if events and rng.random() < 0.3:
        # what a removal leaves: nothing of the events, or a faint rest of them
        rest = np.float32(rng.choice([0.0, 0.02, 0.05]))
        waveform = scape.background[part] + rest * (waveform - scape.background[part])
        target, known = torch.zeros(len(LABELS) + 1), torch.ones(len(LABELS) + 1)
        target[-1] = 1.0
    else:
        levels = label_levels(events, scape.mixture, part)
        labels, sure = recogniser_target(levels)
        loudest = float(levels.max())
        none = torch.tensor([float(loudest <= ABSENT_DB)])
        none_sure = torch.tensor([float(loudest <= ABSENT_DB or loudest >= PRESENT_DB)])
        target, known = torch.cat([labels, none]), torch.cat([sure, none_sure])
    if scape.background_label is not None:
        # under loud events the background may be inaudible
        known[LABELS.index(scape.background_label)] = 0.0
    return waveform, target, known


def _clip_crop(
    pool: SoundscapePool, clips: list[Clip], samples: int, rng: np.random.Generator
) -> tuple[np.ndarray, Tensor, Tensor]:
    """Return a crop of one or two clips with their labels; all outputs are known."""
    target = torch.zeros(len(LABELS) + 1)
    total = np.zeros(samples, np.float32)
    for _ in range(1 + int(rng.random() < 0.4)):
        clip = clips[rng.integers(len(clips))]
        waveform = pool.bank.waveform(clip)
        start = int(rng.integers(0, max(1, len(waveform) - samples + 1)))
        part = waveform[start : start + samples]
        power = float(np.square(part).mean())
        if power < 1e-7:
            continue
        gain = 0.1 * 10.0 ** (rng.uniform(-6.0, 0.0) / 20.0) / np.sqrt(power)
        offset = int(rng.integers(0, samples - len(part) + 1))
        total[offset : offset + len(part)] += np.float32(gain) * part
        target[LABELS.index(clip.label)] = 1.0
    target[-1] = float(target.sum() == 0)
    return total, target, torch.ones(len(LABELS) + 1)


def _by_label(clips: list[Clip]) -> list[list[Clip]]:
    groups = [[clip for clip in clips if clip.label == label] for label in LABELS]
    return [group for group in groups if group]


def recogniser_batches(
    pool: SoundscapePool, batch_size: int, seed: int
) -> Iterator[RecogniserBatch]:
    """Yield batches for ever: half soundscapes, half clips, labels equally often."""
    rng = np.random.default_rng(seed)
    groups = _by_label(pool.clips)
    while True:
        pool.refresh()
        samples = int(rng.choice(CROP_LENGTHS_S) * INPAINT_RATE_HZ)
        rows = []
        for index in range(batch_size):
            if index % 2:
                clips = groups[rng.integers(len(groups))]
                rows.append(_clip_crop(pool, clips, samples, rng))
            else:
                rows.append(_soundscape_crop(pool, samples, rng))
        gains = 10.0 ** (rng.uniform(-20.0, 6.0, size=batch_size) / 20.0)
        waveforms = [
            np.asarray(row[0] * gain, np.float32) for row, gain in zip(rows, gains, strict=True)
        ]
        yield RecogniserBatch(
            torch.from_numpy(np.stack(waveforms)),
            torch.stack([row[1] for row in rows]),
            torch.stack([row[2] for row in rows]),
        )


def limit_bandwidth(log_mel: Tensor, generator: torch.Generator, share: float = 0.4) -> Tensor:
    """Return log-mel (B, F, T) of which a share of the items lacks its top bands.

    A recording at 8 kHz has nothing above 4 kHz: a label must not hang on bandwidth.
    """
    batch, n_mels, _ = log_mel.shape
    cut = torch.randint(n_mels // 2, n_mels, (batch, 1, 1), generator=generator)
    chosen = torch.rand(batch, 1, 1, generator=generator) < share
    above = torch.arange(n_mels)[None, :, None] >= cut
    return torch.where(chosen & above, torch.full_like(log_mel, np.log(1e-6)), log_mel)


@cache
def _smear() -> Tensor:
    """Return (F, F) row-normalised kernels one mask band wide, on the 32 kHz grid."""
    mel = hz_to_mel(GRID.freqs_hz)
    kernel = np.clip(1.0 - np.abs(mel[:, None] - mel[None, :]) / MASK_BAND_MEL, 0.0, None)
    return torch.from_numpy((kernel / kernel.sum(1, keepdims=True)).astype(np.float32))


def oracle_mask(event: Tensor, rest: Tensor, bins: slice = slice(None)) -> np.ndarray:
    """Return the ideal removal mask (F, T) float32, with the detail that a real mask has.

    M^2 is the event's share of the power, so that the gain sqrt(1 - M^2) leaves the right power.

    Args:
        event: (T, F) complex spectrum of what is removed, on the 32 kHz grid.
        rest: the same of everything else.
        bins: which rows of the mask are wanted.
    """
    powers = []
    for spectrum in (event, rest):
        power = _smear()[bins] @ power_of(spectrum).T
        powers.append(uniform_filter1d(power.numpy(), MASK_FRAMES, axis=1, mode="nearest"))
    share = powers[0] / (powers[0] + powers[1] + 1e-12)
    return np.sqrt(np.clip(share, 0.0, 1.0)).astype(np.float32)


def _worn(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the mask as a segmenter might have it: wider, sharper or softer; extra holes."""
    mask = mask ** np.float32(rng.uniform(0.5, 1.6))
    if rng.random() < 0.5:
        mask = maximum_filter(mask, size=(int(rng.integers(1, 6)), int(rng.integers(1, 7))))
    bins, frames = mask.shape
    for _ in range(int(rng.integers(0, 3))):
        length = int(np.exp(rng.uniform(np.log(3), np.log(120))))
        start = int(rng.integers(0, frames - length))
        low = int(rng.choice([0, rng.integers(0, bins - 20)]))
        high = low + int(rng.integers(20, bins)) if rng.random() < 0.7 else bins
        mask[low:high, start : start + length] = 1.0
    return mask


@dataclass(frozen=True)
class InpaintBatch:
    """Patches (B, F, T) on the 32 kHz grid; ``low_bin`` (B,) is where each starts."""

    level: Tensor
    mask: Tensor
    prior_mean: Tensor
    prior_log_variance: Tensor
    target: Tensor
    low_bin: Tensor

    @property
    def replace(self) -> Tensor:
        """Bins to be filled, (B, F, T) in {0, 1}."""
        return (self.mask > MASK_REPLACE).to(self.mask.dtype)


def _patch(pool: SoundscapePool, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return level, mask, prior mean and log-variance, target (all (F, T)) and the first bin."""
    scape = pool.draw()
    total = len(scape.mixture)
    samples = (SCENE_FRAMES + 3) * GRID.hop_length
    removed = np.zeros(total, np.float32)
    start = int(rng.integers(0, total - samples))
    middle = int(rng.integers(0, SCENE_FRAMES))
    if scape.events:
        chosen = scape.events[rng.integers(len(scape.events))]
        start = _start_near(chosen, samples, total, rng)
        inside_s = rng.uniform(chosen.onset_s, chosen.offset_s) - start / INPAINT_RATE_HZ
        middle = round(inside_s * INPAINT_RATE_HZ / GRID.hop_length)
        for event in scape.events:
            if event.label == chosen.label:
                removed += event.stem
    part = slice(start, start + samples)
    gain = np.float32(10.0 ** (rng.uniform(-20.0, 6.0) / 20.0))
    event_wave = torch.from_numpy(np.asarray(removed[part] * gain, np.float32))
    rest_wave = torch.from_numpy(np.asarray((scape.mixture - removed)[part] * gain, np.float32))
    event_spectrum, rest_spectrum = analyse(event_wave, GRID), analyse(rest_wave, GRID)
    low = 0 if rng.random() < 0.3 else int(rng.integers(0, INPAINT_BINS - PATCH_BINS + 1))
    bins = slice(low, low + PATCH_BINS)
    mask = _worn(oracle_mask(event_spectrum, rest_spectrum, bins), rng)
    gains = gain_of(torch.from_numpy(mask)).clamp_min(1e-3)
    mixed, rest = (event_spectrum + rest_spectrum).T[bins], rest_spectrum.T[bins]
    level = (log_magnitude(power_of(mixed)) + gains.log()).numpy()
    prior = interpolate_in_time(level, known_weight(mask), GRID.hop_s)
    first = int(np.clip(middle - PATCH_FRAMES // 2, 0, SCENE_FRAMES - PATCH_FRAMES))
    frames = slice(first, first + PATCH_FRAMES)
    reference = np.float32(prior.mean[:, frames].mean())
    return (
        level[:, frames] - reference,
        mask[:, frames],
        prior.mean[:, frames] - reference,
        prior.log_variance[:, frames],
        log_magnitude(power_of(rest)).numpy()[:, frames] - reference,
        np.float32(low),
    )


def inpaint_batches(pool: SoundscapePool, batch_size: int, seed: int) -> Iterator[InpaintBatch]:
    """Yield batches of patches for ever."""
    rng = np.random.default_rng(seed)
    while True:
        pool.refresh()
        columns = zip(*(_patch(pool, rng) for _ in range(batch_size)), strict=True)
        yield InpaintBatch(*(torch.from_numpy(np.stack(column)) for column in columns))
