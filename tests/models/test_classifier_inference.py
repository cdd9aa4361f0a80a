"""The classifier's inference: odd recordings, windows and their borders, shards, vectors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from common import checkpoint
from common.domain import ArtifactKind
from common.errors import ArtifactInvalid, AudioEmpty, AudioUnreadable
from common.labels import LABELS
from common.masks import MaskWriter
from common.params import ClassifyParams
from common.results import parse_events, parse_summary
from common.stage_io import Done, Phases, StageInput, StageOutput
from common.vectors import VectorReader
from services.classifier import infer, listening
from services.classifier.config import WINDOW_SEGMENTS, Config, HybridSettings
from services.classifier.listening import LoadedClassifier, listen
from services.classifier.model import Classifier, build

SMALL = Config(
    network=HybridSettings(channels=(8, 8, 16, 16), patch_width=16, patch_layers=1, fused_width=16)
)
RATE = SMALL.sample_rate


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedClassifier:
    torch.manual_seed(0)
    model = build(SMALL)
    with torch.no_grad():  # so that the labels of noise are neither all sure nor all unlikely
        for weight in (model.network.clip_head.weight, model.network.segment_head.weight):
            weight.mul_(20.0)
        model.network.clip_head.bias.zero_()
        model.network.segment_head.bias.zero_()
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    checkpoint.save(path, SMALL.to_dict(), model)
    return infer.load("cpu", path)


def noise(n: int, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(n)


def item_of(
    folder: Path,
    waveform: np.ndarray,
    rate: int = RATE,
    params: ClassifyParams | None = None,
    mask_level: float | None = 0.7,
) -> StageInput:
    """Write samples (n,) or (n, C) with a constant mask and one region."""
    audio, scratch = folder / "in.wav", folder / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    soundfile.write(audio, waveform, rate, subtype="FLOAT")
    upstream = {}
    if mask_level is not None:
        with MaskWriter(folder / "mask.npz") as writer:
            writer.append(np.full((128, len(waveform) * 50 // rate + 1), mask_level, np.float32))
        regions = {"regions": [{"onset_s": 0.1, "offset_s": 0.6, "low_hz": 0.0, "high_hz": 1e3}]}
        (folder / "regions.json").write_text(json.dumps(regions))
        upstream = {
            ArtifactKind.MASK: folder / "mask.npz",
            ArtifactKind.REGIONS: folder / "regions.json",
        }
    return StageInput("in.wav", audio, params or ClassifyParams(), upstream, scratch)


def run(
    loaded: LoadedClassifier, folder: Path, waveform: np.ndarray, rate: int = RATE, **more: Any
) -> tuple[StageOutput, dict[str, Any]]:
    """Process one recording; see ``item_of``."""
    item = item_of(folder, waveform, rate, **more)
    output = infer.process(loaded, item)
    assert set(item.phases.seconds) <= {"decode", "infer", "encode"}
    file = output.files[ArtifactKind.EVENTS]
    assert file.path.parent == item.scratch
    return output, json.loads(file.path.read_text())


# Whole recordings


@pytest.mark.parametrize(
    ("waveform", "rate"),
    [
        (noise(1), 44_100),
        (noise(1), 192_000),  # less than a sample at the analysis rate
        (noise(3000), 8_000),
        (np.ones(RATE), RATE),
        (np.clip(50 * noise(RATE), -1, 1), RATE),
        (np.full(RATE, np.nan), RATE),
        (np.stack([noise(8000, seed) for seed in range(64)], axis=1), 8_000),
        (noise(2 * 96_000), 96_000),
    ],
    ids=["1 sample", "1 of 192 kHz", "short", "DC", "clipped", "NaN", "64 channels", "96 kHz"],
)
def test_odd_recordings(
    loaded: LoadedClassifier, tmp_path: Path, waveform: np.ndarray, rate: int
) -> None:
    params = ClassifyParams(threshold=0.0, top_k=20, embeddings=True)
    output, content = run(loaded, tmp_path, waveform, rate, params=params)
    assert content["version"] == 1
    assert content["duration_s"] == pytest.approx(len(waveform) / rate)
    assert output.audio.sample_rate == rate
    assert output.audio.channels == (waveform.shape[1] if waveform.ndim == 2 else 1)
    assert len(content["tags"]) == 20
    confidences = [tag["confidence"] for tag in content["tags"]]
    assert confidences == sorted(confidences, reverse=True)
    assert output.result["events"] == len(content["events"])
    assert parse_summary(output.result) == parse_events(json.dumps(content))
    assert output.result["top"] == content["tags"][0]["label"]
    for event in content["events"]:
        assert 0.0 <= event["onset_s"] < event["offset_s"] <= content["duration_s"] + 1e-3
        assert 0.0 <= event["confidence"] <= 1.0
    with VectorReader(output.files[ArtifactKind.VECTORS].path, loaded.digest) as reader:
        assert np.isfinite(reader.vectors()).all()


def test_silence_holds_nothing(loaded: LoadedClassifier, tmp_path: Path) -> None:
    params = ClassifyParams(threshold=0, embeddings=True)
    output, content = run(loaded, tmp_path, np.zeros(12 * RATE), params=params)
    assert content["events"] == []
    assert output.result["top_confidence"] == 0.0
    with VectorReader(output.files[ArtifactKind.VECTORS].path) as reader:
        assert not reader.vectors().any()


def test_no_samples_is_an_error(loaded: LoadedClassifier, tmp_path: Path) -> None:
    with pytest.raises(AudioEmpty):
        run(loaded, tmp_path, np.zeros(0), mask_level=None)


def test_mask_and_regions_are_optional_and_checked(
    loaded: LoadedClassifier, tmp_path: Path
) -> None:
    _, without = run(loaded, tmp_path, noise(RATE), mask_level=None)
    _, ones = run(loaded, tmp_path, noise(RATE), mask_level=1.0)
    for a, b in zip(without["tags"], ones["tags"], strict=True):
        assert a["confidence"] == pytest.approx(b["confidence"], abs=1e-2)
    item = item_of(tmp_path, noise(RATE))
    (tmp_path / "regions.json").write_text("{}")
    with pytest.raises(ArtifactInvalid):
        infer.process(loaded, item)
    item = item_of(tmp_path, noise(RATE))
    (tmp_path / "mask.npz").write_bytes(b"no mask")
    with pytest.raises(ArtifactInvalid):
        infer.process(loaded, item)


def test_the_threshold_is_that_of_the_weights_unless_the_job_says(
    loaded: LoadedClassifier, tmp_path: Path
) -> None:
    def events(threshold: float | None, of_weights: float) -> list[Any]:
        path = tmp_path / "w.safetensors"
        config = SMALL.to_dict() | {"event_threshold": of_weights}
        checkpoint.save(path, config, plain)
        heard = infer.load("cpu", path)
        item = item_of(tmp_path, noise(RATE), params=ClassifyParams(threshold=threshold))
        return parse_events(infer.process(heard, item).files[ArtifactKind.EVENTS].path.read_text())

    torch.manual_seed(1)
    plain = build(SMALL)
    with torch.no_grad():
        plain.network.segment_head.bias.zero_()  # every label about as likely as not
    assert events(None, 0.3) == events(0.3, 0.9)
    assert events(None, 0.9) == events(0.9, 0.3)
    assert len(events(None, 0.3).events) > len(events(None, 0.9).events)


def test_scores_are_as_long_as_the_recording(loaded: LoadedClassifier, tmp_path: Path) -> None:
    for seconds in (0.5, 5.12, 5.13, 9.2, 60.0):
        item = item_of(tmp_path, noise(round(seconds * RATE)), mask_level=None)
        heard = listen(loaded, item, None)
        assert heard.segments.shape[1] == math.ceil(round(seconds * RATE) / 2560)
        assert heard.facts.duration_s == pytest.approx(seconds)


def test_windows_fade_over_without_a_seam(loaded: LoadedClassifier, tmp_path: Path) -> None:
    """A repeating sound scores the same wherever the window borders fall."""
    period = noise(2560 * 3)  # divides the hop of 51 segments
    item = item_of(tmp_path, np.tile(period, 80), mask_level=None)
    segments = listen(loaded, item, None).segments.astype(np.float32)
    inner = segments[:, 24:216].reshape(len(LABELS), -1, 3)
    assert float(np.ptp(inner, axis=1).max()) < 0.3 * float(np.ptp(segments))


# Shards


LENGTHS_S = (0.3, 5.0, 1.0, 12.0, 5.0, 1.0, 5.0, 0.01, 3.0, 5.0, 5.0)


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[StageInput]:
    """Recordings of several lengths, some with a mask; several batches, of which some are mixed."""
    monkeypatch.setattr(listening, "CPU_BATCH_WINDOWS", 4)
    return [
        item_of(
            tmp_path / str(number),
            noise(round(seconds * RATE), seed=number),
            params=ClassifyParams(threshold=0.3, top_k=20, embeddings=number % 2 == 0),
            mask_level=None if number % 3 == 0 else 0.4,
        )
        for number, seconds in enumerate(LENGTHS_S)
    ]


def outcomes(done: Iterator[Done], items: Sequence[StageInput]) -> list[StageOutput | Exception]:
    """Return what became of each item, in their order; each must be told once."""
    found = list(done)
    assert len(found) == len(items)
    by_item = {id(one.item): one.outcome for one in found}
    return [by_item[id(item)] for item in items]


def content(output: StageOutput | Exception) -> dict[str, Any]:
    assert isinstance(output, StageOutput)
    return json.loads(output.files[ArtifactKind.EVENTS].path.read_text())


def test_a_shard_gives_what_each_recording_alone_gives(
    loaded: LoadedClassifier, shard: list[StageInput]
) -> None:
    together = []
    for output in outcomes(infer.process_shard(loaded, shard), shard):
        vectors = None
        if ArtifactKind.VECTORS in output.files:
            with VectorReader(output.files[ArtifactKind.VECTORS].path) as reader:
                vectors = reader.vectors()
        together.append((content(output), vectors))
    assert max(len(found["events"]) for found, _ in together) > 0
    for item, (found, vectors) in zip(shard, together, strict=True):
        output = infer.process(loaded, item)
        alone = content(output)
        ours = {tag["label"]: tag["confidence"] for tag in found["tags"]}
        for tag in alone["tags"]:
            assert ours[tag["label"]] == pytest.approx(tag["confidence"], abs=1e-4)
        assert len(found["events"]) == len(alone["events"])
        for a, b in zip(found["events"], alone["events"], strict=True):
            assert (a["label"], a["onset_s"], a["offset_s"]) == (
                b["label"],
                b["onset_s"],
                b["offset_s"],
            )
            assert a["confidence"] == pytest.approx(b["confidence"], abs=1e-3)  # kept in 16 bits
        if vectors is not None:
            with VectorReader(output.files[ArtifactKind.VECTORS].path) as reader:
                np.testing.assert_allclose(vectors, reader.vectors(), rtol=2e-3, atol=1e-3)


def test_logits_of_a_batch_are_those_of_each_alone(loaded: LoadedClassifier) -> None:
    model = loaded.model
    with torch.inference_mode():
        waveforms = torch.from_numpy(np.stack([noise(5 * RATE, s) for s in range(9)])).float()
        together = model(model.features(waveforms))
        alone = [model(model.features(waveform[None])) for waveform in waveforms]
    clip = torch.cat([scores.clip for scores in alone])
    segments = torch.cat([scores.segments for scores in alone])
    torch.testing.assert_close(together.clip, clip, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.segments, segments, atol=1e-4, rtol=1e-4)


def test_short_recordings_are_scored_together(loaded: LoadedClassifier, tmp_path: Path) -> None:
    items = [
        item_of(tmp_path / str(number), noise(RATE, number), mask_level=None)
        for number in range(listening.CPU_BATCH_WINDOWS + 2)
    ]
    sizes = [output.batch_size for output in outcomes(infer.process_shard(loaded, items), items)]
    assert sizes == [listening.CPU_BATCH_WINDOWS] * listening.CPU_BATCH_WINDOWS + [2, 2]


def test_a_corrupt_recording_costs_only_itself(
    loaded: LoadedClassifier, shard: list[StageInput]
) -> None:
    shard[1].audio_path.write_bytes(b"no sound at all")
    shard[4].upstream[ArtifactKind.MASK].write_bytes(b"no mask")
    cut_off = shard[3].audio_path.read_bytes()
    shard[3].audio_path.write_bytes(cut_off[: len(cut_off) // 2])  # ends within its third window
    found = outcomes(infer.process_shard(loaded, shard), shard)
    errors = {n: type(one) for n, one in enumerate(found) if isinstance(one, Exception)}
    assert set(errors) == {1, 3, 4}
    assert errors[1] is AudioUnreadable
    assert errors[4] is ArtifactInvalid
    for number in set(range(len(shard))) - set(errors):
        assert content(found[number]) == content(infer.process(loaded, shard[number]))


def test_recordings_are_taken_only_as_a_batch_has_room(
    loaded: LoadedClassifier, shard: list[StageInput]
) -> None:
    """What is begun and not ended is bounded, however many recordings a shard has."""
    begun, most = 0, 0

    def counted() -> Iterator[StageInput]:
        nonlocal begun, most
        for item in [*shard, *shard]:
            begun += 1
            most = max(most, begun)
            yield item

    for _ in infer.process_shard(loaded, counted()):
        begun -= 1
    assert begun == 0
    assert most <= listening.CPU_BATCH_WINDOWS + 1


def test_what_fails_together_is_tried_alone(
    loaded: LoadedClassifier, shard: list[StageInput], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = listening._score

    def out_of_memory(
        model: LoadedClassifier, group: Sequence[listening.Window]
    ) -> list[listening.WindowScores]:
        if len(group) > 1 or group[0].listener.item is shard[2]:
            raise torch.OutOfMemoryError("no memory on the device")
        return alone(model, group)

    monkeypatch.setattr(listening, "_score", out_of_memory)
    found = outcomes(infer.process_shard(loaded, shard), shard)
    assert [n for n, one in enumerate(found) if isinstance(one, Exception)] == [2]


def test_time_of_a_batch_is_parted_by_windows(
    loaded: LoadedClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of windows that are scored together, a longer recording has more, and pays for more."""
    at_once: list[dict[str, float]] = []
    turns: dict[str, float] = {}
    score = listening._score

    def noted(
        model: LoadedClassifier, group: Sequence[listening.Window]
    ) -> list[listening.WindowScores]:
        at_once.append(dict(turns))
        return score(model, group)

    def told(name: str) -> Phases:
        @contextmanager
        def turn(weight: float) -> Iterator[None]:
            turns[name] = weight
            yield
            del turns[name]

        return Phases(turn=turn)

    monkeypatch.setattr(listening, "_score", noted)
    window_s = WINDOW_SEGMENTS * SMALL.segment_s
    lengths_s = {"short": window_s, "long": 12.0, "other": 2.0}
    items = [
        replace(
            item_of(tmp_path / name, noise(round(seconds * RATE)), mask_level=None),
            phases=told(name),
        )
        for name, seconds in lengths_s.items()
    ]
    outcomes(infer.process_shard(loaded, items), items)
    whole = max(at_once, key=len)
    assert set(whole) == {"short", "long"}  # windows of one length; the others are alone
    assert whole["short"] == 1
    assert whole["long"] >= 2
    assert {"other": 1} in at_once


