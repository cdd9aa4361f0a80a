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
from services.classifier.ablation import Cell, Row, applied, cells_of, write_report
from services.classifier.recipe import RECIPES, read_plan
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
    text = write_report(tmp_path, "a title", rows)
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
    assert "| n_mels      | 64    | 50.0            | 2            |" in text
    assert "| optimizer   | adam  | 65.0            | 2            |" in text
    with (tmp_path / "ablation.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [row["accuracy"] for row in read] == ["0.5", "0.8", "0.2"]
    assert json.loads((tmp_path / "ablation.json").read_text())["rows"][2]["optimizer"] == "sgd"
    assert (tmp_path / "ablation.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_whole_command_on_two_combinations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[model]\narchitecture = "stride_cnn"\nmulti_label = false\n'
        "[model.network]\nchannels = [4, 4, 4, 4]\n[training]\nsteps = 1\nbatch_segments = 16\n"
    )
    out = tmp_path / "out"
    for _ in range(2):  # the second finds all of it done
        ablation.main(
            data=urban_sound(tmp_path / "u") if not out.exists() else tmp_path / "u",
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
    rows = json.loads((out / "ablation.json").read_text())["rows"]
    assert [row["optimizer"] for row in rows] == ["adam", "sgd"]
    assert all(row["accuracy"] * 2 * PER_FOLD % 1 == 0 for row in rows)  # of six clips
    with pytest.raises(typer.BadParameter, match="no optimizer 'lion'"):
        ablation.main(data=tmp_path, out=out, optimizers="lion")
