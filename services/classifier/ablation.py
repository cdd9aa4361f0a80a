"""Mel bands x window x optimizer x SpecAugment: ``python -m services.classifier.ablation``.

Source: Garriga Munoz 2024, "Deep learning techniques for audio recognition and classification",
section 3.4: 32 to 128 mel bands, windows of 512 to 2048 samples, Adam, AdamW, RMSprop and SGD at
the learning rates of its table 2, with and without SpecAugment, on UrbanSound8K. We depart from
it: every combination rather than nine, official folds rather than a random split, 32 kHz rather
than 44.1, and one hop for all windows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer

from common.datasets import Clip, ClipBank, labels_of, load_layout, select_folds
from common.errors import DatasetInvalid
from common.features import mel_filters
from services.classifier.admission import device_named, tell_short
from services.classifier.calibration import Scale
from services.classifier.evaluation.pictures import grid_picture
from services.classifier.evaluation.predictions import Predictions
from services.classifier.evaluation.reports import markdown, percent, write_json, write_text
from services.classifier.evaluation.scoring import score_clips
from services.classifier.evaluation.trials import Machine, Trial, run_trials
from services.classifier.recipe import RECIPES, Plan, RecipeInvalid, read_plan
from services.classifier.selection import (
    check_classes_left,
    decoded,
    folds_in,
    plain_errors,
    reasons_of,
    without_leaks,
)

Optimizer = Literal["adam", "adamw", "rmsprop", "sgd"]


@dataclass(frozen=True)
class Settings:
    """Of an optimizer: learning rate and weight decay."""

    lr: float
    weight_decay: float


OPTIMIZERS: dict[Optimizer, Settings] = {
    "adam": Settings(1e-3, 0.0),
    "adamw": Settings(1e-3, 0.01),
    "rmsprop": Settings(1e-3, 0.0),
    "sgd": Settings(1e-2, 0.0),
}
"""The better of the source's runs with each; for AdamW, of which it has none, PyTorch's own."""

FACTORS = ("n_mels", "window", "optimizer", "specaugment")
MAX_EPOCHS = 100_000
"""Of a recipe."""
IMPOSSIBLE = "cannot be"
"""Stands for the accuracy of a combination whose mel bands are too fine for its window."""


@dataclass(frozen=True)
class Cell:
    """One combination. ``window`` in samples."""

    n_mels: int
    window: int
    optimizer: Optimizer
    specaugment: bool

    @property
    def name(self) -> str:
        """Fit for a folder."""
        augmented = "specaugment" if self.specaugment else "plain"
        return f"{self.n_mels}m-{self.window}w-{self.optimizer}-{augmented}"


@dataclass(frozen=True)
class Shape:
    """A front end. ``window`` in samples."""

    n_mels: int
    window: int


@dataclass(frozen=True)
class Row:
    """What came of a combination: means over the seeds, shares in [0, 1]."""

    n_mels: int
    window: int
    optimizer: str
    specaugment: bool
    accuracy: float
    std: float  # over seeds; 0 for a single one
    macro_f1: float


def cells_of(
    mels: Sequence[int],
    windows: Sequence[int],
    optimizers: Sequence[Optimizer],
    both: bool,
    rate_hz: int,
) -> Iterator[Cell]:
    """Yield the combinations that can be: not those whose bands are too fine for the window.

    Args:
        mels: numbers of mel bands.
        windows: lengths in samples.
        optimizers: names.
        both: with and without SpecAugment, else with it only.
        rate_hz: the sample rate.
    """
    impossible = shapes_too_fine(mels, windows, rate_hz)
    for n_mels, window in product(mels, windows):
        if Shape(n_mels, window) in impossible:
            continue
        for optimizer, specaugment in product(optimizers, (True, False) if both else (True,)):
            yield Cell(n_mels, window, optimizer, specaugment)


def shapes_too_fine(mels: Sequence[int], windows: Sequence[int], rate_hz: int) -> list[Shape]:
    """Return the front ends that cannot be: a mel band of theirs would see no bin."""
    impossible = []
    for n_mels, window in product(mels, windows):
        try:
            mel_filters(rate_hz, window, n_mels, 0.0, rate_hz / 2)
        except ValueError:
            impossible.append(Shape(n_mels, window))
    return impossible


def check_levels(plan: Plan, mels: Sequence[int], windows: Sequence[int]) -> None:
    """Refuse levels that no classifier can have, alone or in any combination.

    Raises:
        RecipeInvalid: says which.
    """
    if not (mels and windows):
        raise RecipeInvalid("mels and windows must name at least one number each")
    for n_mels, window in product(mels, windows):
        try:
            replace(plan.config, n_mels=n_mels, n_fft=window)
        except ValueError as error:
            raise RecipeInvalid(
                f"the ablation cannot have {n_mels} mel bands with a window of {window}: {error}"
            ) from error
    rate_hz = plan.config.sample_rate
    if len(shapes_too_fine(mels, windows, rate_hz)) == len(mels) * len(windows):
        raise RecipeInvalid(
            f"no combination is left: {min(mels)} mel bands are too fine for a window of "
            f"{max(windows)} samples at {rate_hz} Hz"
        )


def check_one_label(clips: Sequence[Clip]) -> None:
    """Raise DatasetInvalid where a clip has several labels: accuracy says nothing of those."""
    several = [clip for clip in clips if len(clip.labels) > 1]
    if several:
        raise DatasetInvalid(
            f"{several[0].path} is labelled {', '.join(several[0].labels)}: "
            "the ablation is of data with one label per clip"
        )


def applied(cell: Cell, plan: Plan, labels: tuple[str, ...], epochs: float) -> Plan:
    """Return a plan that is a combination's, over ``labels``."""
    settings, augmentation = OPTIMIZERS[cell.optimizer], plan.recipe.augmentation
    if not cell.specaugment:
        augmentation = replace(augmentation, blank_share=0.0)
    return replace(
        plan,
        config=replace(plan.config, labels=labels, n_mels=cell.n_mels, n_fft=cell.window),
        recipe=replace(
            plan.recipe,
            epochs=epochs,
            steps=None,
            minutes=None,
            optimizer=cell.optimizer,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            augmentation=augmentation,
        ),
    )


