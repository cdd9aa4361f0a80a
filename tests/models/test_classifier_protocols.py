"""The classifier's protocols: which clips are on which side, resuming, peers, reports."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import typer
from tqdm import tqdm
from typer.testing import CliRunner

from common import checkpoint
from common.datasets import Clip, ClipBank, check_no_leaks, load_layout, renamed
from common.errors import ClassMissing, DatasetInvalid, DatasetMissing, FoldMissing, LeakFound
from services.classifier import evaluate, ship
from services.classifier.config import Config, HybridSettings
from services.classifier.evaluation import trials
from services.classifier.evaluation.predictions import Predictions, pooled
from services.classifier.evaluation.protocols import (
    PROTOCOLS,
    Learning,
    at_random,
    clips_for_every_fold,
    own_classes,
    parts_of,
)
from services.classifier.evaluation.results import scale_of
from services.classifier.evaluation.trials import (
    LOG_FILE,
    PREDICTIONS_FILE,
    Machine,
    Trial,
    TrialFailed,
)
from services.classifier.recipe import RECIPES, Recipe, RecipeInvalid
from tests.models.hums import hum, three_sets
from tests.models.urban import PER_FOLD, urban_sound

NETWORK = HybridSettings(channels=(4, 4, 8, 8), patch_width=8, patch_layers=1, fused_width=8)
RECIPE_TEXT = """
[model.network]
channels = [4, 4, 8, 8]
patch_width = 8
patch_layers = 1
fused_width = 8
[training]
steps = 2
batch_segments = 32
"""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# Sides


def clip(folder: Path, dataset: Any, fold: int, source: str, label: str) -> Clip:
    """A clip whose file is like no other's."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{dataset}-{fold}-{source}-{label}.wav"
    path.write_text(str(path))
    return Clip(path, label, dataset, fold, source, 0)


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    """UrbanSound8K in three folds, and an ESC clip of the same recording as one of its clips."""
    made = [
        clip(tmp_path / "c", "us8k", fold, f"{fold}{n}", label)
        for fold in (1, 2, 3)
        for label in ("dog", "siren")
        for n in range(4)
    ]
    made += [clip(tmp_path / "c", "esc10", fold, f"e{fold}", "rain") for fold in (1, 2)]
    return [*made, clip(tmp_path / "c", "esc10", 1, "10", "dog")]


def test_each_fold_is_tested_by_what_shares_nothing_with_it(clips: list[Clip]) -> None:
    first, second = parts_of(PROTOCOLS["us8k-lofo"], clips, only_own=False)
    assert (first.fold, second.fold) == (1, 2)
    assert {c.fold for c in first.test} == {1}
    assert {c.dataset for c in first.test} == {"us8k"}
    assert (len(first.test), len(first.train), first.dropped) == (8, 18, 1)  # Freesound id 10
    assert (len(second.test), len(second.train), second.dropped) == (8, 19, 0)
    for part in (first, second):
        check_no_leaks(part.train, part.test)
    others = clips_for_every_fold(PROTOCOLS["us8k-lofo"], clips)
    assert [(c.dataset, c.label) for c in others] == [("esc10", "rain")] * 2  # its dog is theirs
    with pytest.raises(DatasetMissing, match="nothing but us8k"):
        clips_for_every_fold(PROTOCOLS["us8k-lofo"], [c for c in clips if c.dataset == "us8k"])
    [own, _] = parts_of(PROTOCOLS["us8k-lofo"], clips, only_own=True)
    assert {c.dataset for c in own.train} == {"us8k"}
    assert len(own.train) == 16
    labels = ("dog", "rain", "siren")
    assert own_classes(PROTOCOLS["us8k-lofo"], clips, labels) == [0, 2]


def test_the_random_split_keeps_sizes_and_mixes_recordings(clips: list[Clip]) -> None:
    slices = [
        replace(c, path=c.path.rename(c.path.with_name(f"{n}-{c.path.name}")), source_id="one")
        for n, c in enumerate(clips)
        if c.dataset == "us8k"
    ]
    others = [c for c in clips if c.dataset == "esc10"]
    drawn = at_random(PROTOCOLS["us8k-lofo"])
    assert drawn.name == "random-split-of-us8k-lofo"
    parts = parts_of(drawn, [*slices, *others], only_own=False)
    for part in parts:
        assert Counter(c.label for c in part.test) == {"dog": 4, "siren": 4}
        assert sum(c.dataset == "us8k" for c in part.train) == 16
        with pytest.raises(LeakFound):
            check_no_leaks(part.train, part.test)
    tested = [{c.path for c in part.test} for part in parts]
    assert tested[0].isdisjoint(tested[1])
    assert tested[0] != {c.path for c in slices if c.fold == 1}
    again = parts_of(drawn, [*slices, *others], only_own=False)
    assert again == parts


