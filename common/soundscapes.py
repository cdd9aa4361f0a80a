"""Soundscapes: mixtures of labelled clips with every stem kept, reproducible from a seed.

The training data of the segmenter, the enhancer and the restorer, and their fixed evaluation sets.
Foreground events of known onset, offset and signal-to-noise ratio stand in a simulated room before
a background that lasts. Leaves out level augmentation and features, which differ by model.

Source: Salamon et al. 2017, "Scaper: a library for soundscape synthesis and augmentation", for the
idea of events drawn by label, time and SNR; the code and the room are our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft, signal

from common.datasets import Clip, ClipBank
from common.labels import BACKGROUND_LABELS

Waveform = npt.NDArray[np.float32]

_FRAME_S = 0.01
_ACTIVE_RANGE_DB = 35.0  # an event lasts while within this of its loudest frame
_STEADY_RANGE_DB = 20.0  # clips with less between floor and peak are active throughout
_FLOOR_MARGIN_DB = 6.0
_SPLIT_GAP_S = 0.3
_MIN_EVENT_S = 0.015
_FADE_S = 0.005
_PEAK = 0.98


@dataclass(frozen=True)
class PlacedEvent:
    """One event of a soundscape. ``segment`` begins at sample ``start``; elsewhere it is silent.

    ``labels`` are all those of its clip, the clip's ``label`` first.
    """

    labels: tuple[str, ...]
    onset_s: float
    offset_s: float
    snr_db: float  # power while active over the mean power of the background
    segment: Waveform
    start: int
    n_samples: int

    @property
    def label(self) -> str:
        """The first of the labels."""
        return self.labels[0]

    @property
    def stem(self) -> Waveform:
        """The event alone, (n_samples,): a new array at each call."""
        stem = np.zeros(self.n_samples, np.float32)
        stem[self.start : self.start + len(self.segment)] = self.segment
        return stem


@dataclass(frozen=True)
class Soundscape:
    """``mixture`` (n,) is ``background`` (n,) plus the stems of the events, sorted by onset."""

    sample_rate: int
    mixture: Waveform
    background: Waveform
    background_labels: tuple[str, ...]  # all those of its clip; none: coloured noise
    events: tuple[PlacedEvent, ...]

    @property
    def background_label(self) -> str | None:
        """The first of the background's labels; None: coloured noise."""
        return self.background_labels[0] if self.background_labels else None


@dataclass(frozen=True)
class Span:
    """Samples ``start`` to ``stop`` (exclusive)."""

    start: int
    stop: int


@dataclass(frozen=True)
class Cast:
    """Which clips play in the foreground and which in the background."""

    foreground: tuple[Clip, ...]
    background: tuple[Clip, ...]


def cast_of(clips: Sequence[Clip]) -> Cast:
    """Part clips by whether all their labels are the background's."""
    foreground = tuple(clip for clip in clips if not BACKGROUND_LABELS.issuperset(clip.labels))
    background = tuple(clip for clip in clips if BACKGROUND_LABELS.issuperset(clip.labels))
    return Cast(foreground, background)


