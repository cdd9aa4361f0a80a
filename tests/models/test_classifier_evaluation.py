"""Judging a weights file: which clips count, what is reported, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import typer

from common import checkpoint
from common.datasets import Clip, ClipBank, load_layout
from common.errors import DatasetInvalid, FoldMissing, WeightsInvalid
from common.soundscapes import Soundscape
from services.classifier import evaluate
from services.classifier.config import Config, HybridSettings
from services.classifier.evaluation.judging import band_limited, in_folds, known_only
from services.classifier.evaluation.peers import CepstralBank, peer_logits
from services.classifier.evaluation.predictions import predict
from services.classifier.evaluation.scenes import oracle_mask
from services.classifier.evaluation.speed import time_process
from services.classifier.infer import load
from services.classifier.model import build
from services.classifier.provenance import Provenance, provenance_of, seen_in, training_notes
from tests.models.hums import hum, hums

LABELS = ("dog", "siren", "speech")
CONFIG = Config(
    labels=LABELS,
    network=HybridSettings(channels=(4, 4, 8, 8), patch_width=8, patch_layers=1, fused_width=8),
)
RATE_HZ = CONFIG.sample_rate


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights that nobody trained, but that say fold 1 of such folders trained them."""
    torch.manual_seed(0)
    path = tmp_path / "w.safetensors"
    checkpoint.save(path, CONFIG.to_dict(), build(CONFIG), {"trained_on": {"folders": [1]}})
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two folds of two classes, one of them under UrbanSound8K's name for it."""
    for fold in (1, 2):
        hums(tmp_path / "data" / f"fold{fold}", ("dog_bark", "siren"), 2, seconds=0.5)
    for n, path in enumerate(sorted((tmp_path / "data").rglob("*.wav"))):
        soundfile.write(path, hum(n % 2, 0.5 + 0.1 * (n % 3), n), 16_000)  # no two alike
    return tmp_path / "data"


