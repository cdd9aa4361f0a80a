"""Soundscapes: stems add up, onsets follow the sound, the same seed gives the same thing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from common.datasets import Clip, in_split
from common.soundscapes import (
    Span,
    active_spans,
    cast_of,
    coloured_noise,
    make_soundscape,
    soundscapes_of,
)

RATE = 32_000


@dataclass
class ArrayBank:
    """A ClipBank whose waveforms are arrays."""

    clips: list[Clip]
    arrays: list[np.ndarray]
    sample_rate: int = RATE

    def waveform(self, clip: Clip) -> np.ndarray:
        return self.arrays[clip.index].copy()


def tone(duration_s: float, frequency_hz: float = 1000.0) -> np.ndarray:
    time_s = np.arange(round(duration_s * RATE)) / RATE
    return (0.5 * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)


def silence(duration_s: float) -> np.ndarray:
    return np.zeros(round(duration_s * RATE), np.float32)


def bank() -> ArrayBank:
    rng = np.random.default_rng(0)
    bark = np.concatenate([silence(0.5), tone(0.2), silence(1.0), tone(0.3), silence(0.5)])
    rain = 0.1 * rng.standard_normal(3 * RATE).astype(np.float32)
    clips, arrays = [], []
    # UrbanSound8K fold 3 is the test split
    for label, fold, waveform in (
        ("dog", 3, bark),
        ("siren", 3, tone(4.0, 700.0)),
        ("gun_shot", 1, tone(0.05, 2000.0)),
        ("rain", 3, rain),
        ("car_horn", 3, silence(1.0)),
    ):
        index = len(clips)
        clips.append(Clip(Path(f"{index}.wav"), label, "us8k", fold, str(index), index))
        arrays.append(waveform)
    return ArrayBank(clips, arrays)


def test_active_spans_by_hand() -> None:
    clip = np.concatenate([silence(0.5), tone(0.2), silence(1.0), tone(0.3), silence(0.5)])
    expected = [Span(16_000, 22_400), Span(54_400, 64_000)]
    assert active_spans(clip, RATE) == expected
    hissing = clip + 0.002 * np.random.default_rng(0).standard_normal(len(clip)).astype(np.float32)
    assert active_spans(hissing, RATE) == expected
    assert active_spans(silence(1.0), RATE) == []
    assert active_spans(np.zeros(0, np.float32), RATE) == []
    short_gap = np.concatenate([tone(0.2), silence(0.2), tone(0.2)])
    assert active_spans(short_gap, RATE) == [Span(0, len(short_gap))]


@pytest.mark.parametrize("seed", range(6))
def test_stems_add_up_and_sound_while_active(seed: int) -> None:
    clips = bank()
    cast = cast_of(clips.clips)
    rng = np.random.default_rng(seed)
    scape = make_soundscape(clips, cast.foreground, cast.background, rng, duration_s=6.0)
    assert scape.mixture.shape == scape.background.shape == (6 * RATE,)
    assert scape.mixture.dtype == np.float32
    assert 1 <= len(scape.events) <= 9
    total = scape.background + sum(event.stem for event in scape.events)
    np.testing.assert_allclose(scape.mixture, total, atol=1e-5)
    assert np.abs(scape.mixture).max() <= 0.99
    onsets = [event.onset_s for event in scape.events]
    assert onsets == sorted(onsets)
    for event in scape.events:
        assert event.label in {"dog", "siren", "gun_shot"}
        assert 0.0 <= event.onset_s < event.offset_s <= 6.0
        inside = event.stem[round(event.onset_s * RATE) : round(event.offset_s * RATE)]
        share = np.square(inside).sum() / np.square(event.stem).sum()
        assert share > 0.99


def test_snr_is_what_it_says() -> None:
    clips = bank()
    siren = [clip for clip in clips.clips if clip.label == "siren"]
    rng = np.random.default_rng(3)
    scape = make_soundscape(clips, siren, [], rng, max_events=1, snr_db=(6.0, 6.0), reverb=False)
    event = scape.events[0]
    power = np.square(event.segment).mean() / np.square(scape.background).mean()
    assert 10 * np.log10(power) == pytest.approx(6.0, abs=0.2)
    assert scape.background_label is None


def test_the_same_seed_gives_the_same_soundscape() -> None:
    clips = bank()
    cast = cast_of(clips.clips)
    one, two = (
        make_soundscape(clips, cast.foreground, cast.background, np.random.default_rng(7))
        for _ in range(2)
    )
    np.testing.assert_array_equal(one.mixture, two.mixture)
    assert [event.label for event in one.events] == [event.label for event in two.events]


def test_all_labels_of_a_clip_go_along() -> None:
    """Whether a sound stands in front is a matter of all its labels, too."""
    clips = [
        Clip(Path(f"{index}.wav"), labels[0], "fsd50k", 1, str(index), index, labels)
        for index, labels in enumerate([("rain", "dog"), ("rain", "sea_waves"), ("dog", "animal")])
    ]
    bank = ArrayBank(clips, [tone(1.0), tone(2.0, 300.0), tone(1.0)])
    cast = cast_of(clips)
    assert cast.foreground == (clips[0], clips[2])
    assert cast.background == (clips[1],)
    scapes = list(soundscapes_of(bank, clips, 20, seed=0, duration_s=2.0))
    events = [event for scape in scapes for event in scape.events]
    assert {event.labels for event in events} == {("rain", "dog"), ("dog", "animal")}
    assert {event.label for event in events} == {"rain", "dog"}
    assert {s.background_labels for s in scapes} == {(), ("rain", "sea_waves")}
    assert {s.background_label for s in scapes} == {None, "rain"}


def test_no_events_and_silent_clips() -> None:
    clips = bank()
    rng = np.random.default_rng(0)
    empty = make_soundscape(clips, [], [], rng, 1.0, max_events=0, min_events=0)
    assert empty.events == ()
    np.testing.assert_array_equal(empty.mixture, empty.background)
    horn = [clip for clip in clips.clips if clip.label == "car_horn"]
    assert make_soundscape(clips, horn, [], rng, 1.0).events == ()


@pytest.mark.parametrize("reverb", [False, True])
def test_of_a_clip_longer_than_the_scene_only_the_beginning_is_heard(reverb: bool) -> None:
    """A second of sound, ten of silence and three of sound do not fit into ten seconds."""
    barks = np.concatenate([tone(1.0), silence(10.0), tone(3.0)])
    clips = [Clip(Path("0.wav"), "dog", "us8k", 3, "0", 0)]
    bank = ArrayBank(clips, [barks])
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scape = make_soundscape(bank, clips, [], rng, max_events=2, min_events=2, reverb=reverb)
        total = scape.background + sum(event.stem for event in scape.events)
        np.testing.assert_allclose(scape.mixture, total, atol=1e-5)
        # either time the clip is drawn it gives one event: its other bark begins after 11 s
        assert len(scape.events) == 2
        assert all(0.0 <= event.onset_s < event.offset_s <= 10.0 for event in scape.events)


def test_of_a_sound_longer_than_the_scene_a_part_is_heard() -> None:
    clips = [Clip(Path("0.wav"), "siren", "us8k", 3, "0", 0)]
    bank = ArrayBank(clips, [tone(30.0)])
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scape = make_soundscape(bank, clips, [], rng, 2.0, max_events=1, reverb=False)
        [event] = scape.events
        assert 0.0 <= event.onset_s < event.offset_s <= 2.0
        assert event.start + len(event.segment) <= 2 * RATE


def test_soundscapes_of_the_test_split_use_no_other_clip() -> None:
    clips = bank()
    held_out = in_split(clips.clips, "test")
    scapes = list(soundscapes_of(clips, held_out, 3, seed=1, duration_s=2.0))
    assert len(scapes) == 3
    assert all(event.label != "gun_shot" for scape in scapes for event in scape.events)
    again = list(soundscapes_of(clips, held_out, 2, seed=1, duration_s=2.0))
    np.testing.assert_array_equal(scapes[1].mixture, again[1].mixture)
    with pytest.raises(ValueError, match="no foreground"):
        list(soundscapes_of(clips, in_split(clips.clips[2:3], "test"), 1, seed=1))


def test_coloured_noise() -> None:
    noise = coloured_noise(5001, np.random.default_rng(0))
    assert noise.shape == (5001,)
    assert np.square(noise).mean() == pytest.approx(1.0, rel=1e-3)
