"""The classifier's training and judging: batches, what is fitted afterwards, measures, commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from common import checkpoint
from common.datasets import Clip, ClipBank
from common.domain import Event
from common.labels import LABELS
from common.soundscapes import PlacedEvent, Soundscape
from services.classifier import evaluate, infer, train
from services.classifier.config import Config, HybridSettings
from services.classifier.data import BatchMaker, Layer, MelBank, activity
from services.classifier.model import Classifier, Scores
from services.classifier.peers import forest_confidence
from services.classifier.scoring import Counts, match_events, match_seconds, score_clips
from services.classifier.train import fit_event_shift, fit_temperature

SMALL = Config(
    network=HybridSettings(channels=(8, 8, 16, 16), patch_width=16, patch_layers=1, fused_width=16)
)
RATE = SMALL.sample_rate


# Measures


def test_clip_scores_by_hand() -> None:
    confidence = np.array([[0.9, 0.1, 0.0, 0.0], [0.6, 0.3, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]])
    scores = score_clips(confidence, np.array([0, 1, 0]), ["a", "b", "c", "d"])
    assert scores.accuracy == pytest.approx(1 / 3)
    assert scores.top3 == pytest.approx(2 / 3)
    # a: 1 hit of 2 found and of 2 there; b: none; c and d do not occur
    assert [(c.label, c.n, c.f1) for c in scores.classes] == [("a", 2, 0.5), ("b", 1, 0.0)]
    assert scores.macro_f1 == pytest.approx(0.25)
    # every confidence in its own bin: |0.9 - 1| + |0.6 - 0| + |0.4 - 0|
    assert scores.ece == pytest.approx((0.1 + 0.6 + 0.4) / 3)


def test_event_counts_by_hand() -> None:
    truth = [Event("dog", 1.0, 2.0, 1.0), Event("siren", 0.0, 4.0, 1.0)]
    found = [
        Event("dog", 1.15, 2.4, 0.9),  # within the collar, offset within half the length
        Event("siren", 0.3, 4.0, 0.9),  # begins too late
        Event("rain", 0.0, 1.0, 0.9),
    ]
    counts = match_events(found, truth)
    assert (counts.hits, counts.false_alarms, counts.misses) == (1, 2, 1)
    assert counts.f1 == pytest.approx(0.4)
    seconds = match_seconds(found, truth, 4.0)
    # dog: 1 right (2 is wrong); siren: 4 right; rain: 1 wrong
    assert (seconds.hits, seconds.false_alarms, seconds.misses) == (5, 2, 0)
    assert Counts().f1 == 0.0


def test_event_shift_finds_the_operating_point() -> None:
    """A model that is sure enough only after 2 is added to its logits."""
    n = 8 * RATE
    segment = np.ones(RATE, np.float32)
    event = PlacedEvent("dog", 2.0, 3.0, 10.0, segment, 2 * RATE, n)
    scene = Soundscape(RATE, event.stem, np.zeros(n, np.float32), None, (event,))

    class Timid(Classifier):
        def forward(self, logmel: torch.Tensor, mask: torch.Tensor | None = None) -> Scores:
            logits = torch.full((1, len(LABELS), 100), -9.0)
            logits[0, LABELS.index("dog"), 25:37] = -1.6
            return Scores(logits[..., 0], logits, (), logits)

    assert fit_event_shift(Timid(SMALL), SMALL, [scene]) == pytest.approx(1.75)


# Batches


def test_activity_by_hand() -> None:
    def power(*levels: float) -> np.ndarray:
        return np.repeat(np.array(levels, np.float32), 8)[:, None] * np.ones((1, 64), np.float32)

    layer = power(1.0, 0.5, 0.005, 0.0)  # a dog: on within 16 dB, off from 26 dB, between unknown
    on, known = activity(layer, "dog", layer)
    assert on.tolist() == [1, 1, 0, 0]
    assert known.tolist() == [1, 1, 0, 1]
    on, known = activity(layer, "dog", layer + power(0.0, 100.0, 0.0, 100.0))
    assert on.tolist() == [1, 1, 0, 0]
    assert known.tolist() == [1, 0, 0, 1]  # the second is drowned
    assert Layer("dog", layer).label == "dog"


@pytest.fixture
def maker(tmp_path: Path) -> BatchMaker:
    rng = np.random.default_rng(0)
    clips = []
    for n, label in enumerate(("dog", "rain", "speech", "siren", "speech")):
        path = tmp_path / f"{n}.wav"
        seconds = 0.3 if label == "speech" else 1.5
        soundfile.write(path, 0.1 * rng.standard_normal(int(seconds * RATE)), RATE)
        clips.append(Clip(path, label, "esc10", 1, "one", n))
    bank = ClipBank.open(clips, tmp_path / "cache", RATE)
    return BatchMaker(MelBank(bank, clips, SMALL), SMALL, seed=1)


def test_batches_are_well_formed(maker: BatchMaker) -> None:
    known = {LABELS.index(label) for label in ("dog", "rain", "speech", "siren")}
    for segments in (1, 6, 32):
        batch = maker.batch(24, segments)
        assert batch.logmel.shape == (24, 64, 8 * segments)
        assert batch.mask.shape == (24, 4, segments)
        assert batch.segment_present.shape == batch.segment_weight.shape == (24, 20, segments)
        for tensor in vars(batch).values():
            assert tensor.isfinite().all()
        for tensor in (batch.mask, batch.segment_present, batch.segment_weight):
            assert 0.0 <= float(tensor.min()) <= float(tensor.max()) <= 1.0
        assert set(batch.present.nonzero()[:, 1].tolist()) <= known
        sums = batch.share.sum(1)
        assert torch.isclose(sums, (batch.present.sum(1) > 0).float(), atol=1e-4).all()


def test_same_seed_same_batches(maker: BatchMaker) -> None:
    twin = BatchMaker(maker.mels, SMALL, seed=1)
    for _ in range(3):
        a, b = next(iter(maker)), next(iter(twin))
        torch.testing.assert_close(a.logmel, b.logmel)


def test_temperature_undoes_overconfidence() -> None:
    torch.manual_seed(0)
    honest = torch.randn(4000, 5)
    truth = torch.distributions.Categorical(logits=honest * 2).sample()
    once, twice = fit_temperature(honest, truth), fit_temperature(2 * honest, truth)
    assert twice == pytest.approx(2 * once, rel=0.02)


# Commands


def hum(label_number: int, seconds: float) -> np.ndarray:
    time_s = np.arange(round(seconds * 16_000)) / 16_000
    return 0.3 * np.sin(2 * np.pi * (200 + 300 * label_number) * time_s) * np.exp(-2 * time_s)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """All three data sets in their published layouts, with every split in each."""
    root = tmp_path / "data"
    esc, urban, digits = (
        root / "ESC-50",
        root / "UrbanSound8K",
        root / "free-spoken-digit" / "audio",
    )
    for folder in (esc / "audio", esc / "meta", urban / "metadata", digits):
        folder.mkdir(parents=True)
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for n, label in enumerate(("dog", "rain", "rooster")):
            name = f"{fold}-{fold}{n}-A-{n}.wav"
            rows.append(f"{name},{fold},{n},{label},True,{fold}{n},A")
            soundfile.write(esc / "audio" / name, hum(n, 1.0), 16_000)
    (esc / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")
    rows = ["slice_file_name,fsID,fold,classID,class"]
    for fold in (1, 2, 3):
        (urban / "audio" / f"fold{fold}").mkdir(parents=True)
        name = f"7{fold}-8-0-0.wav"
        rows.append(f"{name},7{fold},{fold},8,siren")
        soundfile.write(urban / "audio" / f"fold{fold}" / name, hum(3, 1.0), 16_000)
    (urban / "metadata" / "UrbanSound8K.csv").write_text("\n".join(rows) + "\n")
    for speaker in ("george", "nicolas", "theo"):
        soundfile.write(digits / f"7_{speaker}_0.flac", hum(4, 0.3), 16_000)
    return root


def test_training_and_judging_from_end_to_end(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "Config", lambda: SMALL)
    monkeypatch.setattr(train, "VALIDATION_SCENES", 1)
    monkeypatch.setattr(
        evaluate,
        "measure_speed",
        lambda loaded, bank, clips: [
            evaluate.time_process(loaded, "short", np.ones(8_000), 8_000, ".wav", 1)
        ],
    )
    out, cache = tmp_path / "out", tmp_path / "cache"
    train.main(data=data, out=out, minutes=0.02, cache=cache)
    weights = out / "classifier.safetensors"
    config = Config.from_dict(checkpoint.load(weights).config)
    assert config.segment_shift in train.EVENT_SHIFTS
    assert 0.2 < config.temperature < 5.0
    assert json.loads((out / "summary.json").read_text())["steps"] > 0
    infer.load("cpu", weights)
    report_path = tmp_path / "report.json"
    evaluate.main(data=data, json_path=report_path, weights=weights, scenes=1, cache=cache)
    report = json.loads(report_path.read_text())
    assert report["clips"]["hybrid"]["all"]["n"] == 5
    assert set(report["scenes"]) == {"no mask", "oracle mask"}
    assert report["speed"][0]["rtf"] > 0.0


def test_a_forest_tells_pitches_apart(data: Path, tmp_path: Path) -> None:
    clips = train.exclude_leaks(train.load_clips(data))
    bank = ClipBank.open(clips, tmp_path / "cache", RATE)
    confidence = forest_confidence(bank, clips, clips, SMALL)
    assert confidence.shape == (len(clips), len(LABELS))
    truth = [LABELS.index(clip.label) for clip in clips]
    assert (confidence.argmax(1) == truth).mean() > 0.9


def test_oracle_mask_by_hand() -> None:
    n = 2 * RATE
    tone = np.sin(2 * np.pi * 1000 * np.arange(n) / RATE).astype(np.float32)
    tone[RATE:] = 0.0
    noise = (0.001 * np.random.default_rng(0).standard_normal(n)).astype(np.float32)
    mask = evaluate.oracle_mask(Soundscape(RATE, tone + noise, noise, None, ()))
    assert mask.shape == (128, 101)
    assert mask[:, 10:40].max() > 0.99  # the tone
    assert mask[:, 60:].max() < 0.01  # nothing in front
    assert mask[100:, 10:40].mean() < 0.1  # far above it