def row_of(cell: Cell, made: Sequence[Predictions]) -> Row:
    """Return a combination's scores from its predictions, one set per seed."""
    scores = [score_clips(p.confidence(Scale()), p.truth, p.labels) for p in made]
    accuracy = [s.accuracy for s in scores]
    return Row(
        **asdict(cell),
        accuracy=float(np.mean(accuracy)),
        std=float(np.std(accuracy, ddof=1)) if len(accuracy) > 1 else 0.0,
        macro_f1=float(np.mean([s.macro_f1 for s in scores])),
    )


def fair_means(rows: Sequence[Row], factor: str) -> dict[Any, list[float]]:
    """Return by level of a factor the accuracies of the combinations that all its levels have.

    Levels are compared on equal terms: where 128 bands lack a window, no level counts that window.
    """
    others = [name for name in FACTORS if name != factor]
    found: dict[tuple[Any, ...], dict[Any, float]] = {}
    for row in rows:
        key = tuple(getattr(row, name) for name in others)
        found.setdefault(key, {})[getattr(row, factor)] = row.accuracy
    levels = sorted({getattr(row, factor) for row in rows})
    shared = [by_level for by_level in found.values() if len(by_level) == len(levels)]
    return {level: [by_level[level] for by_level in shared] for level in levels}


