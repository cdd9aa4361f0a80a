"""Trains the recogniser and the inpainter.

``python -m services.restorer.train --data DIR --out DIR [--minutes M] [--quick]``
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from common import checkpoint
from common.datasets import Clip, ClipBank, clips_of
from common.training import FitConfig, fit
from services.restorer.config import (
    INPAINTER_FILE,
    RECOGNISER_FILE,
    InpainterConfig,
    RecogniserConfig,
)
from services.restorer.data import (
    MAX_EVENTS_INPAINTING,
    InpaintBatch,
    RecogniserBatch,
    SoundscapePool,
    inpaint_batches,
    limit_bandwidth,
    recogniser_batches,
)
from services.restorer.losses import FillLoss, PartiallyLabelledBce
from services.restorer.model import Fill, Inpainter, Recogniser
from services.restorer.trials import hearing_trials

BATCH_RECOGNISER = 32
BATCH_INPAINTER = 4
STEPS_UNBOUNDED = 100_000
VALIDATION_SEED = 71


class Which(StrEnum):
    """What to train."""

    BOTH = "both"
    RECOGNISER = "recogniser"
    INPAINTER = "inpainter"


class RecogniserLosses:
    """Batch to losses; the log-mel is part of it, so that bandwidth can be taken away."""

    def __init__(self, seed: int) -> None:
        self.bce = PartiallyLabelledBce()
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, model: Recogniser, batch: RecogniserBatch) -> dict[str, Tensor]:
        with torch.no_grad():
            log_mel = limit_bandwidth(model.features(batch.waveforms), self.generator)
        return {"total": self.bce(model(log_mel), batch.target, batch.known)}


class InpainterLosses:
    """Batch to losses."""

    def __init__(self) -> None:
        self.fill = FillLoss()

    def __call__(self, model: Inpainter, batch: InpaintBatch) -> dict[str, Tensor]:
        prior = Fill(batch.prior_mean, batch.prior_log_variance)
        fill = model(batch.level, batch.mask, prior, batch.replace, batch.low_bin)
        return self.fill(fill, batch.target, batch.replace)


def fit_threshold(recogniser: Recogniser, bank: ClipBank, n_soundscapes: int) -> float:
    """Return the probability from which a label counts as heard, fitted on validation clips."""
    trials = hearing_trials(recogniser, bank, n_soundscapes, VALIDATION_SEED, "validation")
    threshold = trials.best_threshold()
    typer.echo(
        f"threshold {threshold:.2f} on {len(trials.present)} events: "
        f"missed {trials.missed(threshold):.1%}, heard wrongly {trials.wrong(threshold):.1%}"
    )
    return threshold


@dataclass(frozen=True)
class Run:
    """What both trainings are told. ``start``: a folder of weights to begin with, or None."""

    bank: ClipBank
    clips: list[Clip]
    out: Path
    folder: Path
    start: Path | None
    minutes: float
    seed: int

    def begin(self, model: nn.Module, name: str) -> None:
        """Put the weights to begin with into a model, if there are any."""
        if self.start is not None:
            checkpoint.restore(model, checkpoint.load(self.start / name))


def train_recogniser(run: Run, n_validation: int) -> None:
    """Train the recogniser, fit its threshold, write ``recogniser.safetensors``."""
    config = RecogniserConfig()
    pool = SoundscapePool(run.bank, run.clips, run.seed)
    torch.manual_seed(run.seed)
    model = Recogniser(config)
    run.begin(model, RECOGNISER_FILE)
    result = fit(
        model,
        recogniser_batches(pool, BATCH_RECOGNISER, run.seed),
        RecogniserLosses(run.seed),
        FitConfig(STEPS_UNBOUNDED, lr=2e-3, minutes=run.minutes, ema_decay=0.995, seed=run.seed),
        run.folder / "recogniser",
    )
    threshold = fit_threshold(result.ema_model, run.bank, n_validation)
    fitted = replace(config, threshold=threshold)
    checkpoint.save(run.out / RECOGNISER_FILE, asdict(fitted), result.ema_model)


def train_inpainter(run: Run) -> None:
    """Train the inpainter, write ``inpainter.safetensors``."""
    config = InpainterConfig()
    pool = SoundscapePool(run.bank, run.clips, run.seed + 1, max_events=MAX_EVENTS_INPAINTING)
    torch.manual_seed(run.seed)
    model = Inpainter(config)
    run.begin(model, INPAINTER_FILE)
    result = fit(
        model,
        inpaint_batches(pool, BATCH_INPAINTER, run.seed),
        InpainterLosses(),
        FitConfig(
            STEPS_UNBOUNDED,
            lr=8e-4,
            minutes=run.minutes,
            ema_decay=0.99,
            grad_clip=1.0,
            seed=run.seed,
        ),
        run.folder / "inpainter",
    )
    checkpoint.save(run.out / INPAINTER_FILE, asdict(config), result.ema_model)


def main(
    data: Annotated[Path, typer.Option(help="Folder of the data sets.")],
    out: Annotated[Path, typer.Option(help="Where the weights go.")],
    which: Annotated[Which, typer.Option(help="Which model.")] = Which.BOTH,
    minutes: Annotated[float, typer.Option(help="Training time of each model.")] = 15.0,
    start: Annotated[Path | None, typer.Option(help="Folder of weights to begin with.")] = None,
    quick: Annotated[bool, typer.Option(help="Two minutes each, to see it run.")] = False,
    seed: Annotated[int, typer.Option()] = 0,
    cache: Annotated[Path, typer.Option(help="Decoded clips.")] = Path("runs/cache"),
    runs: Annotated[Path, typer.Option(help="Checkpoints and journals.")] = Path("runs/restorer"),
) -> None:
    """Train one or both models of the restorer."""
    torch.set_num_threads(1)
    train = clips_of(data, "train")
    # one bank for both splits: the threshold is fitted on soundscapes of the validation split
    bank = ClipBank.open(train + clips_of(data, "validation"), cache)
    run = Run(bank, train, out, runs, start, 2.0 if quick else minutes, seed)
    if which in (Which.BOTH, Which.RECOGNISER):
        train_recogniser(run, 20 if quick else 80)
    if which in (Which.BOTH, Which.INPAINTER):
        train_inpainter(run)


if __name__ == "__main__":
    typer.run(main)
