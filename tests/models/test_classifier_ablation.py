"""The ablation: which combinations there are, what each changes, and the one table."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer

from services.classifier import ablation
from services.classifier.ablation import (
    Cell,
    Row,
    Shape,
    applied,
    cells_of,
    fair_means,
    write_report,
)
from services.classifier.recipe import RECIPES, read_plan
from tests.models.hums import hums
from tests.models.urban import PER_FOLD, urban_sound


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_combinations_by_hand() -> None:
    cells = list(cells_of((64, 128), (512, 1024), ("adam", "sgd"), True, 32_000))
    assert len(cells) == 3 * 2 * 2  # 128 bands are too fine for 512 samples
    assert Cell(64, 512, "sgd", False) in cells
    assert not [cell for cell in cells if (cell.n_mels, cell.window) == (128, 512)]
    assert Cell(64, 512, "sgd", False).name == "64m-512w-sgd-plain"
    assert [c.specaugment for c in cells_of((64,), (512,), ("adam",), False, 32_000)] == [True]


def test_a_combination_changes_what_it_names_and_nothing_else() -> None:
    plan = read_plan(RECIPES / "stride_cnn.toml")
    made = applied(Cell(32, 512, "sgd", False), plan, ("a", "b"), 3.0)
    assert (made.config.n_mels, made.config.n_fft, made.config.labels) == (32, 512, ("a", "b"))
    assert made.config.hop_length == plan.config.hop_length
    assert (made.recipe.optimizer, made.recipe.lr, made.recipe.epochs) == ("sgd", 1e-2, 3.0)
    assert made.recipe.weight_decay == 0.0
    assert made.recipe.augmentation.blank_share == 0.0
    with_it = applied(Cell(32, 512, "sgd", True), plan, ("a", "b"), 3.0)
    assert with_it.recipe.augmentation == plan.recipe.augmentation
    augmentation = replace(plan.recipe.augmentation, blank_share=0.0)
    assert made == replace(with_it, recipe=replace(with_it.recipe, augmentation=augmentation))


def test_the_table_by_hand(tmp_path: Path) -> None:
    rows = [
        Row(32, 512, "adam", True, 0.5, 0.0, 0.4),
        Row(64, 512, "adam", True, 0.8, 0.0, 0.7),
        Row(64, 1024, "sgd", False, 0.2, 0.0, 0.1),
    ]
    text = write_report(tmp_path, "a title", rows, [Shape(128, 512)], {"us8k/a.wav": "empty"})
    best, *_ = [line for line in text.splitlines() if line.startswith("| 64")]
    assert [cell.strip() for cell in best.strip("|").split("|")] == [
        "64",
        "512",
        "adam",
        "yes",
        "80.0",
        "0.0",
        "70.0",
    ]
    # only the first two differ in one factor alone
    assert "| n_mels      | 32    | 50.0            | 1            |" in text
    assert "| n_mels      | 64    | 80.0            | 1            |" in text
    assert "| optimizer   | adam  | -               | 0            |" in text
    assert "| 128  | 512    | any       | any         | cannot be  | -   | -          |" in text
    with (tmp_path / "ablation.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [row["accuracy"] for row in read] == ["0.5", "0.8", "0.2"]
    raw = json.loads((tmp_path / "ablation.json").read_text())
    assert raw["rows"][2]["optimizer"] == "sgd"
    assert raw["impossible"] == [{"n_mels": 128, "window": 512}]
    assert raw["corrupt"] == {"us8k/a.wav": "empty"}
    assert (tmp_path / "ablation.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_level_is_compared_where_all_levels_are() -> None:
    rows = [
        Row(64, 512, "adam", True, 0.1, 0.0, 0.0),
        Row(64, 1024, "adam", True, 0.5, 0.0, 0.0),
        Row(128, 1024, "adam", True, 0.7, 0.0, 0.0),
        Row(64, 1024, "sgd", True, 0.3, 0.0, 0.0),
        Row(128, 1024, "sgd", True, 0.2, 0.0, 0.0),
    ]
    assert fair_means(rows, "n_mels") == {64: [0.5, 0.3], 128: [0.7, 0.2]}  # 512 has no 128
    assert fair_means(rows, "window") == {512: [0.1], 1024: [0.5]}
    assert fair_means(rows, "specaugment") == {True: [0.1, 0.5, 0.7, 0.3, 0.2]}


@pytest.mark.parametrize(
    ("levels", "told"),
    [
        ({"mels": "256", "windows": "512"}, "256 mel bands are too fine for a window of 512"),
        ({"mels": "40"}, "n_mels must be a multiple of 16, not 40"),
        ({"windows": "256"}, "hop_length must be a whole number from 16 to 256"),
        ({"mels": ""}, "mels and windows must name at least one number"),
    ],
)
def test_levels_that_cannot_be_are_refused_first(
    levels: dict[str, str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit):
        ablation.main(data=tmp_path, out=tmp_path / "out", **levels)
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_data_of_several_labels_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hums(tmp_path / "data", ("dog", "siren"), 1)
    (tmp_path / "data" / "manifest.csv").write_text(
        "path,label,fold\ndog/0.wav,dog;siren,1\nsiren/0.wav,siren,2\n"
    )
    with pytest.raises(typer.Exit):
        ablation.main(data=tmp_path / "data", out=tmp_path / "out", layout="csv")
    told = capsys.readouterr().err
    assert "dog/0.wav is labelled dog, siren" in told
    assert not (tmp_path / "out").exists()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """One step of a tiny network."""
    path = tmp_path / "r.toml"
    path.write_text(
        '[model]\narchitecture = "stride_cnn"\nmulti_label = false\n'
        "[model.network]\nchannels = [4, 4, 4, 4]\n[training]\nsteps = 1\nbatch_segments = 16\n"
    )
    return path


def test_the_whole_command_on_two_combinations(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    data = urban_sound(tmp_path / "u")
    broken = sorted((data / "audio" / "fold3").glob("*.wav"))[0]
    broken.write_bytes(b"no sound")
    with pytest.raises(typer.Exit):
        ablation.main(data=data, out=out, config=recipe, cache=tmp_path / "cache")
    assert broken.name in capsys.readouterr().err
    assert not out.exists()
    for _ in range(2):  # the second finds all of it done
        ablation.main(
            data=data,
            skip_corrupt=True,
            out=out,
            config=recipe,
            mels="32",
            windows="512",
            optimizers="adam,sgd",
            both=False,
            epochs=0.01,
            cache=tmp_path / "cache",
        )
    assert "stride_cnn on us8k, fold 1, 0.01 epochs, 1 seed" in capsys.readouterr().out
    raw = json.loads((out / "ablation.json").read_text())
    rows = raw["rows"]
    assert list(raw["corrupt"]) == [f"us8k/fold3/{broken.name}"]
    assert [row["optimizer"] for row in rows] == ["adam", "sgd"]
    assert all(row["accuracy"] * 2 * PER_FOLD % 1 == 0 for row in rows)  # of six clips
    with pytest.raises(typer.BadParameter, match="no optimizer 'lion'"):
        ablation.main(data=tmp_path, out=out, optimizers="lion")


def test_another_test_fold_is_another_training(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for fold in (1, 2):
        hums(tmp_path / "data" / f"fold{fold}", ("dog", "siren"), 1, seconds=0.2 + 0.1 * fold)

    def run(fold: int) -> None:
        ablation.main(
            data=tmp_path / "data", layout="folders", test_fold=fold, out=tmp_path / "out",
            config=recipe, mels="32", windows="512", optimizers="adam", both=False, epochs=0.01,
            cache=tmp_path / "cache",
        )  # fmt: skip

    run(1)
    with pytest.raises(typer.Exit):
        run(2)  # its files have the names of the other fold's
    assert "it differs in test_clips, training_clips" in capsys.readouterr().err
    assert "fold 1" in (tmp_path / "out" / "ablation.md").read_text()
