"""The calibration of shipped weights, from protocols that held their test folds out.

Weights trained on all data have no unseen clips left to fit on. What the same recipe's models said
of folds they had not seen stands in, all of it pooled: of whole clips, and of soundscapes made of
them. Run once per release: ``python -m services.classifier.ship --weights FILE --data DATA
--runs runs/protocols/us8k-lofo/hybrid``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from common import checkpoint
from common.datasets import Clip, ClipBank, load_clips
from common.errors import DatasetInvalid, DatasetMissing
from common.soundscapes import soundscapes_of
from services.classifier.calibration import (
    SCENE_SEED,
    HeardScene,
    hear_scenes,
    with_segments_fitted,
)
from services.classifier.config import Config
from services.classifier.evaluation.predictions import Predictions, clip_id, pooled
from services.classifier.evaluation.results import scale_of
from services.classifier.evaluation.trials import PREDICTIONS_FILE
from services.classifier.infer import load
from services.classifier.provenance import CHOSEN_ON, provenance_of, training_notes
from services.classifier.selection import plain_errors
from services.classifier.train import WEIGHTS_FILE

SCENES = 40
"""Soundscapes made of each fold."""


def ship(weights: Path, runs: Sequence[Path], clips: Sequence[Clip], cache: Path) -> Config:
    """Fit the calibration and write it into a weights file, whose tensors stay as they are.

    Args:
        weights: the file; written beside, then renamed.
        runs: folders of a method under a protocol, with a folder per fold and seed.
        clips: those that were tested there are among them.
        cache: for decoded clips.

    Returns:
        The config that was written.

    Raises:
        DatasetMissing: a folder holds no predictions, or a clip that was tested is not there.
        DatasetInvalid: predictions are over other labels than the weights.
        PredictionsInvalid: predictions are damaged, or not of one kind.
        WeightsInvalid: weights cannot be read.
    """
    loaded = checkpoint.load(weights)
    config = Config.from_dict(loaded.config)
    folders = [path.parent for run in runs for path in _predictions_in(run)]
    found = [Predictions.load(folder / PREDICTIONS_FILE) for folder in folders]
    everything = pooled(found)
    if (everything.labels, everything.multi_label) != (config.labels, config.multi_label):
        raise DatasetInvalid("the predictions are over other labels than the weights")
    scale = scale_of(everything)
    config = replace(config, temperature=round(scale.temperature, 4), shift=round(scale.shift, 4))
    bank, tested = _tested(found, clips, config, cache)
    heard: list[HeardScene] = []
    for folder, clips_of_fold in zip(folders, tested, strict=True):
        model = load("cpu", folder / WEIGHTS_FILE).model
        heard += hear_scenes(model, soundscapes_of(bank, clips_of_fold, SCENES, SCENE_SEED))
    config = with_segments_fitted(config, heard)
    chosen_by = [clip for part in tested for clip in part]
    chosen_on = training_notes((), chosen_by, provenance_of(weights))[CHOSEN_ON]
    checkpoint.save(
        weights, config.to_dict(), loaded.tensors, loaded.notes | {CHOSEN_ON: chosen_on}
    )
    return config


def _predictions_in(run: Path) -> list[Path]:
    """Return the files of predictions, none of which is of a training without a test."""
    paths = [p for p in sorted(run.glob(f"*/{PREDICTIONS_FILE}")) if Predictions.load(p).clips]
    if not paths:
        raise DatasetMissing(f"{run} holds no predictions")
    return paths


def _tested(
    found: Sequence[Predictions], clips: Sequence[Clip], config: Config, cache: Path
) -> tuple[ClipBank, list[list[Clip]]]:
    """Return a bank of all clips that were tested, and which ones each trial tested."""
    by_id = {clip_id(clip): clip for clip in clips}
    missing = sorted({name for p in found for name in p.clips} - by_id.keys())
    if missing:
        raise DatasetMissing(
            f"{missing[0]} was tested and is not there, nor {len(missing) - 1} more"
        )
    tested = [[by_id[name] for name in p.clips] for p in found]
    together = list({clip.path: clip for part in tested for clip in part}.values())
    return ClipBank.open(together, cache, config.sample_rate, progress=True), tested


def main(
    weights: Annotated[Path, typer.Option(help="weights file that gets the calibration")],
    data: Annotated[Path, typer.Option(help="folder of the data sets that the protocols tested")],
    runs: Annotated[list[Path], typer.Option(help="a method's folder; may be given repeatedly")],
    cache: Annotated[Path, typer.Option(help="decoded clips")] = Path("runs/cache"),
) -> None:
    """Fit the calibration on held-out predictions and write it into a weights file."""
    with plain_errors():
        made = ship(weights, runs, load_clips(data), cache)
    typer.echo(
        f"clips: temperature {made.temperature}, shift {made.shift}; segments: temperature "
        f"{made.segment_temperature}, shift {made.segment_shift}, threshold {made.event_threshold}"
    )


if __name__ == "__main__":
    typer.run(main)
