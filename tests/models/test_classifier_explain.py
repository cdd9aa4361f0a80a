"""Explanations: the bins that matter, their sound, the artifact, and what cannot be explained."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import typer

from common import checkpoint
from common.domain import ArtifactKind
from common.errors import ParametersInvalid
from common.labels import LABELS as ALL_LABELS
from common.params import ClassifyParams, canonical, parse_params
from common.stage_io import StageInput
from services.classifier import infer
from services.classifier.config import Config, VggSlatSettings
from services.classifier.explain import __main__ as command
from services.classifier.explain import measure
from services.classifier.explain.answers import answer
from services.classifier.explain.methods import check, possible
from services.classifier.explain.regions import most_relevant, positive, regions_of
from services.classifier.explain.resynthesis import resynthesised
from services.classifier.explain.windows import Extract, best_windows, read_windows
from services.classifier.model import build
from tests.models.explained import BANDS_HZ, BURST_S, NETWORKS, RATE, heard, scene

CONFIG = Config()
ALL_OF_HYBRID = ("integrated_gradients", "grad_cam", "attention_rollout", "feature_maps")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# Parameters


def test_jobs_that_do_not_ask_keep_their_parameters() -> None:
    plain = ClassifyParams(threshold=0.5)
    assert canonical(plain) == '{"threshold":0.5,"top_k":5}'
    asked = ClassifyParams(threshold=0.5, explain=("grad_cam",))
    assert json.loads(canonical(asked)) == {
        "threshold": 0.5,
        "top_k": 5,
        "explain": ["grad_cam"],
    }


def test_the_order_of_methods_does_not_matter() -> None:
    one, other = (
        parse_params({"classify": {"explain": methods}}).classify
        for methods in (["feature_maps", "lrp", "lrp"], ["lrp", "feature_maps"])
    )
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(
    ("classify", "named"),
    [
        ({"explain": ["shap"]}, "integrated_gradients"),
        ({"explain": ["lrp"], "explain_labels": [""]}, "at least 1 character"),
        ({"explain": ["lrp"], "explain_labels": ["x" * 201]}, "at most 200 characters"),
        ({"explain": ["lrp"], "explain_labels": ["a\0b"]}, "control characters"),
        ({"explain": ["lrp"], "explain_labels": [7]}, "a valid string"),
        ({"explain": ["lrp"], "explain_labels": list(ALL_LABELS[:4])}, "at most 3"),
        ({"explain": ["lrp"], "explain_windows": 4}, "less than or equal to 3"),
    ],
)
def test_what_is_refused_at_submission(classify: dict[str, Any], named: str) -> None:
    with pytest.raises(ParametersInvalid, match=named):
        parse_params({"classify": classify})


def test_labels_of_ones_own_are_left_to_the_weights() -> None:
    asked = {"classify": {"explain": ["grad_cam"], "explain_labels": ["Great_Tit", "Türklingel"]}}
    params = parse_params(asked).classify
    assert params.explain_labels == ("Great_Tit", "Türklingel")
    check(Config(labels=("Great_Tit", "Türklingel")), params)
    with pytest.raises(ParametersInvalid, match="do not know Great_Tit, Türklingel; known: air_"):
        check(Config(), params)


def test_what_is_possible_for_each_network() -> None:
    common = ("integrated_gradients", "grad_cam", "feature_maps")
    assert possible(Config("hybrid")) == ALL_OF_HYBRID
    assert possible(Config("resnet", network=NETWORKS["resnet"])) == common
    assert possible(Config("stride_cnn", network=NETWORKS["stride_cnn"])) == common
    vgg = ("integrated_gradients", "lrp", "feature_maps")
    assert possible(Config("vgg_slat", network=VggSlatSettings())) == vgg
    with_lstm = Config("vgg_slat", network=VggSlatSettings(lstm_width=8))
    assert possible(with_lstm) == ("integrated_gradients", "feature_maps")
    with pytest.raises(ParametersInvalid, match="lrp cannot explain vgg_slat with an LSTM"):
        check(with_lstm, ClassifyParams(explain=("lrp",)))
    strange = Config("hybrid", labels=("dog", "moose"))
    with pytest.raises(ParametersInvalid, match="do not know rain; known: dog, moose"):
        check(strange, ClassifyParams(explain=("grad_cam",), explain_labels=("dog", "rain")))


# The most relevant bins


def test_most_relevant_bins_are_the_fewest_that_hold_half() -> None:
    relevance = np.full((64, 128), -1.0, np.float32)
    relevance[20:26, 40:60] = 3.0
    relevance[50:53, 90:100] = 1.0
    chosen = most_relevant(relevance)
    weight = positive(relevance)
    assert weight[chosen].sum() >= 0.5 * weight.sum()
    assert weight[chosen].sum() - weight[chosen].min() < 0.5 * weight.sum()
    assert weight[chosen].min() >= weight[~chosen].max()
    assert chosen[22:24, 42:58].all()


def test_relevance_everywhere_shows_its_peaks_only() -> None:
    generator = np.random.default_rng(0)
    chosen = most_relevant(1.0 + 0.1 * generator.random((64, 128)).astype(np.float32))
    assert chosen.mean() == pytest.approx(0.15, abs=1e-3)


@pytest.mark.parametrize("level", [0.0, -1.0])
def test_nothing_for_the_label_nothing_chosen(level: float) -> None:
    relevance = np.full((64, 128), level, np.float32)
    chosen = most_relevant(relevance)
    assert not chosen.any()
    assert regions_of(relevance, chosen, 0.0, 1.28, CONFIG) == []


def test_regions_by_hand() -> None:
    """Two patches: frames 40 to 59 are 0.395 to 0.595 s into a window that starts at 3 s."""
    relevance = np.zeros((64, 128), np.float32)
    relevance[20:26, 40:60] = 1.0
    relevance[0:2, 0:10] = 1.0
    large, small = regions_of(relevance, relevance > 0.0, 3.0, 4.28, CONFIG)
    assert (large.onset_s, large.offset_s) == (3.395, 3.595)
    assert (small.onset_s, small.offset_s) == (3.0, 3.095)  # not before the window
    # 66 points evenly spaced in mel from 0 to 16 kHz; bands meet midway between their centres
    points_hz = 700.0 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 16e3 / 700), 66) / 2595) - 1)
    assert large.low_hz == pytest.approx((points_hz[20] + points_hz[21]) / 2, abs=0.1)
    assert large.high_hz == pytest.approx((points_hz[26] + points_hz[27]) / 2, abs=0.1)
    assert small.low_hz == 0.0
    assert 0.5 < large.share < 0.9
    assert large.share + small.share < 1.0


# Their sound


def tone(frequency_hz: float, n: int, rate: int) -> np.ndarray:
    return np.sin(2 * np.pi * frequency_hz * np.arange(n) / rate).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 32_000, 44_100, 96_000])
def test_sound_of_some_bins_is_these_bins_and_no_others(rate: int) -> None:
    n = round(1.28 * rate)
    wanted, unwanted = 0.3 * tone(1000.0, n, rate), 0.3 * tone(3000.0, n, rate)
    chosen = np.zeros((64, 128), bool)
    chosen[12:23, 32:96] = True  # 0.7 to 1.5 kHz, 0.32 to 0.95 s
    kept = resynthesised(wanted + unwanted, rate, chosen, CONFIG)
    assert kept.shape == (n,)
    inside = slice(round(0.36 * rate), round(0.9 * rate))
    outside = slice(round(1.05 * rate), n)
    np.testing.assert_allclose(kept[inside], wanted[inside], atol=0.03)
    assert np.abs(kept[outside]).max() < 1e-3


def test_all_bins_sound_as_recorded_up_to_what_is_heard() -> None:
    n, rate = 44_100, 44_100
    audible, above = 0.3 * tone(5000.0, n, rate), 0.3 * tone(18_000.0, n, rate)
    kept = resynthesised(audible + above, rate, np.ones((64, 104), bool), CONFIG)
    steady = slice(4410, -4410)
    np.testing.assert_allclose(kept[steady], audible[steady], atol=0.01)


@pytest.mark.parametrize("n", [1, 7, 100])
def test_sound_of_very_short_windows(n: int) -> None:
    samples = tone(1000.0, n, 8_000)
    kept = resynthesised(samples, 8_000, np.ones((64, 8), bool), CONFIG)
    np.testing.assert_allclose(kept, samples, atol=1e-4)


@pytest.mark.parametrize("label", BANDS_HZ)
def test_what_is_heard_again_is_the_burst(label: str) -> None:
    """From the network's own relevance: at least 20 dB of the noise is gone, the burst is not."""
    sounds = scene(label, seed=7020, onset_s=0.5)
    model = heard("hybrid")
    loaded = infer.LoadedClassifier(model, model.config, "cpu", "0" * 64)
    extract = Extract(0.0, 1.28, sounds.samples, sounds.samples, RATE, None)
    [reason] = answer(loaded, extract, label, ("integrated_gradients",)).reasons
    during = slice(round(0.5 * RATE), round((0.5 + BURST_S) * RATE))
    kept, burst = reason.audio.astype(np.float64), sounds.burst.astype(np.float64)
    likeness = kept[during] @ burst[during] / np.linalg.norm(kept[during])
    assert likeness / np.linalg.norm(burst[during]) > 0.8
    before_and_after = np.ones(len(kept), bool)
    before_and_after[round(0.4 * RATE) : round(0.9 * RATE)] = False
    noise = sounds.samples[before_and_after].astype(np.float64)
    assert np.mean(kept[before_and_after] ** 2) < 0.01 * np.mean(noise**2)
    assert reason.confidence_without < 0.9 < reason.confidence_alone


