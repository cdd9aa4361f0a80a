"""Fine-tuning on one's own labels: ``python -m services.classifier.finetune --data DIR --out DIR``.

Starts from trained weights; the heads of labels that they know are kept. The body learns more
slowly than the heads. What it writes is served in place of the shipped weights where
SOUNDMILL_CLASSIFIER_WEIGHTS names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from common import checkpoint
from common.datasets import LAYOUTS, Clip, ClipBank, load_layout, renamed
from services.classifier.admission import device_named, tell_short
from services.classifier.config import DEFAULT_WEIGHTS, Config
from services.classifier.evaluation.predictions import predict
from services.classifier.model import build
from services.classifier.provenance import provenance_of, tell_seen
from services.classifier.recipe import RECIPES, Recipe, lasting, read_plan
from services.classifier.selection import (
    choose,
    choose_share,
    folds_in,
    open_bank,
    plain_errors,
    without_copies,
    without_skipped,
)
from services.classifier.train import Trained, train
from services.classifier.transfer import begin_from

HELD_OUT_SHARE = 0.25


@dataclass(frozen=True)
class Tuned:
    """What fine-tuning made, and the accuracy on held-out clips of both, in [0, 1].

    ``before``: of the weights as they were, which can name only the labels in ``known``.
    """

    trained: Trained
    known: tuple[str, ...]
    before: float
    after: float


def finetune(
    clips: Sequence[Clip],
    held_out: Sequence[Clip],
    bank: ClipBank,
    labels: tuple[str, ...],
    weights: Path,
    recipe: Recipe,
    out: Path,
    *,
    seed: int,
    device: str = "cpu",
    threads: int = 1,
) -> Tuned:
    """Fine-tune weights on clips; arguments as for ``train``.

    Raises:
        WeightsInvalid: the weights cannot be read, or ``out`` holds another training.
        LeakFound: a recording is on both sides.
    """
    start = checkpoint.load(weights)
    config = replace(Config.from_dict(start.config), labels=labels)
    model = build(config)
    known = begin_from(model, start)
    unknown = [k for k, label in enumerate(labels) if label not in known]
    device = device_named(device)
    before = predict(model.to(device).eval(), bank, held_out, device)
    before[:, unknown] = -np.inf
    trained = train(
        clips,
        bank,
        config,
        recipe,
        out,
        seed=seed,
        device=device,
        threads=threads,
        validation=held_out,
        start_from=weights,
    )
    accuracy = _accuracy(before, held_out, labels) if known else 0.0
    return Tuned(trained, known, accuracy, trained.figures["accuracy"])


def _accuracy(logits: np.ndarray, clips: Sequence[Clip], labels: Sequence[str]) -> float:
    best = logits.argmax(1).tolist()
    return float(np.mean([labels[k] in c.labels for k, c in zip(best, clips, strict=True)]))


def main(
    data: Annotated[Path, typer.Option(help="folder of the clips, or a CSV manifest")],
    out: Annotated[Path, typer.Option(help="folder for weights, journal, curves, checkpoint")],
    layout: Annotated[str, typer.Option(help=", ".join(LAYOUTS))] = "folders",
    weights: Annotated[Path, typer.Option(help="to start from")] = DEFAULT_WEIGHTS,
    config: Annotated[Path, typer.Option(help="recipe; its [model] does not count")] = (
        RECIPES / "finetune.toml"
    ),
    validation_folds: Annotated[
        str, typer.Option(help=f"held out; none: {HELD_OUT_SHARE:.0%} of each class")
    ] = "",
    minutes: Annotated[float | None, typer.Option(help="instead of the recipe's length")] = None,
    seed: Annotated[int | None, typer.Option(help="instead of the recipe's")] = None,
    skip_corrupt: Annotated[bool, typer.Option(help="leave out clips without sound")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
    cache: Annotated[Path, typer.Option(help="decoded clips")] = Path("runs/cache"),
) -> None:
    """Fine-tune trained weights on one's own labels and write OUT/classifier.safetensors."""
    with plain_errors():
        device = device_named(device)
        recipe = read_plan(config).recipe
        if minutes is not None:
            recipe = lasting(recipe, minutes)
        seed = recipe.seed if seed is None else seed
        torch.set_num_threads(threads)
        clips = renamed(load_layout(data, layout))
        if validation_folds:
            chosen = choose(clips, (), folds_in(validation_folds))
        else:
            chosen = choose_share(clips, HELD_OUT_SHARE, seed)
        started = Config.from_dict(checkpoint.load(weights).config)
        bank = open_bank(chosen, cache, started.sample_rate, skip_corrupt)
        chosen = without_skipped(chosen, bank)
        if not validation_folds:  # nobody said what to hold out
            chosen = without_copies(chosen, bank)
        tell_short(chosen.train, bank, started)
        tell_seen(chosen.validation, provenance_of(weights), "The weights to start from")
        typer.echo(
            f"{len(chosen.labels)} labels: {len(chosen.train)} clips to train on, "
            f"{len(chosen.validation)} held out"
        )
        tuned = finetune(
            chosen.train,
            chosen.validation,
            bank,
            chosen.labels,
            weights,
            recipe,
            out,
            seed=seed,
            device=device,
            threads=threads,
        )
    for sentence in tuned.trained.uncalibrated:
        typer.echo(sentence, err=True)
    if tuned.after < tuned.before:
        typer.echo("the weights as they were are better on these clips: keep them", err=True)
    typer.echo(
        f"the weights knew {len(tuned.known)} of {len(chosen.labels)} labels\n"
        f"accuracy on held-out clips: {100 * tuned.before:.1f} % before, "
        f"{100 * tuned.after:.1f} % after {tuned.trained.seconds:.0f} s\n"
        f"to serve these weights: SOUNDMILL_CLASSIFIER_WEIGHTS={tuned.trained.weights.resolve()}"
    )


if __name__ == "__main__":
    typer.run(main)