def write_report(
    out: Path,
    title: str,
    rows: Sequence[Row],
    impossible: Sequence[Shape] = (),
    corrupt: Mapping[str, str] | None = None,
) -> str:
    """Write the table as Markdown, CSV and JSON and draw it; return the Markdown.

    Args:
        out: the folder.
        title: of all of them.
        rows: of the combinations that there are.
        impossible: front ends that were asked for and cannot be.
        corrupt: clips that were left out, by id, and why.
    """
    best = sorted(rows, key=lambda row: -row.accuracy)
    table = markdown(
        ("mels", "window", "optimizer", "SpecAugment", "accuracy %", "std", "macro F1 %"),
        [
            (
                str(row.n_mels),
                str(row.window),
                row.optimizer,
                "yes" if row.specaugment else "no",
                percent(row.accuracy),
                percent(row.std),
                percent(row.macro_f1),
            )
            for row in best
        ]
        + [(str(s.n_mels), str(s.window), "any", "any", IMPOSSIBLE, "-", "-") for s in impossible],
    )
    levels = [
        (factor, str(level), percent(float(np.mean(of)) if of else None), str(len(of)))
        for factor in FACTORS
        for level, of in fair_means(rows, factor).items()
    ]
    means = markdown(("factor", "level", "mean accuracy %", "combinations"), levels)
    text = f"# {title}\n\n{table}\n\n{means}\n"
    write_text(out / "ablation.md", text)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(Row.__annotations__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(out / "ablation.csv", file.getvalue())
    document = {
        "title": title,
        "rows": [asdict(row) for row in rows],
        "impossible": [asdict(shape) for shape in impossible],
        "corrupt": dict(corrupt or {}),
    }
    write_json(out / "ablation.json", document)
    _draw(out / "ablation.png", title, rows)
    return text


def _draw(path: Path, title: str, rows: Sequence[Row]) -> None:
    mels = sorted({row.n_mels for row in rows})
    windows = sorted({row.window for row in rows})
    panels: dict[str, np.ndarray[Any, Any]] = {}
    for row in rows:
        name = f"{row.optimizer}, {'with' if row.specaugment else 'without'} SpecAugment"
        panel = panels.setdefault(name, np.full((len(mels), len(windows)), np.nan))
        panel[mels.index(row.n_mels), windows.index(row.window)] = row.accuracy
    grid_picture(
        path,
        f"{title}: mel bands by window",
        panels,
        [f"{n} mels" for n in mels],
        [str(n) for n in windows],
    )


def trials_of(
    cells: Sequence[Cell],
    plan: Plan,
    bank: ClipBank,
    test_fold: int,
    epochs: float,
    seeds: int,
    out: Path,
) -> list[Trial]:
    """Return the trainings of all combinations, seed by seed within each.

    Raises:
        FoldMissing, ClassMissing: as ``select_folds`` and ``without_leaks`` say.
    """
    split = select_folds(bank.clips, [test_fold])
    train = without_leaks(split.train, split.test, bank)
    labels = labels_of(bank.clips)
    trials = []
    for cell in cells:
        changed = applied(cell, plan, labels, epochs)
        for seed in range(seeds):
            name = f"{cell.name}-seed{seed}"
            folder = out / name
            trials.append(
                Trial(name, folder, train, split.test, changed.config, changed.recipe, seed)
            )
    return trials


def main(
    data: Annotated[Path, typer.Option(help="folder of the data set")],
    out: Annotated[Path, typer.Option(help="where trainings and the table go")],
    layout: Annotated[str, typer.Option(help="how the data set is laid out")] = "us8k",
    test_fold: Annotated[int, typer.Option(help="tested; the others train")] = 1,
    config: Annotated[Path, typer.Option(help="recipe that is varied")] = RECIPES
    / "stride_cnn.toml",
    mels: Annotated[str, typer.Option(help="numbers of mel bands")] = "32,64,128",
    windows: Annotated[str, typer.Option(help="window lengths in samples")] = "512,1024,2048",
    optimizers: Annotated[str, typer.Option(help="optimizers")] = ",".join(OPTIMIZERS),
    both: Annotated[bool, typer.Option(help="also without SpecAugment")] = True,
    epochs: Annotated[float, typer.Option(help="of each training")] = 10.0,
    seeds: Annotated[int, typer.Option(min=1, help="trainings of each combination")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="trainings side by side")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a process")] = 1,
    cache: Annotated[Path, typer.Option(help="decoded clips")] = Path("runs/cache"),
    skip_corrupt: Annotated[
        bool, typer.Option(help="leave out clips that cannot be decoded")
    ] = False,
) -> None:
    """Train every combination, finished ones excepted, and write one table."""
    torch.set_num_threads(threads)
    names = [name.strip() for name in optimizers.split(",") if name.strip()]
    unknown = sorted(set(names) - set(OPTIMIZERS))
    if unknown:
        raise typer.BadParameter(f"no optimizer {unknown[0]!r}: {', '.join(OPTIMIZERS)}")
    chosen = [name for name in OPTIMIZERS if name in names]
    if not chosen:
        raise typer.BadParameter(f"no optimizer is named: {', '.join(OPTIMIZERS)}")
    if not 0.0 < epochs <= MAX_EPOCHS:
        raise typer.BadParameter(f"epochs must be above 0 and at most {MAX_EPOCHS}")
    with plain_errors():
        device = device_named(device)
        plan = read_plan(config)
        n_mels, n_fft, rate_hz = folds_in(mels), folds_in(windows), plan.config.sample_rate
        check_levels(plan, n_mels, n_fft)
        cells = list(cells_of(n_mels, n_fft, chosen, both, rate_hz))
        found = load_layout(data, layout)
        check_one_label(found)
        bank = decoded(found, cache, rate_hz, skip_corrupt)
        check_classes_left(found, bank.clips)
        tell_short(bank.clips, bank, plan.config)
        trials = trials_of(cells, plan, bank, test_fold, epochs, seeds, out)
        made = run_trials(trials, Machine(cache, device, threads, jobs), bank)
        rows = [row_of(cell, made[n * seeds : (n + 1) * seeds]) for n, cell in enumerate(cells)]
        title = (
            f"{plan.config.architecture} on {layout}, fold {test_fold}, {epochs:g} epochs, "
            f"{seeds} seed{'s' if seeds > 1 else ''}"
        )
        impossible = shapes_too_fine(n_mels, n_fft, rate_hz)
        text = write_report(out, title, rows, impossible, reasons_of(bank))
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