# Which windows


def test_best_windows_by_hand() -> None:
    confidences = np.array([0.2, 0.9, 0.95, 0.3, 0.0, 0.8, 0.5])
    assert best_windows(confidences, 1) == [2]
    assert best_windows(confidences, 3) == [2, 5]  # 1 overlaps 2, 6 overlaps 5, 0.2 is too little
    assert best_windows(np.zeros(4), 2) == []
    assert best_windows(np.zeros(0), 2) == []


@pytest.mark.parametrize("rate", [22_050, 32_000, 48_000])
def test_windows_are_read_as_they_were_heard(tmp_path: Path, rate: int) -> None:
    n = round(16.0 * rate)
    stereo = 0.1 * np.random.default_rng(0).standard_normal((n, 2)).astype(np.float32)
    soundfile.write(tmp_path / "in.wav", stereo, rate, subtype="FLOAT")
    item = StageInput("in.wav", tmp_path / "in.wav", ClassifyParams(), {}, tmp_path)
    found = read_windows(item, CONFIG, [3, 1])
    assert sorted(found) == [1, 3]
    mono = stereo.mean(axis=1)
    assert found[1].start_s == pytest.approx(51 * 0.08)
    assert found[1].stop_s == pytest.approx(51 * 0.08 + 5.12)
    assert found[3].stop_s == pytest.approx(16.0, abs=1e-3)
    for extract in found.values():
        start, stop = (int(s * rate + 1e-6) for s in (extract.start_s, extract.stop_s))
        np.testing.assert_allclose(
            extract.recorded[: stop - start - 1], mono[start : stop - 1], atol=1e-6
        )
        assert len(extract.heard) == round((extract.stop_s - extract.start_s) * RATE)


