"""Trains the recogniser and the inpainter.

``python -m services.restorer.train --data DIR --out DIR [--minutes M] [--quick]``
"""

from __future__ import annotations

from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from common import checkpoint
from common.datasets import ClipBank, clips_of
from common.training import FitConfig, fit
from services.restorer.config import InpainterConfig, RecogniserConfig
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


def train_recogniser(
    bank: ClipBank, data: Path, out: Path, runs: Path, minutes: float, seed: int, quick: bool
) -> None:
    """Train the recogniser, fit its threshold, write ``recogniser.safetensors``."""
    config = RecogniserConfig()
    pool = SoundscapePool(bank, clips_of(data, "train"), seed)
    torch.manual_seed(seed)
    result = fit(
        Recogniser(config),
        recogniser_batches(pool, BATCH_RECOGNISER, seed),
        RecogniserLosses(seed),
        FitConfig(STEPS_UNBOUNDED, lr=2e-3, minutes=minutes, ema_decay=0.995, seed=seed),
        runs / "recogniser",
    )
    threshold = fit_threshold(result.ema_model, bank, 20 if quick else 80)
    fitted = replace(config, threshold=threshold)
    checkpoint.save(out / "recogniser.safetensors", asdict(fitted), result.ema_model)


def train_inpainter(
    bank: ClipBank, data: Path, out: Path, runs: Path, minutes: float, seed: int
) -> None:
    """Train the inpainter, write ``inpainter.safetensors``."""
    config = InpainterConfig()
    pool = SoundscapePool(bank, clips_of(data, "train"), seed + 1, max_events=MAX_EVENTS_INPAINTING)
    torch.manual_seed(seed)
    result = fit(
        Inpainter(config),
        inpaint_batches(pool, BATCH_INPAINTER, seed),
        InpainterLosses(),
        FitConfig(
            STEPS_UNBOUNDED,
            lr=8e-4,
            minutes=minutes,
            ema_decay=0.99,
            grad_clip=1.0,
            seed=seed,
        ),
        runs / "inpainter",
    )
    checkpoint.save(out / "inpainter.safetensors", asdict(config), result.ema_model)


def main(
    data: Annotated[Path, typer.Option(help="Folder of the data sets.")],
    out: Annotated[Path, typer.Option(help="Where the weights go.")],
    which: Annotated[Which, typer.Option(help="Which model.")] = Which.BOTH,
    minutes: Annotated[float, typer.Option(help="Training time of each model.")] = 15.0,
    quick: Annotated[bool, typer.Option(help="Two minutes each, to see it run.")] = False,
    seed: Annotated[int, typer.Option()] = 0,
    cache: Annotated[Path, typer.Option(help="Decoded clips.")] = Path("runs/cache"),
    runs: Annotated[Path, typer.Option(help="Checkpoints and journals.")] = Path("runs/restorer"),
) -> None:
    """Train one or both models of the restorer."""
    torch.set_num_threads(1)
    minutes = 2.0 if quick else minutes
    # one bank for both splits: the threshold is fitted on soundscapes of the validation split
    bank = ClipBank.open(clips_of(data, "train") + clips_of(data, "validation"), cache)
    if which in (Which.BOTH, Which.RECOGNISER):
        train_recogniser(bank, data, out, runs, minutes, seed, quick)
    if which in (Which.BOTH, Which.INPAINTER):
        train_inpainter(bank, data, out, runs, minutes, seed)


if __name__ == "__main__":
    typer.run(main)
