"""Events of the classifier: smoothing, hysteresis, gaps and edges by hand; the same at any time."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy.ndimage import median_filter
from torch import Tensor

from common.domain import Event
from common.labels import LABELS
from common.params import ClassifyParams
from common.stage_io import StageInput
from services.classifier.config import Config, HybridSettings, median_segments
from services.classifier.events import (
    Stretch,
    find_events,
    reunited,
    smoothed,
    snapped,
    spans_above,
    stretches,
    union_of,
)
from services.classifier.infer import events_in
from services.classifier.listening import LoadedClassifier, listen
from services.classifier.model import Classifier, Scores

SMALL = Config(
    network=HybridSettings(channels=(8, 8, 16, 16), patch_width=16, patch_layers=1, fused_width=16)
)
RATE, SEGMENT_S = SMALL.sample_rate, SMALL.segment_s


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# By hand


def test_runs_by_hand() -> None:
    scores = np.array([0.3, 0.6, 0.3, 0.1, 0.3, 0.3, 0.0, 0.9])
    assert spans_above(scores, high=0.5, low=0.25) == [(0, 3), (7, 8)]
    assert spans_above(np.zeros(0), 0.5, 0.25) == []


def test_union_and_snapping_by_hand() -> None:
    assert union_of([(3.0, 4.0), (0.0, 1.0), (1.1, 2.0)], 0.2) == [(0.0, 2.0), (3.0, 4.0)]
    regions = [(0.9, 1.5), (2.0, 4.0)]
    assert snapped((1.0, 3.0), regions) == (0.9, 3.0)  # no region ends near 3.0
    assert snapped((2.2, 3.9), regions) == (2.0, 4.0)
    assert snapped((5.0, 6.0), regions) == (5.0, 6.0)


def test_snapping_leaves_half_of_a_span_by_hand() -> None:
    assert snapped((2.0, 2.4), [(1.9, 2.21)]) == (1.9, 2.21)  # 0.21 of 0.4 s are left
    assert snapped((2.0, 2.4), [(1.9, 2.19)]) == (1.9, 2.4)  # 0.19 s would be
    assert snapped((2.0, 2.4), [(2.21, 2.5)]) == (2.0, 2.5)
    # either edge may move, both together may not
    assert snapped((2.0, 2.4), [(2.15, 2.25)]) == (2.15, 2.4)
    assert snapped((2.0, 2.4), [(2.001, 2.004), (2.396, 2.399)]) == (2.001, 2.399)


def test_stretches_that_meet_are_one_by_hand() -> None:
    apart, overlapping = Stretch((5.0, 6.0), 50, 60), Stretch((1.5, 2.5), 18, 25)
    inside, touching = Stretch((1.2, 1.3), 15, 16), Stretch((2.5, 3.0), 27, 30)
    assert reunited([Stretch((1.0, 2.0), 10, 14), inside, overlapping, touching, apart]) == [
        Stretch((1.0, 3.0), 10, 30),
        apart,
    ]


def test_stretches_by_hand() -> None:
    rising = np.array([0.1, 0.3, 0.5, 0.7, 0.7, 0.3, 0.1, 0.1])
    # from where it is above half of the threshold; the upper quartile of these five is 0.7
    assert stretches(rising, 0.6, gap=0) == [(1, 6)]
    assert stretches(rising, 0.75, gap=0) == []
    apart = np.array([0.8, 0.8, 0.1, 0.1, 0.8, 0.8, 0.1, 0.1, 0.1, 0.8])
    assert stretches(apart, 0.6, gap=2) == [(0, 6), (9, 10)]


def test_a_short_sure_sound_is_cut_out_of_a_long_unsure_one() -> None:
    """A murmur at half the threshold must not stretch a shout to its own length, nor hide it."""
    scores = np.full(40, 0.35)
    scores[20:24] = 0.9
    assert stretches(scores, 0.6, gap=2) == [(20, 24)]


def test_events_by_hand() -> None:
    scores = np.zeros(50, np.float32)
    scores[10:20] = 0.8  # 0.80 to 1.60 s
    scores[22:30] = 0.6  # 1.76 to 2.40 s: the gap is short
    scores[40] = 0.99  # shorter than the median filter can see
    dog = find_events(scores, "dog", [(0.7, 2.5)], 0.5, 0.08, 4.0)
    assert [(e.onset_s, e.offset_s) for e in dog] == [(0.7, 2.5)]
    # two of 0, eight of 0.6, ten of 0.8: three quarters lie at or below 0.8
    assert dog[0].confidence == pytest.approx(0.8)
    assert find_events(scores, "dog", [], 0.9, 0.08, 4.0) == []
    cut = find_events(scores, "dog", [], 0.5, 0.08, 2.0)
    assert [(e.onset_s, e.offset_s) for e in cut] == [(0.8, 2.0)]
    silence = find_events(np.zeros(50, np.float32), "dog", [], 0.0, 0.08, 4.0)
    assert silence == []


def test_two_events_drawn_to_one_region_are_one() -> None:
    """The first ends 0.24 s before the second begins; a region ends 4 ms after that."""
    scores = np.zeros(150, np.float32)
    scores[99:102] = 0.8  # 7.92 to 8.16 s
    scores[105:108] = 0.8  # 8.40 to 8.64 s
    for regions in ([], [(7.92, 8.3)]):
        assert len(find_events(scores, "dog", regions, 0.5, 0.08, 12.0)) == 2
    [dog] = find_events(scores, "dog", [(7.92, 8.404)], 0.5, 0.08, 12.0)
    assert (dog.onset_s, dog.offset_s) == (7.92, 8.64)
    # three of nine scores are 0, six are 0.8
    assert dog.confidence == pytest.approx(0.8)


@pytest.mark.parametrize("seed", range(100))
def test_events_of_a_label_stay_apart_and_keep_half_of_what_was_heard(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = smoothed(rng.random(250) ** 2, 3)
    edges_s = np.sort(rng.uniform(0.0, 20.0, 60))
    regions = [(float(a), float(b)) for a, b in edges_s.reshape(-1, 2)]
    heard = find_events(scores, "dog", [], 0.4, 0.08, 20.0)
    moved = find_events(scores, "dog", regions, 0.4, 0.08, 20.0)
    for before, after in pairwise(moved):
        assert before.offset_s < after.onset_s
    for event in heard:
        kept_s = sum(
            max(0.0, min(e.offset_s, event.offset_s) - max(e.onset_s, event.onset_s)) for e in moved
        )
        assert kept_s >= 0.5 * (event.offset_s - event.onset_s) - 2e-3  # rounded to ms


def test_background_is_not_moved_to_the_edges_of_the_foreground() -> None:
    scores = np.full(50, 0.9, np.float32)
    [rain] = find_events(scores, "rain", [(0.1, 3.9)], 0.5, 0.08, 4.0)
    assert (rain.onset_s, rain.offset_s) == (0.0, 4.0)
    [siren] = find_events(scores, "siren", [(0.1, 3.9)], 0.5, 0.08, 4.0)
    assert (siren.onset_s, siren.offset_s) == (0.1, 3.9)


@pytest.mark.parametrize("seed", range(20))
def test_no_event_is_less_sure_than_the_threshold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random(200) ** 2
    threshold = float(rng.uniform(0.1, 0.8))
    for event in find_events(scores, "dog", [], threshold, 0.08, 16.0):
        assert threshold - 1e-4 <= event.confidence <= 1.0
        assert event.offset_s > event.onset_s


@pytest.mark.parametrize("size", [1, 3, 15])
@pytest.mark.parametrize("n", [1, 2, 3, 14, 100])
def test_the_running_median_is_that_of_scipy(n: int, size: int) -> None:
    scores = np.random.default_rng(n).random(n)
    wanted = median_filter(scores, size=min(size, 2 * ((n - 1) // 2) + 1), mode="nearest")
    np.testing.assert_array_equal(smoothed(scores, size), wanted)


def test_smoothing_fits_the_label() -> None:
    assert all(median_segments(label, 0.08) % 2 == 1 for label in (*LABELS, "owl"))
    gun_shot, owl, rain = (median_segments(label, 0.08) for label in ("gun_shot", "owl", "rain"))
    assert gun_shot < owl < rain  # a label that is not ours is neither


# The same at any time


class Loudness(Classifier):
    """Hears a dog wherever it is loud: each segment by itself and its neighbours."""

    def forward(self, logmel: Tensor, mask: Tensor | None = None) -> Scores:
        loud = logmel.mean(1).unflatten(1, (-1, 8)).mean(2)[:, None]  # (B, 1, t)
        loud = torch.nn.functional.avg_pool1d(loud, 3, 1, 1, count_include_pad=False)
        logits = torch.full((len(loud), len(LABELS), loud.shape[2]), -9.0)
        logits[:, LABELS.index("dog")] = 2.0 * (loud[:, 0] + 4.0)
        return Scores(logits.amax(2), logits, (), logits)


@pytest.fixture(scope="module")
def loaded() -> LoadedClassifier:
    return LoadedClassifier(Loudness(SMALL).eval(), SMALL, "cpu", "0" * 64)


def events_of(loaded: LoadedClassifier, waveform: np.ndarray, folder: Path) -> list[Event]:
    path = folder / "a.wav"
    soundfile.write(path, waveform, RATE, subtype="FLOAT")
    heard = listen(loaded, StageInput("a", path, ClassifyParams(), {}, folder), None)
    return events_in(heard, loaded.config, [])


def barks(onsets_s: list[float], duration_s: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    waveform = 1e-4 * rng.standard_normal(round(duration_s * RATE))
    for onset_s in onsets_s:
        start = round(onset_s * RATE)
        waveform[start : start + RATE] += 0.3 * rng.standard_normal(RATE)
    return waveform


def test_events_are_the_same_wherever_window_borders_fall(
    loaded: LoadedClassifier, tmp_path: Path
) -> None:
    """Windows begin every 4.08 s; a bark of a second meets every part of one."""
    onsets_s = [1.0 + 2.4 * number for number in range(24)]
    found = events_of(loaded, barks(onsets_s, 60.0), tmp_path)
    assert [event.label for event in found] == ["dog"] * len(onsets_s)
    for event, onset_s in zip(found, onsets_s, strict=True):
        assert event.onset_s == pytest.approx(onset_s, abs=SEGMENT_S + 1e-3)
        assert event.offset_s == pytest.approx(onset_s + 1.0, abs=SEGMENT_S + 1e-3)
    assert np.ptp([event.confidence for event in found]) < 0.02


@pytest.mark.parametrize("shift_s", [0.8, 2.0, 4.0])
def test_events_move_with_the_sound(
    loaded: LoadedClassifier, tmp_path: Path, shift_s: float
) -> None:
    waveform = barks([2.0, 5.5, 9.0, 10.5], 14.0)
    padded = np.concatenate([barks([], shift_s), waveform])
    before, after = (events_of(loaded, samples, tmp_path) for samples in (waveform, padded))
    assert len(before) == len(after) == 4
    for a, b in zip(before, after, strict=True):
        assert b.onset_s - shift_s == pytest.approx(a.onset_s, abs=SEGMENT_S + 1e-3)
        assert b.offset_s - shift_s == pytest.approx(a.offset_s, abs=SEGMENT_S + 1e-3)


def test_windows_give_what_the_whole_gives(loaded: LoadedClassifier, tmp_path: Path) -> None:
    waveform = barks([0.3, 4.6, 8.9, 12.2, 16.0], 20.0).astype(np.float32)
    path = tmp_path / "a.wav"
    soundfile.write(path, waveform, RATE, subtype="FLOAT")
    heard = listen(loaded, StageInput("a", path, ClassifyParams(), {}, tmp_path), None)
    with torch.inference_mode():
        model = loaded.model
        whole = model(model.features(torch.from_numpy(waveform)[None])).segments[0].numpy()
    difference = np.abs(heard.segments.astype(np.float32) - whole.clip(-20.0))
    assert difference.max() < 1.0  # where a window sees no surroundings
    assert np.median(difference) < 0.01


def test_one_long_sound_across_many_windows_is_one_event(
    loaded: LoadedClassifier, tmp_path: Path
) -> None:
    waveform = 0.3 * np.random.default_rng(0).standard_normal(30 * RATE)
    [event] = events_of(loaded, waveform, tmp_path)
    assert (event.onset_s, event.offset_s) == (0.0, 30.0)