# Whole recordings


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> infer.LoadedClassifier:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    model = heard("hybrid")
    checkpoint.save(path, model.config.to_dict(), model)
    return infer.load("cpu", path)


def explained(
    loaded: infer.LoadedClassifier, folder: Path, samples: np.ndarray, **params: Any
) -> zipfile.ZipFile:
    """Run the whole stage; return the artifact."""
    audio, scratch = folder / "in.wav", folder / "scratch"
    scratch.mkdir(exist_ok=True)
    soundfile.write(audio, samples, RATE, subtype="FLOAT")
    wanted = ClassifyParams(**{"explain": ("integrated_gradients",), **params})
    item = StageInput("in.wav", audio, wanted, {}, scratch)
    output = infer.process(loaded, item)
    assert set(item.phases.seconds) <= {"decode", "infer", "encode"}
    file = output.files[ArtifactKind.EXPLANATION]
    assert file.path.parent == scratch
    assert file.media_type == "application/zip"
    assert {path.name for path in scratch.iterdir()} == {"events.json", "explanation.zip"}
    return zipfile.ZipFile(io.BytesIO(file.path.read_bytes()))


def test_whole_artifact_of_a_long_recording(loaded: infer.LoadedClassifier, tmp_path: Path) -> None:
    """16 s with one burst at 14 s: the window from 12.24 s is explained, and the burst found."""
    sounds = scene("high", seed=7021, clip_s=16.0, onset_s=14.0)
    archive = explained(loaded, tmp_path, sounds.samples, explain=ALL_OF_HYBRID)
    assert archive.testzip() is None
    document = json.loads(archive.read("explanation.json"))
    assert document["version"] == 1
    assert document["architecture"] == "hybrid"
    assert document["weights"] == loaded.digest
    assert document["methods"] == list(ALL_OF_HYBRID)
    assert document["note"] is None
    [found] = document["answers"]
    assert found["label"] == "high"
    assert (found["onset_s"], found["offset_s"]) == (12.24, 16.0)
    assert found["confidence"] > 0.9

    reasons = {reason["method"]: reason for reason in found["reasons"]}
    assert list(reasons) == list(ALL_OF_HYBRID[:3])
    gradients = reasons["integrated_gradients"]
    assert gradients["evidence"] == "strong"
    assert gradients["conservation_error"] < 0.03
    assert reasons["attention_rollout"]["evidence"] == "weak"
    region = gradients["most_relevant"]["regions"][0]
    assert 13.9 < region["onset_s"] < region["offset_s"] < 14.4
    assert 3500 < region["low_hz"] < region["high_hz"] < 7500

    named = {"explanation.json", found["feature_maps"]["files"]["maps"]}
    named.update(found["feature_maps"]["files"]["pictures"].values())
    for reason in reasons.values():
        named.update(reason["files"].values())
    assert set(archive.namelist()) == named
    for name in named:
        if name.endswith(".png"):
            assert archive.read(name).startswith(b"\x89PNG\r\n")
    arrays = np.load(io.BytesIO(archive.read(gradients["files"]["map"])))
    assert arrays["relevance"].dtype == np.float16
    assert arrays["relevance"].shape == arrays["logmel"].shape == (64, 376)
    assert arrays["times_s"][[0, -1]].tolist() == pytest.approx([12.24, 15.99])
    assert len(arrays["centres_hz"]) == 64
    total = arrays["relevance"].astype(np.float64).sum() * arrays["scale"]
    assert total == pytest.approx(gradients["sum"], rel=0.05)
    audio, rate = soundfile.read(io.BytesIO(archive.read(gradients["files"]["audio"])))
    assert rate == RATE
    assert len(audio) == len(sounds.samples) - round(12.24 * RATE)


