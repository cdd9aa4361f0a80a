"""The classifier: losses by hand, events by hand, odd recordings. Networks have their own tests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from common import checkpoint
from common.domain import ArtifactKind
from common.errors import ArtifactInvalid, AudioEmpty
from common.labels import LABELS
from common.masks import MaskReader, MaskWriter
from common.params import ClassifyParams
from common.results import parse_events, parse_summary
from common.stage_io import StageInput, StageOutput
from services.classifier import infer
from services.classifier.config import Config, HybridSettings, median_segments
from services.classifier.data import Batch
from services.classifier.events import find_events, snapped, spans_above, union_of
from services.classifier.losses import PresenceLoss, ShareLoss
from services.classifier.model import Classifier, build
from services.classifier.recipe import Recipe
from services.classifier.train import ClassifierLosses

SMALL = Config(
    network=HybridSettings(channels=(8, 8, 16, 16), patch_width=16, patch_layers=1, fused_width=16)
)
RATE = SMALL.sample_rate


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    return build(SMALL)


def batch_of(n_items: int = 4, segments: int = 4) -> Batch:
    """Noise of a different colour per class."""
    generator = torch.Generator().manual_seed(0)
    K, T = len(LABELS), 8 * segments
    logmel = torch.randn(n_items, 64, T, generator=generator)
    present = torch.zeros(n_items, K)
    for b in range(n_items):
        logmel[b, 10 * b : 10 * b + 10] += 6.0
        present[b, b] = 1.0
    in_time = present[..., None].repeat(1, 1, segments)
    mask = torch.ones(n_items, 4, segments)
    return Batch(logmel, mask, present, present, in_time, torch.ones_like(in_time))


# The model


def test_overfits_one_batch_with_finite_gradients(model: Classifier) -> None:
    batch, losses = batch_of(), ClassifierLosses(Recipe(steps=1), multi_label=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for _ in range(30):
        parts = losses(model, batch)
        optimizer.zero_grad()
        parts["total"].backward()
        assert all(w.grad is not None and w.grad.isfinite().all() for w in model.parameters())
        optimizer.step()
        history.append(float(parts["total"].detach()))
    assert history[-1] < 0.1 * history[0]
    model.eval()
    scores = model(batch.logmel, batch.mask)
    assert scores.clip.argmax(1).tolist() == [0, 1, 2, 3]


def test_shipped_weights_load() -> None:
    loaded = infer.load("cpu")
    assert loaded.config.labels == LABELS
    assert 0.2 < loaded.config.temperature < 5.0
    assert len(loaded.digest) == 64


# Losses


def test_share_loss_by_hand() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [5.0, 1.0]])  # softmax of the first: 3/4, 1/4
    share = torch.tensor([[0.5, 0.5], [0.0, 0.0]])
    wanted = -0.5 * math.log(0.75) - 0.5 * math.log(0.25)
    assert float(ShareLoss()(logits, share)) == pytest.approx(wanted)
    assert float(ShareLoss()(logits, torch.zeros(2, 2))) == 0.0


def test_presence_loss_by_hand() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0]])  # sigmoids 3/4 and 1/2
    present = torch.tensor([[1.0, 0.0]])
    wanted = -math.log(0.75) - math.log(0.5)
    assert float(PresenceLoss()(logits, present)) == pytest.approx(wanted)
    weight = torch.tensor([[1.0, 0.0]])
    assert float(PresenceLoss()(logits, present, weight)) == pytest.approx(-math.log(0.75))


# Events


def test_hysteresis_by_hand() -> None:
    scores = np.array([0.3, 0.6, 0.3, 0.1, 0.3, 0.3, 0.0, 0.9])
    assert spans_above(scores, high=0.5, low=0.25) == [(0, 3), (7, 8)]
    assert spans_above(np.zeros(0), 0.5, 0.25) == []


def test_union_and_snapping_by_hand() -> None:
    assert union_of([(3.0, 4.0), (0.0, 1.0), (1.1, 2.0)], 0.2) == [(0.0, 2.0), (3.0, 4.0)]
    regions = [(0.9, 1.5), (2.0, 4.0)]
    assert snapped((1.0, 3.0), regions) == (0.9, 3.0)  # no region ends near 3.0
    assert snapped((2.2, 3.9), regions) == (2.0, 4.0)
    assert snapped((5.0, 6.0), regions) == (5.0, 6.0)


def test_events_by_hand() -> None:
    scores = np.zeros(50, np.float32)
    scores[10:20] = 0.8  # 0.80 to 1.60 s
    scores[22:30] = 0.6  # 1.76 to 2.40 s: the gap is short
    scores[40] = 0.99  # shorter than the median filter can see
    dog = find_events(scores, "dog", [(0.7, 2.5)], 0.5, 0.08, 4.0)
    assert [(e.onset_s, e.offset_s) for e in dog] == [(0.7, 2.5)]
    assert dog[0].confidence == pytest.approx(0.8)
    assert find_events(scores, "dog", [], 0.9, 0.08, 4.0) == []
    cut = find_events(scores, "dog", [], 0.5, 0.08, 2.0)
    assert [(e.onset_s, e.offset_s) for e in cut] == [(0.8, 2.0)]
    silence = find_events(np.zeros(50, np.float32), "dog", [], 0.0, 0.08, 4.0)
    assert silence == []


def test_medians_are_odd() -> None:
    assert all(median_segments(label, 0.08) % 2 == 1 for label in LABELS)
    assert median_segments("rain", 0.08) > median_segments("gun_shot", 0.08)


# Whole recordings


@pytest.fixture
def loaded(model: Classifier, tmp_path: Path) -> infer.LoadedClassifier:
    path = tmp_path / "small.safetensors"
    checkpoint.save(path, SMALL.to_dict(), model)
    return infer.load("cpu", path)


def run(
    loaded: infer.LoadedClassifier,
    folder: Path,
    waveform: np.ndarray,
    rate: int = RATE,
    params: ClassifyParams | None = None,
    mask_level: float | None = 0.7,
) -> tuple[StageOutput, dict[str, Any]]:
    """Process samples (n,) or (n, C) with a constant mask and one region."""
    audio, scratch = folder / "in.wav", folder / "scratch"
    scratch.mkdir(exist_ok=True)
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
    item = StageInput("in.wav", audio, params or ClassifyParams(), upstream, scratch)
    output = infer.process(loaded, item)
    assert set(item.phases.seconds) <= {"decode", "infer", "encode"}
    file = output.files[ArtifactKind.EVENTS]
    assert file.path.parent == scratch
    return output, json.loads(file.path.read_text())


def noise(n: int, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(n)


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
    loaded: infer.LoadedClassifier, tmp_path: Path, waveform: np.ndarray, rate: int
) -> None:
    output, content = run(loaded, tmp_path, waveform, rate, ClassifyParams(threshold=0.0, top_k=20))
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


def test_silence_holds_nothing(loaded: infer.LoadedClassifier, tmp_path: Path) -> None:
    output, content = run(loaded, tmp_path, np.zeros(12 * RATE), params=ClassifyParams(threshold=0))
    assert content["events"] == []
    assert output.result["top_confidence"] == 0.0


def test_no_samples_is_an_error(loaded: infer.LoadedClassifier, tmp_path: Path) -> None:
    with pytest.raises(AudioEmpty):
        run(loaded, tmp_path, np.zeros(0), mask_level=None)


def test_mask_and_regions_are_optional_and_checked(
    loaded: infer.LoadedClassifier, tmp_path: Path
) -> None:
    _, without = run(loaded, tmp_path, noise(RATE), mask_level=None)
    _, ones = run(loaded, tmp_path, noise(RATE), mask_level=1.0)
    for a, b in zip(without["tags"], ones["tags"], strict=True):
        assert a["confidence"] == pytest.approx(b["confidence"], abs=1e-3)
    (tmp_path / "regions.json").write_text("{}")
    with pytest.raises(ArtifactInvalid):
        infer.read_regions(tmp_path / "regions.json")


def test_scores_are_as_long_as_the_recording(
    loaded: infer.LoadedClassifier, tmp_path: Path
) -> None:
    for seconds in (0.5, 5.12, 5.13, 9.2, 60.0):
        path = tmp_path / "a.wav"
        soundfile.write(path, noise(round(seconds * RATE)), RATE)
        item = StageInput("a", path, ClassifyParams(), {}, tmp_path)
        heard = infer.listen(loaded, item, None)
        assert heard.segments.shape[1] == math.ceil(round(seconds * RATE) / 2560)
        assert heard.facts.duration_s == pytest.approx(seconds)


def test_windows_fade_over_without_a_seam(loaded: infer.LoadedClassifier, tmp_path: Path) -> None:
    """A repeating sound scores the same wherever the window borders fall."""
    path = tmp_path / "a.wav"
    period = noise(2560 * 3)  # divides the hop of 51 segments
    soundfile.write(path, np.tile(period, 80), RATE)
    item = StageInput("a", path, ClassifyParams(), {}, tmp_path)
    segments = infer.listen(loaded, item, None).segments.astype(np.float32)
    inner = segments[:, 24:216].reshape(len(LABELS), -1, 3)
    assert float(np.ptp(inner, axis=1).max()) < 0.3


def test_mask_cells_by_hand(tmp_path: Path) -> None:
    mask = np.zeros((128, 12), np.float32)
    mask[:32, 4:8] = 1.0
    mask[32, 8] = 1.0
    with MaskWriter(tmp_path / "m.npz") as writer:
        writer.append(mask)
    with MaskReader(tmp_path / "m.npz") as reader:
        cells = infer.mask_cells(reader, 0, 4, SMALL)
    wanted = np.zeros((4, 4), np.float32)
    wanted[0, 1] = 1.0
    wanted[1, 2] = 1 / 128
    np.testing.assert_allclose(cells, wanted, atol=1e-6)
