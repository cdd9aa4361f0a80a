"""How a classifier is trained, read from a TOML file: [model], [training] and [augmentation].

[model] holds the fields of ``Config`` but for the labels, which the data decide, and the
calibration, which is fitted; [augmentation] those of ``Augmentation``. What is left out has its
default. Everything is checked when a recipe is made: names, types, ranges.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field, TypeAdapter, field_validator, model_validator

from common.errors import PermanentError, WeightsInvalid
from common.features import mel_filters
from services.classifier.augment import Augmentation
from services.classifier.config import Config

RECIPES = Path(__file__).parent / "recipes"
TABLES = frozenset({"model", "training", "augmentation"})
NOT_IN_A_RECIPE = {
    "labels": "the data decide them",
    "temperature": "it is fitted after training",
    "shift": "it is fitted after training",
    "segment_temperature": "it is fitted after training",
    "segment_shift": "it is fitted after training",
    "event_threshold": "it is fitted after training",
}

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0, le=100.0)]


class RecipeInvalid(PermanentError):
    """A recipe file cannot be used; names the file, the table and the key."""

    code = "recipe_invalid"


@pydantic.dataclasses.dataclass(
    frozen=True, config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
)
class Recipe:
    """How to train. Exactly one of ``epochs``, ``steps`` and ``minutes`` ends the schedule.

    An epoch is as many seconds of batches as the clips last. Only schedules that end by epochs or
    steps give the same weights twice.
    """

    epochs: Annotated[float, Field(gt=0.0, le=100_000.0)] | None = None
    steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    minutes: Annotated[float, Field(gt=0.0, le=100_000.0)] | None = None

    lr: Annotated[float, Field(gt=0.0, le=1.0)] = 2e-3  # at the peak of the cycle
    body_lr_share: Share = 1.0  # of ``lr``, for all but the heads; less when fine-tuning
    warmup_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15  # of the schedule
    optimizer: Literal["adamw", "adam", "rmsprop", "sgd"] = "adamw"
    weight_decay: Share = 0.03
    grad_clip: Annotated[float, Field(gt=0.0, le=1e6)] = 5.0
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    bf16: bool | Literal["auto"] = "auto"  # the forward pass; auto: where the hardware has it
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # where the command names none

    batch_segments: Annotated[int, Field(ge=8, le=2**20)] = 512  # of 80 ms, over the whole batch
    final_full_share: Share = 0.0  # of the schedule, its last part: on windows as heard in use
    texture_steps: Annotated[int, Field(ge=0, le=10_000_000)] = 0  # of a hybrid's texture; 0: none

    loss: Literal["bce", "focal"] = "bce"  # of presence, in clips and in segments
    focal_gamma: Annotated[float, Field(ge=0.0, le=10.0)] = 2.0
    segment_targets: Literal["activity", "clip"] = "activity"  # "clip": every segment has its label
    share_weight: Weight = 1.0  # softmax against the shares of the mixture
    presence_weight: Weight = 1.0  # sigmoids against what sounds; nothing where one label is asked
    segment_weight: Weight = 0.5
    branch_weight: Weight = 0.3

    validate_every: Annotated[int, Field(ge=1)] = 500  # steps; only where clips are held out
    patience: Annotated[int, Field(ge=1)] | None = None  # validations; None: to the last epoch

    augmentation: Augmentation = Augmentation()

    @field_validator("augmentation")
    @classmethod
    def _in_range(cls, how: Augmentation) -> Augmentation:
        for name, value in vars(how).items():
            if value < 0 or (name.endswith("_share") and value > 1):
                limit = "from 0 to 1" if name.endswith("_share") else "at least 0"
                raise ValueError(f"{name} should be {limit}, not {value:g}")
        if how.alone_share + how.pair_share > 1:
            raise ValueError("alone_share and pair_share should be at most 1 together")
        return how

    @model_validator(mode="after")
    def _one_end(self) -> Recipe:
        given = [n for n in ("epochs", "steps", "minutes") if getattr(self, n) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"exactly one of epochs, steps and minutes must be given, not {found}")
        return self


@dataclass(frozen=True)
class Plan:
    """What a recipe file holds. ``config`` has the default labels until the data are known."""

    config: Config
    recipe: Recipe


def read_plan(path: Path) -> Plan:
    """Return what a recipe file says.

    Raises:
        RecipeInvalid: no such file, no TOML, a key that is unknown, mistyped or out of range, mel
            bands that are too fine for the spectrum, or stripes that are too wide for them.
    """
    if not path.is_file():
        known = ", ".join(sorted(p.name for p in RECIPES.glob("*.toml")))
        raise RecipeInvalid(f"there is no recipe {path}; {RECIPES} holds {known}")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeInvalid(f"{path} is no valid TOML: {error}") from error
    unknown = sorted(set(tables) - TABLES)
    if unknown:
        raise RecipeInvalid(f"{path}: unknown table or key {unknown[0]}; known: {_listed(TABLES)}")
    for name in sorted(TABLES):
        if not isinstance(tables.get(name, {}), dict):
            raise RecipeInvalid(f"{path}: {name} must be a table, [{name}]")
    model = tables.get("model", {})
    for key, reason in NOT_IN_A_RECIPE.items():
        if key in model:
            raise RecipeInvalid(f"{path}: [model] {key} has no place in a recipe: {reason}")
    try:
        config = Config.from_dict(model)
    except WeightsInvalid as error:
        raise RecipeInvalid(f"{path}: [model] {error}") from error
    try:
        mel_filters(config.sample_rate, config.n_fft, config.n_mels, 0.0, config.sample_rate / 2)
    except ValueError as error:
        raise RecipeInvalid(f"{path}: [model] n_mels: {error}") from error
    recipe = _recipe(path, tables.get("training", {}), tables.get("augmentation", {}))
    try:
        check_stripes(recipe, config)
    except RecipeInvalid as error:
        raise RecipeInvalid(f"{path}: {error}") from error
    return Plan(config, recipe)


def check_stripes(recipe: Recipe, config: Config) -> None:
    """Raise RecipeInvalid where stripes are blanked that do not fit between the mel bands."""
    how, n_mels = recipe.augmentation, config.n_mels
    if how.blank_share > 0 and not 1 <= how.blank_bands < n_mels:
        raise RecipeInvalid(
            f"[augmentation] blank_bands should be from 1 to {n_mels - 1}, one less than n_mels, "
            f"not {how.blank_bands}; blank_share = 0 blanks nothing"
        )


def lasting(recipe: Recipe, minutes: float | None = None, steps: int | None = None) -> Recipe:
    """Return a recipe that ends after some minutes or steps, whatever ended it before.

    Raises:
        RecipeInvalid: the length is out of range, or not exactly one is given.
    """
    try:
        return replace(recipe, epochs=None, steps=steps, minutes=minutes)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        told = f"{first['loc'][0]} {reason}, not {first['input']:g}" if first["loc"] else reason
        raise RecipeInvalid(told) from error


def _recipe(path: Path, training: dict[str, Any], augmentation: dict[str, Any]) -> Recipe:
    if "augmentation" in training:
        raise RecipeInvalid(f"{path}: augmentation is a table of its own, [augmentation]")
    table = training | {"augmentation": augmentation}
    try:
        # as JSON, so that a number is no text and a list may be a tuple
        return TypeAdapter(Recipe).validate_json(json.dumps(table, default=str))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = [str(part) for part in first["loc"]]
        kind, name = (
            (Augmentation, "augmentation")
            if place[:1] == ["augmentation"]
            else (Recipe, "training")
        )
        keys = [part for part in place if part != "augmentation"]
        where = " ".join([f"[{name}]", *keys])
        if first["type"] == "unexpected_keyword_argument":
            known = _listed(f.name for f in fields(kind) if f.name != "augmentation")
            raise RecipeInvalid(f"{path}: {where} is not known; known: {known}") from error
        given = f", not {first['input']!r:.80}" if keys else ""
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise RecipeInvalid(f"{path}: {where} {message}{given}") from error


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