def test_a_recording_taken_away_meanwhile_ends_alone(
    loaded: LoadedClassifier, shard: list[StageInput]
) -> None:
    class Gone(Exception):
        pass

    entered = 0

    def check() -> None:
        nonlocal entered
        entered += 1
        if entered > 2:  # decoded, then lost before its scores came
            raise Gone

    taken = shard[1]
    phases = Phases(check)
    shard[1] = StageInput(
        taken.name, taken.audio_path, taken.params, taken.upstream, taken.scratch, phases
    )
    found = outcomes(infer.process_shard(loaded, shard), shard)
    assert [n for n, one in enumerate(found) if isinstance(one, Exception)] == [1]
    assert isinstance(found[1], Gone)


# Vectors


def test_vectors_are_what_the_segment_head_sees(loaded: LoadedClassifier, tmp_path: Path) -> None:
    waveform = noise(4 * RATE)
    item = item_of(tmp_path, waveform, params=ClassifyParams(embeddings=True), mask_level=None)
    output = infer.process(loaded, item)
    model = loaded.model
    with torch.inference_mode():
        scores = model(model.features(torch.from_numpy(waveform[None].astype(np.float32))))
    wanted = scores.embedding[0].reshape(-1, 10, 5).mean(2).numpy()  # 50 segments of 80 ms
    with VectorReader(output.files[ArtifactKind.VECTORS].path, loaded.digest) as reader:
        assert reader.vector_s == pytest.approx(0.4)
        np.testing.assert_allclose(reader.vectors(), wanted, rtol=2e-3, atol=1e-3)


def test_vectors_are_stored_only_on_request(loaded: LoadedClassifier, tmp_path: Path) -> None:
    output, _ = run(loaded, tmp_path, noise(RATE))
    assert set(output.files) == {ArtifactKind.EVENTS}
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["events.json"]


def test_width_of_vectors(loaded: LoadedClassifier) -> None:
    assert isinstance(loaded.model, Classifier)
    assert loaded.vector_width() == SMALL.network.fused_width