@pytest.fixture
def judge(data: Path, weights: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The command; returns the report that it wrote."""

    def run(**options: Any) -> dict[str, Any]:
        evaluate.main(
            **{
                "data": data,
                "layout": "folders",
                "weights": weights,
                "json_path": tmp_path / "report.json",
                "cache": tmp_path / "cache",
            }
            | options
        )
        made: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
        return made

    return run


def test_a_report_on_unseen_folds(
    judge: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = judge(folds="2", narrow=True, scenes=1, picture=tmp_path / "p.png")
    told = capsys.readouterr()
    assert "SEEN IN TRAINING" not in told.err
    assert "| hybrid" in told.out
    assert "| siren" in told.out
    assert made["seen_in_training"] == 0
    assert made["data"] == {"layout": "folders", "folds": [2], "clips": 4}
    scores = made["scores"]["hybrid"]["clips"]["folders"]
    assert [(c["label"], c["n"]) for c in scores["classes"]] == [("dog", 2), ("siren", 2)]
    confusion = scores["confusion"]
    assert confusion["labels"] == ["dog", "siren"]
    assert [sum(row) for row in confusion["counts"]] == [2, 2]
    assert confusion["counts"][0][0] + confusion["counts"][1][1] == 4 * scores["accuracy"]
    assert not (tmp_path / "report.png").exists()  # the picture was wanted elsewhere
    assert set(made["scores"]) == {"hybrid", "hybrid, nothing above 4 kHz"}
    assert set(made["scenes"]) == {"no mask", "oracle mask"}
    assert made["throughput"]["audio_s"] == pytest.approx(4 * 0.6, rel=0.2)
    assert (tmp_path / "p.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_folds_seen_in_training_are_flagged_loudly(
    judge: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = judge()
    assert "SEEN IN TRAINING: 4 of these 8 clips" in capsys.readouterr().err
    assert (tmp_path / "report.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"  # by default
    assert made["seen_in_training"] == 4
    assert made["weights"]["trained_on"] == {"folders": [1]}


def test_folds_that_chose_the_weights_are_flagged_loudly(
    judge: Callable[..., dict[str, Any]], weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = checkpoint.load(weights).tensors
    notes = {"trained_on": {"folders": [1]}, "chosen_on": {"folders": [2]}}
    checkpoint.save(weights, CONFIG.to_dict(), tensors, notes)
    made = judge(folds="2")
    told = capsys.readouterr().err
    assert "SEEN IN TRAINING" not in told
    assert "USED TO CHOOSE: 4 of these 4 clips. The weights were trained on folders folds 1" in told
    assert "stopped or calibrated by folders folds 2" in told
    assert (made["seen_in_training"], made["used_to_choose"]) == (0, 4)
    assert made["weights"]["chosen_on"] == {"folders": [2]}


def test_labels_the_weights_do_not_know(
    judge: Callable[..., dict[str, Any]], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hums(data / "fold2", ("owl",), 1)
    with pytest.raises(typer.Exit):
        judge()
    assert "the weights do not know owl; --skip-unknown" in capsys.readouterr().err
    made = judge(skip_unknown=True)
    assert made["left_out"] == {"owl": 1}
    assert made["data"]["clips"] == 8
    with pytest.raises(typer.Exit):
        judge(skip_unknown=True, folds="3")
    assert "no clip in fold 3; there are folds 1, 2" in capsys.readouterr().err


def test_corrupt_clips_are_left_out_on_request(
    judge: Callable[..., dict[str, Any]], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "fold2" / "siren" / "9.wav").write_bytes(b"no sound")
    with pytest.raises(typer.Exit):
        judge()
    assert "9.wav" in capsys.readouterr().err
    made = judge(skip_corrupt=True)
    assert "left out 1 of 9 clips" in capsys.readouterr().err
    assert list(made["corrupt"]) == ["folders/fold2/siren/9.wav"]
    assert made["corrupt"]["folders/fold2/siren/9.wav"]
    assert made["data"]["clips"] == 8


def test_clips_with_several_labels(
    judge: Callable[..., dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    paths = [str(path.relative_to(data)) for path in sorted(data.rglob("*.wav"))]
    told = ["dog", "siren", "dog;siren", "speech", "speech;dog", "siren", "dog", "speech;siren"]
    rows = [f"{path},{labels}" for path, labels in zip(paths, told, strict=True)]
    (data / "manifest.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    made = judge(layout="csv", picture=tmp_path / "t.png", threshold=0.3)
    scores = made["scores"]["hybrid"]["tags"]["csv"]
    assert scores["n"] == 8
    assert scores["threshold"] == 0.3
    assert [(c["label"], c["n"]) for c in scores["classes"]] == [
        ("dog", 4),
        ("siren", 4),
        ("speech", 3),
    ]
    assert made["scores"]["hybrid"]["clips"] == {}
    assert [c["label"] for c in scores["counts"]] == ["dog", "siren", "speech"]
    assert [c["hits"] + c["misses"] for c in scores["counts"]] == [4, 4, 3]
    assert scores["top3"] == 1.0  # of three labels
    assert {"accuracy", "macro_precision", "macro_recall"} <= set(scores)
    assert (tmp_path / "t.png").is_file()


# Parts


def made_up(dataset: Any, fold: int, *labels: str) -> Clip:
    return Clip(
        Path(f"/{dataset}/{fold}/{labels[0]}.wav"), labels[0], dataset, fold, "1", 0, labels
    )


def test_known_labels_by_hand() -> None:
    clips = [
        made_up("us8k", 1, "dog_bark"),
        made_up("us8k", 1, "owl", "siren"),
        made_up("us8k", 2, "owl"),
    ]
    known = known_only(clips, LABELS, skip=True)
    assert [clip.labels for clip in known.clips] == [("dog",), ("siren",)]
    assert known.left_out == {"owl": 2}
    with pytest.raises(DatasetInvalid, match="do not know dog, owl"):
        known_only([*clips, made_up("us8k", 1, "dog")], ("dog_bark", "siren"), skip=False)
    with pytest.raises(FoldMissing):
        in_folds(clips, [3])


def test_what_was_trained_on_is_noted_in_the_weights(tmp_path: Path) -> None:
    clips = [made_up("us8k", 2, "dog"), made_up("us8k", 1, "dog"), made_up("esc10", 4, "dog")]
    started = Provenance({"us8k": (1,)}, {"us8k": (9,)})
    notes = training_notes(clips, [made_up("us8k", 5, "dog")], started)
    assert notes == {
        "trained_on": {"esc10": [4], "us8k": [1, 2]},
        "chosen_on": {"us8k": [5, 9]},
        "licences": {"esc10": "CC BY 3.0", "us8k": "CC BY-NC 3.0"},
    }
    path = tmp_path / "w.safetensors"
    tensors = {"a": torch.zeros(2)}
    checkpoint.save(path, {"x": 1}, tensors, notes)
    assert checkpoint.load(path).config == {"x": 1}
    made_of = provenance_of(path)
    assert made_of == Provenance({"esc10": (4,), "us8k": (1, 2)}, {"us8k": (5, 9)})
    others = [made_up("us8k", 3, "dog"), made_up("esc50", 4, "dog"), made_up("esc50", 3, "dog")]
    seen = seen_in([*clips, *others], made_of.trained_on)
    assert seen == [*clips, others[1]]  # ESC-10 is a part of ESC-50
    checkpoint.save(path, {"x": 1}, tensors)
    assert provenance_of(path) == Provenance()
    checkpoint.save(path, {"x": 1}, tensors, {"trained_on": ["us8k"]})
    with pytest.raises(WeightsInvalid, match="no data sets and folds"):
        provenance_of(path)


def test_batches_of_clips_change_nothing(data: Path, weights: Path, tmp_path: Path) -> None:
    clips = load_layout(data, "folders")
    bank = ClipBank.open(clips, tmp_path / "cache", RATE_HZ)
    loaded = load("cpu", weights)
    together = predict(loaded.model, bank, clips)
    assert together.shape == (8, 3)
    assert len({bank.n_samples(clip) for clip in clips}) == 3
    for row, clip in zip(together, clips, strict=True):
        waveform = torch.from_numpy(bank.waveform(clip))[None]
        with torch.inference_mode():
            alone = loaded.model(loaded.model.features(waveform)).clip[0].numpy()
        np.testing.assert_allclose(row, alone, atol=1e-4)


def test_a_band_limited_copy_loses_only_what_is_high() -> None:
    time_s = np.arange(RATE_HZ) / RATE_HZ
    low, high = (np.sin(2 * np.pi * f * time_s).astype(np.float32) for f in (1_000, 9_000))
    heard = band_limited(RATE_HZ)(low + high)
    inside = slice(2_000, -2_000)
    np.testing.assert_allclose(heard[inside], low[inside], atol=1e-2)


def test_oracle_mask_by_hand() -> None:
    n = 2 * RATE_HZ
    tone = np.sin(2 * np.pi * 1000 * np.arange(n) / RATE_HZ).astype(np.float32)
    tone[RATE_HZ:] = 0.0
    noise = (0.001 * np.random.default_rng(0).standard_normal(n)).astype(np.float32)
    mask = oracle_mask(Soundscape(RATE_HZ, tone + noise, noise, (), ()))
    assert mask.shape == (128, 101)
    assert mask[:, 10:40].max() > 0.99  # the tone
    assert mask[:, 60:].max() < 0.01  # nothing in front
    assert mask[100:, 10:40].mean() < 0.1  # far above it


def test_the_time_of_a_process_is_per_second_of_audio(weights: Path) -> None:
    speed = time_process(load("cpu", weights), "short", np.ones(8_000), 8_000, ".wav", 1)
    assert speed.what == "short"
    assert speed.rtf == pytest.approx(speed.seconds / 1.0)


@pytest.mark.parametrize("peer", ["forest", "svm"])
def test_peers_tell_pitches_apart(peer: Any, data: Path, tmp_path: Path) -> None:
    for fold in (1, 2):  # tones of a class share a pitch
        for k, label in enumerate(("dog_bark", "siren")):
            for n, path in enumerate(sorted((data / f"fold{fold}" / label).glob("*.wav"))):
                soundfile.write(path, hum(k, 0.4, 10 * fold + n), 16_000)
    clips = [replace(c, source_id=str(c.index)) for c in load_layout(data, "folders")]
    more = [replace(c, source_id=f"again {c.index}") for c in clips]
    labels = ("dog_bark", "owl", "siren")
    cepstra = CepstralBank(ClipBank.open(clips, tmp_path / "cache", RATE_HZ), clips, CONFIG)
    assert cepstra.rows(clips).shape == (8, 80)
    logits = peer_logits(peer, cepstra, [*clips, *more], clips, labels, seed=0)
    assert logits.shape == (8, 3)
    assert logits.argmax(1).tolist() == [labels.index(clip.label) for clip in clips]
    assert (logits[:, 1] == -30.0).all()  # of a class that nobody taught it
    if peer == "forest":
        np.testing.assert_allclose(np.exp(logits).sum(1), 1.0, atol=1e-5)
