"""What a training can be made of: clips that fit the config and the recipe, a device that is there.

Checked before anything is trained. Which clips those are is a matter for ``selection``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import typer

from common.datasets import Clip, ClipBank, labels_of
from common.errors import ClassMissing, DatasetInvalid, PermanentError
from services.classifier.config import Config
from services.classifier.recipe import Recipe, RecipeInvalid, check_stripes

DEVICES = ("cpu", "cuda", "auto")
MIN_FRAMES = 2
"""Of a clip that a crop can be taken from, as ``MelBank.usable`` has it."""


class DeviceMissing(PermanentError):
    """A device that was named is not there."""

    code = "device_missing"


def device_named(device: str) -> str:
    """Return "cpu" or "cuda"; "auto" is a GPU if there is one.

    Raises:
        DeviceMissing: another name, or "cuda" where there is no GPU.
    """
    if device not in DEVICES:
        raise DeviceMissing(f"there is no device {device!r}: {', '.join(DEVICES)}")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceMissing("there is no GPU that PyTorch can use; cpu and auto go without")
    return device


def check_fits(
    clips: Sequence[Clip], validation: Sequence[Clip], config: Config, recipe: Recipe
) -> None:
    """Do nothing if a recipe and a config can be followed on these clips; arguments as ``train``.

    Raises:
        DatasetInvalid: a clip has a label that the config has not, or several where it allows one.
        RecipeInvalid: the recipe stops by clips that are held out, and none are; or it blanks
            stripes that are too wide for the config's mel bands, which need not be the recipe's.
    """
    check_stripes(recipe, config)
    _check_labels([*clips, *validation], config)
    if recipe.patience is not None and not validation:
        raise RecipeInvalid(
            f"[training] patience = {recipe.patience} ends a training by clips that are held out, "
            "and none are: hold some out, or leave patience out of the recipe"
        )


def too_short(clips: Sequence[Clip], bank: ClipBank, config: Config) -> list[Clip]:
    """Return the clips that no batch is made of, since they are under MIN_FRAMES frames."""
    return [clip for clip in clips if bank.n_samples(clip) // config.hop_length < MIN_FRAMES]


def check_long_enough(clips: Sequence[Clip], bank: ClipBank, config: Config) -> None:
    """Raise ClassMissing where every clip of a class is too short to train on."""
    short = {clip.path for clip in too_short(clips, bank, config)}
    left = labels_of(clip for clip in clips if clip.path not in short)
    for label in labels_of(clips):
        if label not in left:
            raise ClassMissing(
                f"every clip of the class {label} is too short to train on: under "
                f"{_shortest_ms(config):g} ms",
                label,
                None,
            )


def tell_short(clips: Sequence[Clip], bank: ClipBank, config: Config) -> None:
    """Name and count on stderr the clips that are too short to train on."""
    short = too_short(clips, bank, config)
    for clip in short:
        typer.echo(f"too short to train on: {clip.path}", err=True)
    if short:
        typer.echo(
            f"too short to train on: {len(short)} of {len(clips)} clips, under "
            f"{_shortest_ms(config):g} ms",
            err=True,
        )


def _shortest_ms(config: Config) -> float:
    return 1000.0 * MIN_FRAMES * config.hop_length / config.sample_rate


def _check_labels(clips: Sequence[Clip], config: Config) -> None:
    for clip in clips:
        if len(clip.labels) > 1 and not config.multi_label:
            raise DatasetInvalid(
                f"{clip.path} is labelled {', '.join(clip.labels)}, but [model] "
                "multi_label = false asks for exactly one label a clip"
            )
        for label in clip.labels:
            if label not in config.labels:
                raise DatasetInvalid(
                    f"{clip.path} is labelled {label}, which is none of the config's "
                    f"{len(config.labels)} labels"
                )