def active_spans(waveform: Waveform, sample_rate: int) -> list[Span]:
    """Return where a clip really sounds: silence around it cut off, long gaps inside it left out.

    A frame of 10 ms is active within 35 dB of the loudest one. A clip whose quietest tenth lies
    over 20 dB below its peak must also rise 6 dB above that floor, so that the hiss of a recorded
    bark does not count as the bark.

    Args:
        waveform: (n,).
        sample_rate: hertz.

    Returns:
        Spans in order; none if the clip is silent.
    """
    frame = max(1, round(_FRAME_S * sample_rate))
    n_frames = -(-len(waveform) // frame)
    padded = np.zeros(n_frames * frame, np.float32)
    padded[: len(waveform)] = waveform
    power = np.square(padded).reshape(n_frames, frame).mean(axis=1)
    if not len(power) or power.max() <= 1e-10:
        return []
    level_db = 10.0 * np.log10(power + 1e-12)
    peak_db, floor_db = level_db.max(), np.quantile(level_db, 0.1)
    threshold_db = peak_db - _ACTIVE_RANGE_DB
    if peak_db - floor_db > _STEADY_RANGE_DB:
        threshold_db = max(threshold_db, floor_db + _FLOOR_MARGIN_DB)
    active = np.flatnonzero(level_db >= threshold_db)
    breaks = np.flatnonzero(np.diff(active) > round(_SPLIT_GAP_S / _FRAME_S))
    firsts = active[np.concatenate([[0], breaks + 1])]
    lasts = active[np.concatenate([breaks, [len(active) - 1]])]
    spans = [
        Span(int(first) * frame, min((int(last) + 1) * frame, len(waveform)))
        for first, last in zip(firsts, lasts, strict=True)
    ]
    return [span for span in spans if span.stop - span.start >= _MIN_EVENT_S * sample_rate]


def make_soundscape(
    bank: ClipBank,
    clips_fg: Sequence[Clip],
    clips_bg: Sequence[Clip],
    rng: np.random.Generator,
    duration_s: float = 10.0,
    max_events: int = 9,
    snr_db: tuple[float, float] = (-5.0, 30.0),
    reverb: bool = True,
    min_events: int = 1,
) -> Soundscape:
    """Return a new soundscape; the same generator state gives the same one.

    Labels are drawn evenly, then a clip whose first label it is, so that rare classes sound as
    often as common ones. A clip with gaps gives several events at one gain. Half of the
    soundscapes stand in a simulated room if ``reverb``; an event's stem has its reverberation.

    Args:
        bank: where the waveforms are.
        clips_fg: clips for events; not empty unless ``max_events`` is 0.
        clips_bg: clips for backgrounds; a quarter of the backgrounds, and all if it is empty, are
            coloured noise.
        rng: the only source of chance.
        duration_s: length of the soundscape.
        max_events: at most so many events; how many is drawn evenly from ``min_events`` on.
        snr_db: range of the events' signal-to-noise ratios, drawn evenly.
        reverb: whether there may be a room.
        min_events: at least so many events (fewer only if every clip drawn is silent).
    """
    rate = bank.sample_rate
    n_samples = round(duration_s * rate)
    background, background_labels = _background(bank, clips_bg, rng, n_samples)
    background *= np.float32(10.0 ** (rng.uniform(-50.0, -22.0) / 20.0) / _rms(background))
    room = _Room(rng, rate) if reverb and rng.random() < 0.5 else None

    wanted = int(rng.integers(min_events, max_events + 1))
    by_label: dict[str, list[Clip]] = {}
    for clip in clips_fg:
        by_label.setdefault(clip.label, []).append(clip)
    labels = sorted(by_label)
    events: list[PlacedEvent] = []
    for _ in range(4 * wanted):
        if len(events) >= wanted:
            break
        label = labels[rng.integers(len(labels))]
        clip = by_label[label][rng.integers(len(by_label[label]))]
        segments = _segments(bank.waveform(clip), rate, rng, wanted - len(events), n_samples)
        event_snr_db = float(rng.uniform(*snr_db))
        events += _place(clip.labels, segments, event_snr_db, background, room, rng, rate)
    events.sort(key=lambda event: event.onset_s)

    mixture = background.copy()
    for event in events:
        mixture[event.start : event.start + len(event.segment)] += event.segment
    peak = float(np.abs(mixture).max(initial=0.0))
    if peak > _PEAK:
        scale = np.float32(_PEAK / peak)
        mixture *= scale
        background *= scale
        for event in events:
            event.segment[:] *= scale
    return Soundscape(rate, mixture, background, background_labels, tuple(events))


def soundscapes_of(
    bank: ClipBank,
    clips: Sequence[Clip],
    n: int,
    seed: int,
    duration_s: float = 10.0,
    max_events: int = 9,
    snr_db: tuple[float, float] = (-5.0, 30.0),
) -> Iterator[Soundscape]:
    """Yield ``n`` fixed soundscapes of clips; number i is the same whatever ``n`` is.

    Raises:
        ValueError: none of the clips can stand in the foreground.
    """
    cast = cast_of(clips)
    if not cast.foreground:
        raise ValueError("there are no foreground clips to make soundscapes of")
    for index in range(n):
        rng = np.random.default_rng((seed, index))
        yield make_soundscape(
            bank, cast.foreground, cast.background, rng, duration_s, max_events, snr_db
        )


class _Room:
    """A simulated room: direct sound, a few early reflections, a diffuse exponential tail.

    Source: Moorer 1979, "About this reverberation business", for the tail as decaying noise. The
    tail's high frequencies decay faster, by one low-pass filter rather than per band.
    """

    def __init__(self, rng: np.random.Generator, sample_rate: int) -> None:
        self._rng = rng
        self._rate = sample_rate
        self._decay_s = float(rng.uniform(0.12, 0.8))  # time to fall by 60 dB
        self._direct_db = float(rng.uniform(0.0, 15.0))  # direct over reverberant energy
        self._pole = float(rng.uniform(0.3, 0.8))

    def wet(self, dry: Waveform) -> Waveform:
        """Return ``dry`` with its reverberation, longer by three quarters of the decay time."""
        rng, n = self._rng, round(0.75 * self._decay_s * self._rate)
        time_s = np.arange(n, dtype=np.float32) / np.float32(self._rate)
        noise = rng.standard_normal(n, dtype=np.float32)
        tail = signal.lfilter([1.0 - self._pole], [1.0, -self._pole], noise)
        tail *= np.exp(-6.9078 / self._decay_s * time_s)  # ln(1000)
        tail[: round(0.003 * self._rate)] = 0.0
        for _ in range(4):
            index = rng.integers(n // 60, n // 6)
            tail[index] += rng.uniform(-6.0, 6.0) * np.exp(-6.9078 / self._decay_s * time_s[index])
        tail *= 10.0 ** (-self._direct_db / 20.0) / np.sqrt(np.square(tail).sum() + 1e-12)
        tail[0] = 1.0
        return np.asarray(signal.oaconvolve(dry, tail.astype(np.float32)), np.float32)


def _segments(
    waveform: Waveform, rate: int, rng: np.random.Generator, most: int, n_samples: int
) -> list[tuple[int, Waveform]]:
    """Return up to ``most`` neighbouring active segments of a clip, each with its start.

    Starts count from the first active sample. Of a clip that goes on for longer than ``n_samples``
    from there, the rest is left out: a scene has no room for it.
    """
    spans = active_spans(waveform, rate)
    if not spans:
        return []
    first = int(rng.integers(max(1, len(spans) - most + 1)))
    origin = spans[first].start
    end = origin + n_samples
    segments = []
    for span in spans[first : first + most]:
        start, stop = span.start, min(span.stop, end)
        if start >= stop:
            break
        length = stop - start
        if length > 0.5 * rate and rng.random() < 0.3:  # a part of a long event
            length = int(rng.uniform(0.25 * rate, length))
            start += int(rng.integers(stop - start - length + 1))
        segment = waveform[start : start + length].astype(np.float32)
        segments.append((start - origin, _faded(segment, rate)))
    return segments


def _place(
    labels: tuple[str, ...],
    segments: list[tuple[int, Waveform]],
    snr_db: float,
    background: Waveform,
    room: _Room | None,
    rng: np.random.Generator,
    rate: int,
) -> list[PlacedEvent]:
    """Return the segments of one clip as events at one gain, in time as in the clip."""
    if not segments:
        return []
    n_samples = len(background)
    power = max(float(np.square(segment).mean()) for _, segment in segments)
    gain = np.float32(10.0 ** (snr_db / 20.0) * _rms(background) / np.sqrt(power + 1e-12))
    extent = segments[-1][0] + len(segments[-1][1])
    base = int(rng.integers(n_samples - extent + 1))
    events = []
    for offset, segment in segments:
        start = base + offset
        sounding = segment * gain if room is None else room.wet(segment * gain)
        sounding = sounding[: n_samples - start]
        spans = active_spans(sounding, rate)
        if not spans:
            continue
        onset_s, offset_s = (start + spans[0].start) / rate, (start + spans[-1].stop) / rate
        events.append(PlacedEvent(labels, onset_s, offset_s, snr_db, sounding, start, n_samples))
    return events


def _background(
    bank: ClipBank, clips: Sequence[Clip], rng: np.random.Generator, n_samples: int
) -> tuple[Waveform, tuple[str, ...]]:
    if len(clips) and rng.random() < 0.75:
        labels = sorted({clip.label for clip in clips})
        label = labels[rng.integers(len(labels))]
        choice = [clip for clip in clips if clip.label == label]
        clip = choice[rng.integers(len(choice))]
        waveform = bank.waveform(clip)
        if len(waveform) >= 0.5 * bank.sample_rate and _rms(waveform) > 1e-5:
            return _looped(waveform, n_samples, rng, bank.sample_rate), clip.labels
    return coloured_noise(n_samples, rng), ()


def coloured_noise(n_samples: int, rng: np.random.Generator) -> Waveform:
    """Return noise (n_samples,) of unit power that falls by 0 to 9 dB per octave."""
    n_fft = fft.next_fast_len(max(2, n_samples), real=True)
    n_bins = n_fft // 2 + 1
    shape = (np.arange(n_bins) + n_fft / 2000.0) ** -rng.uniform(0.0, 1.5)
    phases = rng.uniform(0.0, 2.0 * np.pi, n_bins)
    spectrum = (shape * np.exp(1j * phases)).astype(np.complex64)
    noise = np.asarray(fft.irfft(spectrum, n_fft), np.float32)[:n_samples]
    return noise / np.float32(_rms(noise))


def _looped(waveform: Waveform, n_samples: int, rng: np.random.Generator, rate: int) -> Waveform:
    """Return ``waveform`` from a random place on, repeated with equal-power cross-fades."""
    fade = min(len(waveform) // 4, round(0.4 * rate))
    ramp = np.sin(np.linspace(0.0, np.pi / 2, fade, dtype=np.float32))
    period = waveform[: len(waveform) - fade].copy()
    period[:fade] = period[:fade] * ramp + waveform[len(waveform) - fade :] * ramp[::-1]
    start = int(rng.integers(len(period)))
    repeats = -(-(start + n_samples) // len(period))
    return np.tile(period, repeats)[start : start + n_samples]


def _faded(segment: Waveform, rate: int) -> Waveform:
    """Return ``segment`` with short fades, so that a cut makes no click."""
    n = min(round(_FADE_S * rate), len(segment) // 4)
    ramp = np.linspace(0.0, 1.0, n, endpoint=False, dtype=np.float32)
    faded = segment.copy()
    faded[:n] *= ramp
    faded[len(faded) - n :] *= ramp[::-1]
    return faded


def _rms(waveform: Waveform) -> float:
    return float(np.sqrt(np.square(waveform).mean() + 1e-12))