def test_same_recording_same_bytes(loaded: infer.LoadedClassifier, tmp_path: Path) -> None:
    samples = scene("low", seed=7022).samples
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with explained(loaded, tmp_path / name, samples, explain=("grad_cam",)) as archive:
            contents.append({entry: archive.read(entry) for entry in archive.namelist()})
            times = {entry.date_time for entry in archive.infolist()}
    assert contents[0] == contents[1]
    assert times == {(1980, 1, 1, 0, 0, 0)}
    whole = [(tmp_path / name / "scratch" / "explanation.zip").read_bytes() for name in "ab"]
    assert whole[0] == whole[1]


def test_several_windows_of_one_label(loaded: infer.LoadedClassifier, tmp_path: Path) -> None:
    first = scene("low", seed=1, clip_s=8.0, onset_s=1.0).samples
    second = scene("low", seed=2, clip_s=8.0, onset_s=6.0).samples
    samples = np.concatenate([first, second])
    archive = explained(
        loaded, tmp_path, samples, explain=("attention_rollout",), explain_windows=3
    )
    found = json.loads(archive.read("explanation.json"))["answers"]
    onsets = sorted(answer["onset_s"] for answer in found)
    assert onsets[0] == 0.0
    assert onsets[-1] >= 8.16
    assert len(onsets) <= 3