def test_folds_that_do_not_fit_are_named(clips: list[Clip]) -> None:
    protocol = PROTOCOLS["us8k-lofo"]
    with pytest.raises(FoldMissing, match="no fold 7"):
        parts_of(protocol.over((7,)), clips, only_own=False)
    without = [c for c in clips if (c.fold, c.label) != (2, "dog")]
    with pytest.raises(ClassMissing, match="dog has no clip in fold 2"):
        parts_of(protocol, without, only_own=False)
    same = [replace(c, source_id="10") if c.label == "dog" else c for c in clips]
    with pytest.raises(ClassMissing, match="every clip of dog shares a recording with fold 1"):
        parts_of(protocol, same, only_own=False)


# Runs


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder that holds UrbanSound8K."""
    return urban_sound(tmp_path / "data" / "UrbanSound8K").parent


@pytest.fixture
def command(data: Path, tmp_path: Path) -> Callable[..., None]:
    """The command with one recipe, one seed and folders of its own."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE_TEXT)

    def run(**options: Any) -> None:
        evaluate.main(
            **{
                "data": data,
                "protocol": "us8k-lofo",
                "config": recipe,
                "learning": Learning.OWN,
                "seeds": 1,
                "out": tmp_path / "runs",
                "cache": tmp_path / "cache",
            }
            | options
        )

    return run


def folders_of(calls: Sequence[Any]) -> list[str]:
    return [out.name for out in calls]


