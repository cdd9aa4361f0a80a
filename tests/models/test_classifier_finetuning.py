"""What the training commands hold out, weights as a start, fine-tuning, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import typer

from common import checkpoint
from common.datasets import Clip, ClipBank, labels_of, load_layout
from common.datasets.leaks import find_leaks, origin_of
from common.errors import ClassMissing, FoldMissing, LeakFound, WeightsInvalid
from common.labels import LABELS
from common.settings import Settings
from services.classifier import finetune, infer, train
from services.classifier.config import Config, HybridSettings
from services.classifier.model import build
from services.classifier.selection import Chosen, choose, choose_share, folds_in, without_copies
from services.classifier.transfer import begin_from, head_axes
from tests.models.hums import hum, hums, three_sets

NETWORK = HybridSettings(channels=(8, 8, 16, 16), patch_width=16, patch_layers=1, fused_width=16)
SMALL = Config(network=NETWORK)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# What is trained on, and what is held out


def clip_of(n: int, label: str, source: str, fold: int = 1, *, folder: Path) -> Clip:
    path = folder / f"{n}.wav"
    path.write_bytes(bytes([n]))
    return Clip(path, label, "csv", fold, source, n)


def test_a_share_is_held_out_by_whole_recordings(tmp_path: Path) -> None:
    clips = [
        clip_of(10 * source + n, label, f"{label}{source}", folder=tmp_path)
        for label, n_sources in (("a", 5), ("b", 3), ("lonely", 1))
        for source in range(n_sources)
        for n in range(3 if label == "a" else 2)
    ]
    clips = [replace(clip, path=clip.path.with_name(f"{i}")) for i, clip in enumerate(clips)]
    for i, clip in enumerate(clips):
        clip.path.write_text(f"clip {i}")
    chosen = choose_share(clips, 0.25, seed=0)
    assert find_leaks(chosen.train, chosen.validation) == []
    assert len(chosen.train) + len(chosen.validation) == len(clips)
    assert labels_of(chosen.train) == chosen.labels == ("a", "b", "lonely")
    assert labels_of(chosen.validation) == ("a", "b")  # one recording alone is not held out
    assert len({origin_of(clip) for clip in chosen.validation if clip.label == "b"}) == 1
    assert choose_share(clips, 0.25, seed=0) == chosen
    with pytest.raises(ClassMissing, match="single recording"):
        choose_share([clip for clip in clips if clip.label == "lonely"], 0.25, seed=0)


def test_a_class_of_copies_alone_is_not_trained_silently(tmp_path: Path) -> None:
    clips = [clip_of(n, "cat", f"cat{n}", folder=tmp_path) for n in range(4)]
    owls = [clip_of(n, "owl", f"owl{n}", folder=tmp_path) for n in (4, 5)]
    owls[1].path.write_bytes(owls[0].path.read_bytes())
    with pytest.raises(ClassMissing, match="no clip of the class owl is left to train on") as told:
        choose_share([*clips, *owls], 0.25, seed=0)
    assert "has the same bytes as" in str(told.value)
    more = clip_of(6, "owl", "owl6", folder=tmp_path)
    assert labels_of(choose_share([*clips, *owls, more], 0.25, seed=0).train) == ("cat", "owl")


def test_a_class_of_samples_held_out_is_not_trained_silently(tmp_path: Path) -> None:
    clips = load_layout(hums(tmp_path / "mine", ("cat", "owl"), 2), "folders")
    cat, owl = (c for c in clips if c.path.stem == "0")
    waveform, rate_hz = soundfile.read(owl.path, dtype="int16")
    soundfile.write(tmp_path / "copy.flac", waveform, rate_hz)
    copy = replace(owl, path=tmp_path / "copy.flac", source_id="./copy.flac")
    bank = ClipBank.open([*clips, copy], tmp_path / "cache")
    with pytest.raises(ClassMissing, match=r"class owl is left .* has the same samples as"):
        without_copies(Chosen((cat, owl), (copy,), ("cat", "owl")), bank)
    kept = without_copies(Chosen(tuple(clips), (copy,), ("cat", "owl")), bank).train
    assert set(clips) - set(kept) == {owl}


def test_folds_are_chosen_and_guarded(tmp_path: Path) -> None:
    clips = [
        clip_of(10 * fold + n, label, f"{fold}-{n}", fold, folder=tmp_path)
        for fold in (1, 2, 3)
        for n, label in enumerate(("a", "b"))
    ]
    chosen = choose(clips, (1,), (3,))
    assert [[c.fold for c in part] for part in (chosen.train, chosen.validation)] == [
        [1, 1], [3, 3]
    ]  # fmt: skip
    assert {c.fold for c in choose(clips, (), (3,)).train} == {1, 2}
    assert choose(clips, (2,), ()).validation == ()
    for train_folds, held_out, told in (
        ((1, 4), (), "no fold 4"),
        ((1,), (1,), "fold 1 cannot be trained on and held out"),
        ((), (1, 2, 3), "none is left"),
    ):
        with pytest.raises(FoldMissing, match=told):
            choose(clips, train_folds, held_out)
    with pytest.raises(LeakFound):
        choose([*clips, replace(clips[0], fold=3)], (), (3,))
    assert folds_in("1, 3") == (1, 3)


# Transfer


def test_heads_come_along_with_their_labels() -> None:
    torch.manual_seed(0)
    trained = build(replace(SMALL, labels=("a", "b", "c")))
    saved = checkpoint.Checkpoint(trained.config.to_dict(), trained.state_dict(), "")
    fresh = build(replace(SMALL, labels=("c", "new", "a")))
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    assert begin_from(fresh, saved) == ("c", "a")
    axes = head_axes(fresh.config)
    # weights and biases of the clip's, the segments', both branches' and the texture's heads
    assert len(axes) == 10
    assert set(axes.values()) == {0}
    for name, tensor in fresh.state_dict().items():
        theirs = trained.state_dict()[name]
        if name in axes:
            torch.testing.assert_close(tensor[0], theirs[2])
            torch.testing.assert_close(tensor[1], before[name][1])
            torch.testing.assert_close(tensor[2], theirs[0])
        else:
            torch.testing.assert_close(tensor, theirs)


def test_weights_of_another_network_are_refused() -> None:
    other = build(replace(SMALL, network=replace(NETWORK, fused_width=24), n_fft=2048))
    saved = checkpoint.Checkpoint(other.config.to_dict(), other.state_dict(), "")
    with pytest.raises(WeightsInvalid, match="n_fft, network differ"):
        begin_from(build(SMALL), saved)


# Commands

RECIPE = """
[model.network]
channels = [8, 8, 16, 16]
patch_width = 16
patch_layers = 1
fused_width = 16

