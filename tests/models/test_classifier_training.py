"""The classifier's training: resuming, repeating, what is refused; the command."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import typer

from common import checkpoint
from common.datasets import Clip, ClipBank, labels_of, load_layout
from common.errors import DatasetInvalid, LeakFound, WeightsInvalid
from common.training_state import save_state
from services.classifier import train
from services.classifier.augment import Augmentation
from services.classifier.config import Config
from services.classifier.data import Batch
from services.classifier.recipe import Recipe, RecipeInvalid
from services.classifier.selection import Chosen, choose_share, without_copies
from services.classifier.train import StepBatches, fit_config_of
from tests.models.hums import hums
from tests.models.networks import SMALL_HYBRID

SMALL = Config(network=SMALL_HYBRID)
RATE = SMALL.sample_rate
QUICK = Recipe(steps=6, batch_segments=64, ema_decay=0.5)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# Training


@pytest.fixture
def small_set(tmp_path: Path) -> tuple[list[Clip], ClipBank]:
    clips = load_layout(hums(tmp_path / "set", ("low", "mid", "high"), 4), "folders")
    return clips, ClipBank.open(clips, tmp_path / "cache", RATE)


@dataclass(frozen=True)
class HeldOut:
    """Trains on small sets of which a quarter is held out, into folders of their own."""

    clips: list[Clip]
    bank: ClipBank
    folder: Path

    @property
    def chosen(self) -> Chosen:
        return choose_share(self.clips, 0.25, seed=0)

    def train(self, name: str, recipe: Recipe = QUICK, seed: int = 1, **more: Any) -> train.Trained:
        config = replace(SMALL, labels=labels_of(self.clips))
        return train.train(
            self.chosen.train, self.bank, config, recipe, self.folder / name,
            seed=seed, validation=self.chosen.validation, **more,
        )  # fmt: skip


@pytest.fixture
def held_out(small_set: tuple[list[Clip], ClipBank], tmp_path: Path) -> HeldOut:
    return HeldOut(*small_set, tmp_path)


def weights_in(path: Path) -> dict[str, bytes]:
    return {n: t.numpy().tobytes() for n, t in checkpoint.load(path).tensors.items()}


def test_training_resumes_and_repeats_to_the_bit(
    held_out: HeldOut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = held_out.train
    whole = trained("whole")
    assert (whole.steps, whole.model.training) == (6, False)
    assert set(whole.figures) == {"loss", "accuracy"}
    assert weights_in(trained("again").weights) == weights_in(whole.weights)
    assert weights_in(trained("other", seed=2).weights) != weights_in(whole.weights)

    draw = StepBatches.__call__

    def dies(self: StepBatches, step: int, position: float) -> Batch:
        if step == 4:
            raise KeyboardInterrupt
        return draw(self, step, position)

    def eager(*of: object) -> object:
        return replace(fit_config_of(*of), checkpoint_every_s=0.0)

    with monkeypatch.context() as patched:
        patched.setattr(StepBatches, "__call__", dies)
        patched.setattr(train, "fit_config_of", eager)
        with pytest.raises(KeyboardInterrupt):
            trained("cut")
    assert not (tmp_path / "cut" / "classifier.safetensors").exists()
    cut = trained("cut")
    assert weights_in(cut.weights) == weights_in(whole.weights)
    with pytest.raises(WeightsInvalid, match="another fit"):
        trained("cut", seed=3)
    notes = checkpoint.load(cut.weights).notes
    assert notes["trained_on"] == {"folders": sorted({clip.fold for clip in held_out.chosen.train})}
    assert notes["chosen_on"] == {}  # three clips, which were only reported


def test_folds_that_end_a_training_or_calibrate_it_are_noted(
    held_out: HeldOut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = sorted({clip.fold for clip in held_out.chosen.validation})

    def noted(name: str, recipe: Recipe, start_from: Path | None = None) -> Any:
        made = held_out.train(name, recipe, start_from=start_from)
        return checkpoint.load(made.weights).notes["chosen_on"]

    short = replace(QUICK, steps=1)
    assert noted("stopped", replace(short, patience=3)) == {"folders": folds}
    begun = tmp_path / "stopped" / "classifier.safetensors"
    assert noted("from it", short, begun) == {"folders": folds}
    monkeypatch.setattr(train, "MIN_TO_CALIBRATE", 1)
    monkeypatch.setattr(train, "VALIDATION_SCENES", 1)
    assert noted("calibrated", short) == {"folders": folds}


def test_weights_are_there_whatever_comes_of_the_calibration(
    held_out: HeldOut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("of no use")

    monkeypatch.setattr(train, "MIN_TO_CALIBRATE", 1)
    monkeypatch.setattr(train, "_calibrated", fails)
    with pytest.raises(ValueError, match="of no use"):
        held_out.train("out", replace(QUICK, steps=1))
    assert checkpoint.load(tmp_path / "out" / "classifier.safetensors").notes["trained_on"]


def test_training_refuses_labels_and_leaks(
    small_set: tuple[list[Clip], ClipBank], tmp_path: Path
) -> None:
    clips, bank = small_set
    config = replace(SMALL, labels=("low", "mid"))
    with pytest.raises(DatasetInvalid, match="is labelled high"):
        train.train(clips, bank, config, QUICK, tmp_path / "out", seed=0)
    config = replace(SMALL, labels=labels_of(clips))
    with pytest.raises(LeakFound):
        train.train(clips, bank, config, QUICK, tmp_path / "out", seed=0, validation=clips[:1])
    assert not (tmp_path / "out").exists()


def test_a_softmax_takes_one_label_a_clip(
    small_set: tuple[list[Clip], ClipBank], tmp_path: Path
) -> None:
    clips, bank = small_set
    two = replace(clips[0], labels=(clips[0].label, clips[-1].label))
    config = replace(SMALL, labels=labels_of(clips), multi_label=False)
    with pytest.raises(DatasetInvalid, match="multi_label = false") as refused:
        train.train([*clips[1:], two], bank, config, QUICK, tmp_path / "out", seed=0)
    assert str(two.path) in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_patience_needs_clips_that_are_held_out(
    small_set: tuple[list[Clip], ClipBank], tmp_path: Path
) -> None:
    clips, bank = small_set
    config, patient = replace(SMALL, labels=labels_of(clips)), replace(QUICK, patience=3)
    with pytest.raises(RecipeInvalid, match="patience = 3 ends a training by clips"):
        train.train(clips, bank, config, patient, tmp_path / "out", seed=0)
    assert not (tmp_path / "out").exists()


def test_stripes_are_narrower_than_the_network_that_is_trained(
    small_set: tuple[list[Clip], ClipBank], tmp_path: Path
) -> None:
    clips, bank = small_set
    config = replace(SMALL, labels=labels_of(clips), n_mels=32)
    wide = replace(QUICK, augmentation=Augmentation(blank_bands=32))  # fits 64 bands
    with pytest.raises(RecipeInvalid, match="blank_bands should be from 1 to 31"):
        train.train(clips, bank, config, wide, tmp_path / "out", seed=0)
    assert not (tmp_path / "out").exists()


# The command


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., None]:
    """The command on a small data set, with a small recipe."""
    data = hums(tmp_path / "set", ("low", "high"), 4)
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        '[model]\narchitecture = "stride_cnn"\n[model.network]\nchannels = [4, 4, 4, 4]\n'
        "[training]\nsteps = 2\nbatch_segments = 32\n"
    )

    def run(**options: Any) -> None:
        settings = {"data": data, "layout": "folders", "config": recipe, "device": "cpu"}
        paths = {"out": tmp_path / "out", "cache": tmp_path / "cache"}
        train.main(**settings | paths | options)

    return run


def test_files_of_one_name_in_two_folds_are_two(
    command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "folds"
    for fold in (1, 2):
        hums(data / f"fold{fold}", ("low", "high"), 1, seconds=0.2 + 0.1 * fold)
    command(data=data, validation_folds="2")
    written = weights_in(tmp_path / "out" / "classifier.safetensors")
    with pytest.raises(typer.Exit):
        command(data=data, validation_folds="1")
    assert "another fit (identity differ)" in capsys.readouterr().err
    moved = data.rename(tmp_path / "moved")  # that makes it no other
    command(data=moved, validation_folds="2")
    assert weights_in(tmp_path / "out" / "classifier.safetensors") == written
    soundfile.write(moved / "fold1" / "low" / "0.wav", np.full(8_000, 0.1), 16_000)
    with pytest.raises(typer.Exit):  # another sound under the same name
        command(data=moved, validation_folds="2")
    assert "another fit (identity differ)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"device": "gpu"}, "error: there is no device 'gpu': cpu, cuda, auto"),
        ({"device": "cuda"}, "error: there is no GPU that PyTorch can use"),
        ({"minutes": -1.0}, "error: minutes should be greater than 0, not -1"),
        ({"steps": 0}, "error: steps should be greater than or equal to 1, not 0"),
        ({"minutes": 1.0, "steps": 5}, "error: exactly one of epochs, steps and minutes must be"),
    ],
)
def test_what_cannot_be_is_told_in_one_sentence(
    options: dict[str, Any],
    told: str,
    command: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(typer.Exit) as ended:
        command(**options)
    assert ended.value.exit_code == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@contextmanager
def room_for(n_bytes: int) -> Iterator[None]:
    """Let no file grow beyond ``n_bytes``, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_command_and_leaves_no_half(
    command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, room_for(20_000):
        command()
    assert ended.value.exit_code == 1
    assert "error: File too large" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.part"))
    with pytest.raises(OSError, match="File too large"), room_for(1_000):
        save_state(tmp_path / "resume.pt", {"a": torch.zeros(1_000)})
    assert not list(tmp_path.glob("resume*"))


def test_clips_too_short_to_train_on_are_named(
    command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    click = tmp_path / "set" / "low" / "click.wav"
    soundfile.write(click, np.full(250, 0.1), 16_000)  # 500 samples at 32 kHz: one frame of 320
    command()
    told = capsys.readouterr().err
    assert f"too short to train on: {click}" in told
    assert "too short to train on: 1 of 9 clips, under 20 ms" in told
    (tmp_path / "set" / "click").mkdir()
    click.rename(tmp_path / "set" / "click" / "0.wav")
    with pytest.raises(typer.Exit):
        command(out=tmp_path / "other")
    assert "every clip of the class click is too short to train on" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_the_same_samples_in_another_format_are_a_leak(
    small_set: tuple[list[Clip], ClipBank], tmp_path: Path
) -> None:
    clips, _ = small_set
    waveform, rate_hz = soundfile.read(clips[0].path, dtype="int16")
    soundfile.write(tmp_path / "copy.flac", waveform, rate_hz)
    copy = replace(clips[0], path=tmp_path / "copy.flac", source_id="./copy.flac")
    bank = ClipBank.open([*clips, copy], tmp_path / "cache", RATE)
    config = replace(SMALL, labels=labels_of(clips))
    with pytest.raises(LeakFound, match="the same samples"):
        train.train(clips, bank, config, QUICK, tmp_path / "out", seed=0, validation=[copy])
    assert not (tmp_path / "out").exists()
    left = without_copies(Chosen(tuple(clips), (copy,), config.labels), bank)
    assert left.train == tuple(clips[1:])