def test_a_protocol_goes_on_where_it_was_cut_off(
    command: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained: list[Path] = []
    real = trials.train

    def cut_off(clips: Any, bank: Any, config: Any, recipe: Any, out: Path, **more: Any) -> Any:
        if trained:
            raise KeyboardInterrupt
        trained.append(out)
        return real(clips, bank, config, recipe, out, **more)

    monkeypatch.setattr(trials, "train", cut_off)
    with pytest.raises(KeyboardInterrupt):
        command()
    folder = tmp_path / "runs" / "us8k-lofo-own"
    first = folder / "tiny" / "fold1-seed0" / PREDICTIONS_FILE
    written = first.stat().st_mtime_ns
    assert not list(folder.glob("*.json"))

    def counted(clips: Any, bank: Any, config: Any, recipe: Any, out: Path, **more: Any) -> Any:
        trained.append(out)
        return real(clips, bank, config, recipe, out, **more)

    monkeypatch.setattr(trials, "train", counted)
    report = tmp_path / "report.json"
    command(json_path=report, peers="svm")
    assert folders_of(trained) == ["fold1-seed0", "fold2-seed0"]
    command(json_path=report, peers="svm")
    assert len(trained) == 2
    assert first.stat().st_mtime_ns == written

    found = Predictions.load(first)
    assert found.labels == ("dog", "siren")
    assert found.logits.shape == (2 * PER_FOLD, 2)
    assert set(found.folds.tolist()) == {1}
    raw = json.loads(report.read_text())
    assert [m["method"] for m in raw["methods"]] == ["MFCC + SVM", "tiny"]
    told = [Predictions.load(folder / "svm" / f"fold{k}-seed0" / PREDICTIONS_FILE) for k in (1, 2)]
    right = [float((p.logits.argmax(1) == p.present.argmax(1)).mean()) for p in told]
    assert raw["methods"][0]["measures"]["accuracy"]["by_fold"] == right
    assert min(right) > 0.8  # pitches
    assert raw == json.loads((folder / "report.json").read_text())
    table = (folder / "report.md").read_text()
    assert "| tiny" in table
    assert "fold 1" in table
    result = json.loads((folder / "tiny" / "result.json").read_text())
    assert [t["fold"] for t in result["trials"]] == [1, 2]
    picture = (folder / "tiny" / "result.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"

    # what was made is fit to calibrate weights: the tensors stay
    weights = folder / "tiny" / "fold1-seed0" / "classifier.safetensors"
    before = trials.load("cpu", weights)
    clips = renamed(load_layout(tmp_path / "data" / "UrbanSound8K", "us8k"))
    shipped = ship.ship(weights, [folder / "tiny"], clips, tmp_path / "cache")
    after = trials.load("cpu", weights)
    assert after.config == shipped
    pooled_scale = scale_of(
        pooled([Predictions.load(p) for p in sorted(first.parents[1].glob("fold*/*.npz"))])
    )
    assert shipped.temperature == pytest.approx(pooled_scale.temperature, abs=1e-4)
    assert shipped.shift == pytest.approx(pooled_scale.shift, abs=1e-4)
    assert shipped.segment_shift != before.config.segment_shift
    written_weights, whole = weights.read_bytes(), first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(ship, "load_clips", lambda data: clips)
    with pytest.raises(typer.Exit) as ended:
        ship.main(weights, tmp_path / "data", [folder / "tiny"], tmp_path / "cache")
    assert ended.value.exit_code == 1
    assert f"{first} holds no predictions" in capsys.readouterr().err
    assert weights.read_bytes() == written_weights
    first.write_bytes(whole)
    with pytest.raises(DatasetMissing, match=r"\.wav was tested and is not there, nor 11 more"):
        ship.ship(weights, [folder / "tiny"], [], tmp_path / "cache")
    assert after.digest != before.digest
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(tensor, after.model.state_dict()[name])


def test_the_other_data_sets_come_first_once_for_all_folds(
    command: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[tuple[str, set[str], Path | None]] = []
    real = trials.train

    def noted(clips: Any, bank: Any, config: Any, recipe: Any, out: Path, **more: Any) -> Any:
        begun.append((out.name, {c.dataset for c in clips}, more["start_from"]))
        short = replace(recipe, steps=2, texture_steps=2)
        return real(clips, bank, config, short, out, **more)

    monkeypatch.setattr(trials, "train", noted)
    command(
        data=three_sets(tmp_path / "three"),
        protocol="esc10-5fold",
        folds="1,2",
        learning=Learning.OTHERS_FIRST,
        then=RECIPES / "transfer.toml",
    )
    folder = tmp_path / "runs" / "esc10-5fold-1-2-others-first"
    start = folder / "tiny" / "others-seed0" / "classifier.safetensors"
    assert begun == [
        ("others-seed0", {"us8k", "digits"}, None),
        ("fold1-seed0", {"esc10"}, start),
        ("fold2-seed0", {"esc10"}, start),
    ]
    notes = checkpoint.load(folder / "tiny" / "fold2-seed0" / "classifier.safetensors").notes
    assert notes["trained_on"]["esc10"] == [1, 3, 4, 5]
    assert notes["trained_on"]["us8k"] == [1, 2, 3]
    assert "| tiny" in (folder / "report.md").read_text()


def test_corrupt_clips_end_a_protocol_or_are_left_out(
    command: Callable[..., None], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [sorted(data.rglob(f"fold{k}/*.wav"))[0] for k in (1, 3)]
    for path in broken:
        path.write_bytes(b"no sound")
    report = tmp_path / "report.json"
    with pytest.raises(typer.Exit):
        command(json_path=report)
    told = capsys.readouterr().err
    assert all(path.name in told for path in broken)
    assert not (tmp_path / "runs").exists()
    command(json_path=report, skip_corrupt=True, folds="1", network=False, peers="forest")
    assert "left out 2 of 18 clips" in capsys.readouterr().err
    raw = json.loads(report.read_text())
    assert set(raw["corrupt"]) == {f"us8k/{p.parent.name}/{p.name}" for p in broken}
    assert all(raw["corrupt"].values())
    assert raw["methods"][0]["n"] == 2 * PER_FOLD - 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--layout", "us8k"], "--layout means nothing with --protocol"),
        (["--threshold", "0.3"], "--threshold means nothing with --protocol"),
        (["--picture", "p.png"], "--picture means nothing with --protocol"),
        (["--speed"], "--speed means nothing with --protocol"),
    ],
)
def test_options_that_mean_nothing_with_a_protocol(given: list[str], told: str) -> None:
    app = typer.Typer()
    app.command()(evaluate.main)
    command = ["--data", "none", "--protocol", "us8k-lofo"]
    run = CliRunner().invoke(app, [*command, *given])
    assert run.exit_code == 2
    assert told in " ".join(run.output.split())


def test_options_that_mean_nothing_without_a_protocol() -> None:
    app = typer.Typer()
    app.command()(evaluate.main)
    run = CliRunner().invoke(app, ["--data", "none", "--seeds", "3"])
    assert run.exit_code == 2
    assert "--seeds means nothing without --protocol" in " ".join(run.output.split())


def test_another_recipe_in_the_same_folder_is_refused(
    command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(folds="2")
    (tmp_path / "tiny.toml").write_text(RECIPE_TEXT + "lr = 0.5\n")
    with pytest.raises(typer.Exit):
        command(folds="2")
    assert "differs in recipe.lr;" in capsys.readouterr().err
    with pytest.raises(typer.BadParameter, match="no protocol 'esc'"):
        command(protocol="esc")
    with pytest.raises(typer.BadParameter, match="no peer 'tree'"):
        command(peers="forest,tree")


def test_the_random_split_stands_beside_the_official_one(
    command: Callable[..., None], tmp_path: Path
) -> None:
    command(network=False, peers="svm", protocol="random-split")
    drawn = tmp_path / "runs" / "random-split-of-us8k-lofo-own" / "report.md"
    assert "not run" in drawn.read_text()
    command(network=False, peers="svm")
    command(network=False, peers="svm", protocol="random-split")
    reports = {
        name: json.loads((tmp_path / "runs" / f"{name}-own" / "report.json").read_text())
        for name in ("us8k-lofo", "random-split-of-us8k-lofo")
    }
    official, flattered = (
        raw["methods"][0]["measures"]["accuracy"]["median"] for raw in reports.values()
    )
    gap = f"| {100 * flattered:.1f} | {100 * official:.1f} | {100 * (flattered - official):+.1f} |"
    assert " ".join(drawn.read_text().splitlines()[-1].split()) == f"| MFCC + SVM {gap}"


# Trials


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    made = []
    for n in range(4):
        path = tmp_path / f"{n}.wav"
        soundfile.write(path, hum(n % 2, 0.4, n), 16_000)
        made.append(Clip(path, ("dog", "siren")[n % 2], "us8k", 1 + n // 2, str(n), n))
    config = Config(labels=("dog", "siren"), network=NETWORK)
    recipe = Recipe(steps=1, batch_segments=16)
    return Trial("t", tmp_path / "t", tuple(made[:2]), tuple(made[2:]), config, recipe, 0)


def test_a_leak_ends_it_before_anything_is_trained(trial: Trial, tmp_path: Path) -> None:
    leak = replace(trial.train[0], source_id=trial.test[0].source_id)
    with pytest.raises(LeakFound, match="the same Freesound id 2"):
        trials.run_trials([replace(trial, train=(*trial.train, leak))], Machine(tmp_path / "cache"))
    assert not trial.folder.exists()


def test_the_same_samples_on_both_sides_are_dropped_or_end_it(trial: Trial, tmp_path: Path) -> None:
    waveform, rate_hz = soundfile.read(trial.test[0].path, dtype="int16")
    soundfile.write(tmp_path / "copy.flac", waveform, rate_hz)
    copy = replace(trial.train[0], path=tmp_path / "copy.flac", source_id="77", fold=2)
    with pytest.raises(LeakFound, match="the same samples"):
        trials.run_trials([replace(trial, train=(*trial.train, copy))], Machine(tmp_path / "cache"))
    assert not trial.folder.exists()
    own = [*trial.train, copy]
    clips = [replace(c, fold=1) for c in trial.test]
    clips += [replace(c, fold=2) for c in own]
    bank = ClipBank.open(clips, tmp_path / "cache")
    [part] = parts_of(PROTOCOLS["us8k-lofo"].over((1,)), clips, only_own=True, bank=bank)
    assert copy.path not in {c.path for c in part.train}
    assert part.dropped == 1


def test_what_does_not_fit_ends_it_before_a_folder_is_claimed(trial: Trial, tmp_path: Path) -> None:
    patient = replace(trial, recipe=replace(trial.recipe, patience=2))
    with pytest.raises(RecipeInvalid, match="patience = 2"):
        trials.run_trials([patient], Machine(tmp_path / "cache"))
    two = replace(trial.train[0], labels=("dog", "siren"))
    softmax = replace(trial, train=(two,), config=replace(trial.config, multi_label=False))
    with pytest.raises(DatasetInvalid, match="multi_label = false"):
        trials.run_trials([softmax], Machine(tmp_path / "cache"))
    assert not trial.folder.exists()


def test_in_processes_of_their_own_what_fails_names_its_log(trial: Trial, tmp_path: Path) -> None:
    bad = replace(
        trial,
        name="a bad one",
        folder=tmp_path / "bad",
        config=replace(trial.config, labels=("dog", "rain")),
    )
    with pytest.raises(TrialFailed, match=r"a bad one failed: .*siren.*; more in .*log\.txt"):
        trials.side_by_side([trial, bad], Machine(tmp_path / "cache"), tqdm(disable=True))
    assert "Traceback" in (bad.folder / LOG_FILE).read_text()
    assert not (bad.folder / PREDICTIONS_FILE).exists()
    assert Predictions.load(trial.folder / PREDICTIONS_FILE).logits.shape == (2, 2)