@pytest.mark.parametrize(
    "samples",
    [np.zeros(RATE, np.float32), np.full(RATE, np.nan, np.float32)],
    ids=["silence", "NaN"],
)
def test_silence_has_nothing_to_explain_and_says_so(
    loaded: infer.LoadedClassifier, tmp_path: Path, samples: np.ndarray
) -> None:
    document = json.loads(explained(loaded, tmp_path, samples).read("explanation.json"))
    assert document["answers"] == []
    assert "nothing to explain" in document["note"]


@pytest.mark.parametrize("n", [1, 100, 2561])
def test_very_short_recordings(loaded: infer.LoadedClassifier, tmp_path: Path, n: int) -> None:
    samples = 0.1 * np.random.default_rng(0).standard_normal(n).astype(np.float32)
    archive = explained(loaded, tmp_path, samples, explain=("grad_cam", "integrated_gradients"))
    [found] = json.loads(archive.read("explanation.json"))["answers"]
    assert found["offset_s"] == pytest.approx(n / RATE, abs=1e-3)


def test_impossible_method_is_told_with_what_is_possible(
    loaded: infer.LoadedClassifier, tmp_path: Path
) -> None:
    with pytest.raises(ParametersInvalid) as caught:
        explained(loaded, tmp_path, scene("low", seed=1).samples, explain=("lrp",))
    assert str(caught.value) == (
        "classify.explain: lrp cannot explain hybrid; possible: integrated_gradients, grad_cam, "
        "attention_rollout, feature_maps"
    )


def test_mask_is_heeded(loaded: infer.LoadedClassifier) -> None:
    """The confidence that is explained is the one that was reported, under the same mask."""
    sounds = scene("low", seed=7023)
    cells = np.random.default_rng(0).random((4, 16)).astype(np.float32)
    extract = Extract(0.0, 1.28, sounds.samples, sounds.samples, RATE, cells)
    found = answer(loaded, extract, "low", ALL_OF_HYBRID)
    with torch.no_grad():
        logmel = loaded.model.features(torch.from_numpy(sounds.samples)[None])
        logits = loaded.model(logmel, torch.from_numpy(cells)[None]).clip
    assert found.logit == pytest.approx(float(logits[0, 0]), abs=1e-4)
    assert found.confidence == pytest.approx(float(torch.sigmoid(logits[0, 0])), abs=1e-5)
    for reason in found.reasons:
        assert np.isfinite(reason.relevance.values).all()


# The command


def test_command_writes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, audio = tmp_path / "w.safetensors", tmp_path / "a.wav"
    torch.manual_seed(0)
    network = NETWORKS["vgg_slat"]
    model = build(Config("vgg_slat", ("dog", "Great_Tit"), network=network, dropout=0.0))
    checkpoint.save(weights, model.config.to_dict(), model)
    soundfile.write(audio, scene("low", seed=1).samples, RATE)
    out = tmp_path / "why"
    command.main(audio, out, label=["Great_Tit"], method=["lrp"], weights=weights)
    printed = capsys.readouterr().out.split()
    assert {str(path) for path in out.rglob("*") if path.is_file()} == set(printed)
    [found] = json.loads((out / "explanation.json").read_text())["answers"]
    assert found["label"] == "Great_Tit"
    assert found["reasons"][0]["conservation_error"] < 0.01
    with pytest.raises(typer.Exit):
        command.main(audio, out, method=["attention_rollout"], weights=weights)
    assert "possible: integrated_gradients, lrp, feature_maps" in capsys.readouterr().err
    with pytest.raises(typer.Exit):
        command.main(audio, out, label=["wren"], weights=weights)
    assert "do not know wren; known: dog, Great_Tit" in capsys.readouterr().err


def test_the_table_of_measures_is_written_beside_and_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "load", lambda *_: SimpleNamespace(digest="d"))
    monkeypatch.setattr(measure, "load_layout", lambda *_: [])
    out = tmp_path / "a folder that is made" / "table.json"
    measure.main(data=tmp_path, json_path=out)
    assert json.loads(out.read_text()) == {"weights": "d", "clips": 0, "table": [], "rows": []}
    assert [path.name for path in out.parent.iterdir()] == ["table.json"]
