"""The restorer on whole recordings: what goes, what stays bit for bit, odd inputs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from common.domain import ArtifactKind, Event
from common.errors import ArtifactInvalid
from common.masks import (
    EMBEDDING_BANDS,
    EMBEDDING_HOP_S,
    MASK_BANDS,
    MASK_CENTRES_HZ,
    MASK_HOP_S,
    EmbeddingWriter,
    MaskWriter,
)
from common.params import RestoreParams
from common.stage_io import StageInput, StageOutput
from services.restorer import infer
from services.restorer.config import InpainterConfig, RecogniserConfig
from services.restorer.infer import LoadedRestorer
from services.restorer.model import Inpainter, Recogniser

TINY_RECOGNISER = RecogniserConfig(channels=(16, 16, 16, 16), hidden=8, threshold=0.0)
TINY_INPAINTER = InpainterConfig(width=4, deep_width=4, dilations=(1, 2))
LABEL = "siren"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _event(onset_s: float, offset_s: float, label: str = LABEL) -> Event:
    return Event(label, onset_s, offset_s, 0.9)


def _loaded(threshold: float = 0.0) -> LoadedRestorer:
    """Untrained models; with threshold 0 every region is confirmed, and heard again."""
    torch.manual_seed(0)
    config = replace(TINY_RECOGNISER, threshold=threshold)
    models = Recogniser(config).eval(), Inpainter(TINY_INPAINTER).eval()
    return LoadedRestorer(*models, "cpu", "0" * 64)


def _artifacts(
    folder: Path, duration_s: float, regions: list[Event], band_hz: tuple[float, float]
) -> dict[ArtifactKind, Path]:
    """Write events, and a mask and embedding that mark ``band_hz`` during ``regions``."""
    centres = MASK_CENTRES_HZ()
    times_s = np.arange(math.ceil(duration_s / MASK_HOP_S)) * MASK_HOP_S
    mask = np.zeros((MASK_BANDS, len(times_s)), np.float32)
    band = (centres >= band_hz[0]) & (centres <= band_hz[1])
    for region in regions:
        during = (times_s >= region.onset_s - 0.02) & (times_s <= region.offset_s + 0.02)
        mask[np.ix_(band, during)] = 1.0
    paths = {
        ArtifactKind.MASK: folder / "mask.npz",
        ArtifactKind.EMBEDDING: folder / "embedding.npz",
        ArtifactKind.EVENTS: folder / "events.json",
    }
    with MaskWriter(paths[ArtifactKind.MASK]) as mask_writer:
        mask_writer.append(mask)
    vectors = np.eye(2, 8, dtype=np.float32) * 6.0
    frames = math.ceil(duration_s / EMBEDDING_HOP_S)
    embedding = np.zeros((8, EMBEDDING_BANDS, frames), np.float32)
    embedding[0] = 1.0
    with EmbeddingWriter(
        paths[ArtifactKind.EMBEDDING], (LABEL, "dog"), vectors, np.full(2, -3.0, np.float32)
    ) as embedding_writer:
        embedding_writer.append(embedding)
    document = {
        "version": 1,
        "duration_s": duration_s,
        "events": [asdict(region) for region in regions],
        "tags": [],
    }
    paths[ArtifactKind.EVENTS].write_text(json.dumps(document))
    return paths


def _run(
    folder: Path,
    samples: np.ndarray,
    rate: int,
    regions: list[Event],
    loaded: LoadedRestorer | None = None,
    band_hz: tuple[float, float] = (500.0, 2500.0),
) -> tuple[StageOutput, np.ndarray, list[dict[str, object]]]:
    """Process samples (C, n); return the output, its samples (C, n) and the removals."""
    folder.mkdir(parents=True, exist_ok=True)
    audio = folder / "in.wav"
    soundfile.write(audio, samples.T, rate, subtype="PCM_24", format="WAV")
    scratch = folder / "scratch"
    scratch.mkdir()
    item = StageInput(
        "in.wav",
        audio,
        RestoreParams(remove=(LABEL,)),
        _artifacts(folder, samples.shape[1] / rate, regions, band_hz),
        scratch,
    )
    output = infer.process(loaded or _loaded(), item)
    restored, out_rate = soundfile.read(
        output.files[ArtifactKind.RESTORED].path, dtype="float32", always_2d=True
    )
    assert out_rate == rate
    removals = json.loads(output.files[ArtifactKind.REMOVALS].path.read_text())["removals"]
    return output, restored.T, removals


def _scene(rate: int, duration_s: float, onset_s: float, offset_s: float) -> np.ndarray:
    """Return (1, n): soft noise and, between the times, a loud 1 kHz tone; exact in 24 bits."""
    n = round(rate * duration_s)
    time = np.arange(n) / rate
    noise = 0.01 * np.random.default_rng(0).standard_normal(n)
    tone = 0.5 * np.sin(2 * np.pi * 1000 * time) * ((time >= onset_s) & (time < offset_s))
    return (np.rint((noise + tone) * 2**23) / 2**23).astype(np.float32)[None]


def _read_input(folder: Path) -> np.ndarray:
    samples, _ = soundfile.read(folder / "in.wav", dtype="float32", always_2d=True)
    return samples.T


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_event_goes_and_the_rest_is_bit_exact(tmp_path: Path, rate: int) -> None:
    samples = _scene(rate, 4.0, 1.5, 2.0)
    region = _event(1.5, 2.0)
    output, restored, removals = _run(tmp_path, samples, rate, [region])
    assert restored.shape == samples.shape
    outside = np.ones(samples.shape[1], bool)
    outside[int(1.3 * rate) : int(2.2 * rate)] = False
    np.testing.assert_array_equal(restored[:, outside], samples[:, outside])
    inside = slice(int(1.55 * rate), int(1.95 * rate))
    before, after = (np.square(x[0, inside]).mean() for x in (samples, restored))
    assert 10 * np.log10(before / after) > 20.0
    noise = np.square(samples[0, :rate]).mean()
    assert 10 * abs(np.log10(after / noise)) < 4.0  # as loud as the noise around it
    assert output.result == {"removed": 1, "kept": 0}
    assert output.audio.duration_s == pytest.approx(4.0)
    assert removals[0]["label"] == LABEL
    assert removals[0]["action"] in ("removed", "reduced")
    assert 200.0 < float(str(removals[0]["low_hz"])) < 1000.0
    assert 1000.0 < float(str(removals[0]["high_hz"])) < 3500.0


def test_same_input_same_output(tmp_path: Path) -> None:
    samples = _scene(8_000, 3.0, 1.0, 1.5)
    runs = [_run(tmp_path / name, samples, 8_000, [_event(1.0, 1.5)])[1] for name in "ab"]
    np.testing.assert_array_equal(runs[0], runs[1])


def test_recogniser_may_abstain(tmp_path: Path) -> None:
    samples = _scene(8_000, 3.0, 1.0, 1.5)
    output, restored, removals = _run(
        tmp_path, samples, 8_000, [_event(1.0, 1.5)], _loaded(threshold=2.0)
    )
    np.testing.assert_array_equal(restored, samples)
    assert output.result == {"removed": 0, "kept": 1}
    assert removals[0]["action"] == "kept"


def test_nothing_to_remove_is_a_copy(tmp_path: Path) -> None:
    samples = _scene(16_000, 1.0, 0.2, 0.4)
    output, restored, removals = _run(tmp_path, samples, 16_000, [_event(0.2, 0.4, "dog")])
    np.testing.assert_array_equal(restored, samples)
    assert removals == []
    assert output.result == {"removed": 0, "kept": 0}


def test_region_longer_than_a_window(tmp_path: Path) -> None:
    rate = 8_000
    samples = _scene(rate, 27.0, 1.0, 26.0)
    _, restored, _ = _run(tmp_path, samples, rate, [_event(1.0, 26.0)])
    assert restored.shape == samples.shape
    levels = np.square(restored[0, 2 * rate : 25 * rate].reshape(-1, rate // 4)).mean(1)
    assert 10 * np.log10(levels.max()) < -30.0  # the tone had -9 dB, the noise -40
    np.testing.assert_array_equal(restored[:, : int(0.8 * rate)], samples[:, : int(0.8 * rate)])


def test_channels_keep_their_levels(tmp_path: Path) -> None:
    rate = 8_000
    left = _scene(rate, 3.0, 1.0, 1.5)
    samples = np.concatenate([left, left / 8, left])
    _, restored, _ = _run(tmp_path, samples, rate, [_event(1.0, 1.5)])
    inside = slice(int(1.1 * rate), int(1.4 * rate))
    levels = 10 * np.log10(np.square(restored[:, inside]).mean(1))
    assert levels[0] - levels[1] == pytest.approx(18.06, abs=1.0)
    np.testing.assert_allclose(restored[0], restored[2], atol=1e-6)


@pytest.mark.parametrize(
    "samples",
    [
        np.full((1, 1), 0.5, np.float32),
        np.full((1, 30), 0.25, np.float32),
        np.zeros((2, 16_000), np.float32),
        np.full((1, 16_000), 0.75, np.float32),
        np.sign(np.sin(np.arange(16_000) / 9.0)).astype(np.float32)[None] * 0.999,
        np.random.default_rng(1).uniform(-0.5, 0.5, (64, 4_000)).astype(np.float32),
    ],
    ids=["one sample", "thirty", "silence", "constant", "clipped", "64 channels"],
)
def test_odd_recordings(tmp_path: Path, samples: np.ndarray) -> None:
    output, restored, _ = _run(tmp_path, samples, 8_000, [_event(0.0, 1.5), _event(9.0, 9.5)])
    assert restored.shape == samples.shape
    assert np.isfinite(restored).all()
    if not samples.any():
        assert not restored.any()
    assert output.audio.channels == samples.shape[0]


@pytest.mark.parametrize("rate", [2_000, 11_025, 96_000])
def test_odd_rates(tmp_path: Path, rate: int) -> None:
    samples = np.random.default_rng(0).uniform(-0.2, 0.2, (1, rate)).astype(np.float32)
    _, restored, _ = _run(tmp_path, samples, rate, [_event(0.4, 0.6)])
    assert restored.shape == samples.shape
    quiet = slice(0, int(0.2 * rate))
    np.testing.assert_array_equal(restored[:, quiet], _read_input(tmp_path)[:, quiet])


def test_damaged_events_are_an_invalid_artifact(tmp_path: Path) -> None:
    path = tmp_path / "events.json"
    path.write_text('{"events": [{"label": "dog"}]}')
    with pytest.raises(ArtifactInvalid):
        infer.read_events(path)