[training]
steps = STEPS
lr = 1e-2
ema_decay = 0.9
batch_segments = 256
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[int], Path]:
    def write(steps: int) -> Path:
        path = tmp_path / f"{steps}.toml"
        path.write_text(RECIPE.replace("STEPS", str(steps)))
        return path

    return write


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """Weights of all labels, as they come: here untrained."""
    torch.manual_seed(0)
    path = tmp_path / "shipped.safetensors"
    config = replace(SMALL, segment_shift=0.75, event_threshold=0.35)
    checkpoint.save(path, config.to_dict(), build(config), {"trained_on": {"esc10": [1, 2]}})
    return path


def test_finetuning_learns_ones_own_labels(
    tmp_path: Path,
    shipped: Path,
    recipe: Callable[[int], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = hums(tmp_path / "mine", ("buzz", "dog", "whistle"), 8)
    out = tmp_path / "out"

    def tune() -> str:
        finetune.main(
            data=data, out=out, weights=shipped, config=recipe(60), cache=tmp_path / "cache",
            device="cpu",
        )  # fmt: skip
        return capsys.readouterr().out

    told = tune()
    assert "3 labels: 18 clips to train on, 6 held out" in told
    assert "the weights knew 1 of 3 labels" in told
    after = float(told.split("% before, ")[1].split(" %")[0])
    assert after >= 83.0  # 5 of 6; chance is 2 of 6
    weights = out / "classifier.safetensors"
    made = checkpoint.load(weights)
    config = Config.from_dict(made.config)
    assert config.labels == ("buzz", "dog", "whistle")
    assert (config.network, config.event_threshold) == (NETWORK, 0.35)
    assert set(made.notes["trained_on"]) == {"esc10", "folders"}
    assert made.notes["licences"] == {"esc10": "CC BY 3.0"}
    assert made.notes["recipe"]["steps"] == 60
    content = weights.read_bytes()
    tune()  # it had ended: nothing is trained again
    assert weights.read_bytes() == content
    # the worker takes them where the settings say so
    monkeypatch.setattr(infer, "get_settings", lambda: Settings(classifier_weights=weights))
    assert infer.load("cpu").config == config
    assert infer.load("cpu", shipped).config.labels == LABELS


def test_one_label_alone_keeps_the_calibration_and_says_so(
    tmp_path: Path,
    shipped: Path,
    recipe: Callable[[int], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train, "MIN_TO_CALIBRATE", 1)
    monkeypatch.setattr(train, "VALIDATION_SCENES", 1)
    out = tmp_path / "out"
    finetune.main(
        data=hums(tmp_path / "mine", ("buzz",), 4), out=out, weights=shipped, config=recipe(1),
        cache=tmp_path / "cache", device="cpu",
    )  # fmt: skip
    told = capsys.readouterr()
    assert "the confidence of clips is not calibrated, and their accuracy says nothing" in told.err
    config = Config.from_dict(checkpoint.load(out / "classifier.safetensors").config)
    assert (config.labels, config.temperature, config.shift) == (("buzz",), 1.0, 0.0)
    assert config.segment_shift != 0.75  # soundscapes have stretches without it


def test_held_out_silence_keeps_the_calibration_of_events(
    tmp_path: Path, recipe: Callable[[int], Path], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(train, "MIN_TO_CALIBRATE", 1)
    monkeypatch.setattr(train, "VALIDATION_SCENES", 1)
    data = tmp_path / "mine"
    hums(data / "fold1", ("dog", "siren"), 2)
    for n, label in enumerate(("dog", "siren")):
        (data / "fold2" / label).mkdir(parents=True)
        soundfile.write(data / "fold2" / label / "0.wav", np.zeros(9_000 + n), 16_000)
    train.main(
        data=data, out=tmp_path / "out", config=recipe(1), layout="folders", validation_folds="2",
        cache=tmp_path / "cache", device="cpu",
    )  # fmt: skip
    assert "the confidence of events is not calibrated" in capsys.readouterr().err
    config = Config.from_dict(checkpoint.load(tmp_path / "out" / "classifier.safetensors").config)
    assert (config.segment_shift, config.event_threshold) == (0.0, Config().event_threshold)


def test_held_out_clips_that_the_start_has_heard_are_told(
    tmp_path: Path, recipe: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    start = tmp_path / "start.safetensors"
    for fold in (1, 2):
        hums(tmp_path / "mine" / f"fold{fold}", ("dog", "siren"), 1, seconds=0.2 + 0.1 * fold)
    for command in (train.main, finetune.main):
        for folds, told in (
            ({"trained_on": {"folders": [2]}}, "SEEN IN TRAINING: 2 of these 2 clips"),
            ({"chosen_on": {"folders": [2]}}, "USED TO CHOOSE: 2 of these 2 clips"),
            ({"trained_on": {"folders": [1]}}, ""),
        ):
            checkpoint.save(start, SMALL.to_dict(), build(SMALL), folds)
            which = {"start_from" if command is train.main else "weights": start}
            command(
                data=tmp_path / "mine", layout="folders", validation_folds="2", device="cpu",
                out=tmp_path / f"{command.__module__}{told[:4]}{len(folds)}", config=recipe(1),
                cache=tmp_path / "cache", **which,
            )  # fmt: skip
            err = capsys.readouterr().err
            if told:
                assert f"{told}. The weights to start from were" in err
            else:
                assert "of these 2 clips" not in err


def test_a_recording_of_its_own_is_not_enough_to_hold_out(
    tmp_path: Path, shipped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = hums(tmp_path / "mine", ("a", "b"), 1)
    out = tmp_path / "out"
    with pytest.raises(typer.Exit):
        finetune.main(data=data, out=out, weights=shipped, cache=tmp_path / "cache")
    assert "of a single recording" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("what", ["no classes", "no weights", "damaged weights"])
def test_what_finetuning_refuses_leaves_nothing(
    what: str, tmp_path: Path, shipped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = hums(tmp_path / "mine", ("a", "b"), 2)
    told = {
        "no classes": "a class is a folder of audio files",
        "no weights": "cannot be read",
        "damaged weights": "cannot be read",
    }[what]
    if what == "no classes":
        data = data / "a"
    elif what == "no weights":
        shipped = tmp_path / "none.safetensors"
    else:
        shipped.write_bytes(shipped.read_bytes()[:1000])
    out = tmp_path / "out"
    with pytest.raises(typer.Exit) as ended:
        finetune.main(data=data, out=out, weights=shipped, cache=tmp_path / "cache")
    assert ended.value.exit_code == 1
    assert told in capsys.readouterr().err
    assert not out.exists()


def test_training_by_folds_with_a_corrupt_clip(
    tmp_path: Path, recipe: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for fold in (1, 2):
        hums(tmp_path / "mine" / f"fold{fold}", ("low", "high"), 2)
    for n, path in enumerate(sorted((tmp_path / "mine").rglob("*.wav"))):
        soundfile.write(path, hum(n % 2, 0.5 + 0.01 * n, seed=n), 16_000)  # no two alike
    broken = tmp_path / "mine" / "fold1" / "low" / "1.wav"
    broken.write_bytes(b"RIFF" + bytes(40))
    out = tmp_path / "out"

    def run(skip_corrupt: bool) -> None:
        train.main(
            data=tmp_path / "mine", out=out, config=recipe(2), layout="folders",
            validation_folds="2", skip_corrupt=skip_corrupt, cache=tmp_path / "cache",
            device="cpu",
        )  # fmt: skip

    with pytest.raises(typer.Exit):
        run(skip_corrupt=False)
    assert str(broken) in capsys.readouterr().err
    assert not out.exists()
    run(skip_corrupt=True)
    told = capsys.readouterr()
    assert f"left out: {broken}" in told.err
    assert "left out 1 of 8 clips" in told.err
    assert "hybrid, 2 labels: 3 clips to train on, 4 held out" in told.out
    assert "fewer than 40 clips were held out" in told.err
    assert infer.load("cpu", out / "classifier.safetensors").config.labels == ("high", "low")


def test_training_on_the_merged_sets_calibrates(
    tmp_path: Path,
    recipe: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(train, "MIN_TO_CALIBRATE", 4)
    monkeypatch.setattr(train, "VALIDATION_SCENES", 1)
    merged = three_sets(tmp_path / "data")
    out, cache = tmp_path / "out", tmp_path / "cache"
    train.main(data=merged, out=out, config=recipe(3), cache=cache, device="cpu")
    assert "20 labels: 12 clips to train on, 4 held out" in capsys.readouterr().out
    config = infer.load("cpu", out / "classifier.safetensors").config
    assert config.labels == LABELS
    assert config.temperature != 1.0
    assert config.shift != 0.0
    assert config.segment_shift != 0.0
    train.main(
        data=merged, out=tmp_path / "all", config=recipe(1), cache=cache, everything=True,
        device="cpu",
    )  # fmt: skip
    assert "21 clips to train on, 0 held out" in capsys.readouterr().out
