"""The classifier's recipes: what they say, what is refused, what follows from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.labels import LABELS
from services.classifier.augment import Augmentation
from services.classifier.config import HybridSettings
from services.classifier.recipe import RECIPES, Recipe, RecipeInvalid, read_plan
from services.classifier.train import fit_config_of


@pytest.mark.parametrize("name", sorted(path.name for path in RECIPES.glob("*.toml")))
def test_the_recipes_can_be_read(name: str) -> None:
    plan = read_plan(RECIPES / name)
    if name not in ("finetune.toml", "transfer.toml"):  # there the weights bring the network
        assert plan.config.architecture == name.removesuffix(".toml")
    assert plan.config.labels == LABELS


def test_a_recipe_says_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[model]\narchitecture = "hybrid"\nn_mels = 96\nmulti_label = false\n'
        "[model.network]\nfused_width = 32\n"
        "[training]\nepochs = 2\nlr = 1\nloss = 'focal'\n"
        "[augmentation]\nnoise_share = 0\nblank_share = 0\nblank_bands = 0\n"
    )
    plan = read_plan(path)
    assert (plan.config.n_mels, plan.config.multi_label) == (96, False)
    assert plan.config.network == HybridSettings(fused_width=32)
    how = Augmentation(noise_share=0.0, blank_share=0.0, blank_bands=0)
    assert plan.recipe == Recipe(epochs=2.0, lr=1.0, loss="focal", augmentation=how)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[training", "no valid TOML"),
        ("[training]\nsteps = 3\n[augment]\n", "unknown table or key augment"),
        ("training = 3", "training must be a table"),
        ("[training]\nsteps = 3\nlearning_rate = 1", "[training] learning_rate is not known"),
        (
            "[training]\nsteps = 3\nlr = 'high'",
            "lr should be a valid number, not 'high'",
        ),
        ("[training]\nsteps = 3\nlr = 0.0", "[training] lr should be greater than 0, not 0"),
        ("[training]\nsteps = 3\nlr = nan", "[training] lr should be a finite number, not nan"),
        ("[training]\nsteps = 2.5", "[training] steps should be a valid integer, not 2.5"),
        ("[training]\nsteps = true", "[training] steps should be a valid integer, not True"),
        ("[training]\nsteps = 3\nloss = 'mse'", "[training] loss should be 'bce' or 'focal'"),
        (
            "[training]\nlr = 0.1",
            "one of epochs, steps and minutes must be given, not none",
        ),
        ("[training]\nsteps = 3\nepochs = 1", "not epochs and steps"),
        ("[training]\nsteps = 3\n[augmentation]\nnoise = 1", "[augmentation] noise is not known"),
        (
            "[training]\nsteps = 3\n[augmentation]\nnoise_share = 2.0",
            "[augmentation] noise_share should be from 0 to 1, not 2",
        ),
        (
            "[training]\nsteps = 3\n[augmentation]\nnoise_share = 'x'",
            "[augmentation] noise_share should be a valid number, not 'x'",
        ),
        (
            "[training]\nsteps = 3\n[augmentation]\nblank_bands = 0",
            "[augmentation] blank_bands should be from 1 to 63, one less than n_mels, not 0",
        ),
        (
            "[model]\nn_mels = 32\n[training]\nsteps = 3\n[augmentation]\nblank_bands = 32",
            "[augmentation] blank_bands should be from 1 to 31, one less than n_mels, not 32",
        ),
        ("[training]\nsteps = 3\naugmentation = 3", "augmentation is a table of its own"),
        (
            "[model]\nn_mels = 256\nn_fft = 512\n[training]\nsteps = 3",
            "[model] n_mels: 256 mel bands are too fine for n_fft 512 at 32000 Hz",
        ),
        ("[model]\nn_mels = 65\n[training]\nsteps = 3", "[model] the classifier's config"),
        ("[model]\nlabels = ['a']\n[training]\nsteps = 3", "labels has no place in a recipe"),
        ("[model]\ntemperature = 2.0", "temperature has no place in a recipe: it is fitted"),
    ],
)
def test_a_recipe_that_is_wrong_names_file_and_key(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(RecipeInvalid) as refused:
        read_plan(path)
    assert "wrong.toml" in str(refused.value)
    assert told in str(refused.value)


def test_a_recipe_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match=r"there is no recipe .*hybrid\.toml"):
        read_plan(tmp_path / "none.toml")


def test_length_of_an_epoch_by_hand() -> None:
    # 100 s of clips in batches of 10 segments of 0.08 s: 125 steps an epoch
    config = fit_config_of(Recipe(epochs=2, batch_segments=10), 100.0, 0.08, 4, "cpu")
    assert (config.steps, config.minutes, config.seed) == (250, None, 4)
    assert fit_config_of(Recipe(minutes=3.0), 100.0, 0.08, 0, "cpu").minutes == 3.0


def test_bf16_is_taken_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(recipe: Recipe) -> bool:
        return fit_config_of(recipe, 100.0, 0.08, 0, "cpu").bf16

    for able in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"amx_bf16": able})
        assert taken(Recipe(steps=1)) is able
        assert taken(Recipe(steps=1, bf16=True)) is True
        assert taken(Recipe(steps=1, bf16=False)) is False
