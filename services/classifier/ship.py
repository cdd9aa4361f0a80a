"""The temperature of shipped weights, from protocols that held their test folds out.

Weights trained on all data have no unseen clips left to fit on. What the same recipe's models said
of folds they had not seen stands in: all of it, pooled. Run once per release:
``python -m services.classifier.ship --weights FILE --runs runs/protocols/us8k-lofo/hybrid``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from common import checkpoint
from common.errors import DatasetInvalid, DatasetMissing
from services.classifier.config import Config
from services.classifier.evaluation.predictions import Predictions, pooled
from services.classifier.evaluation.results import temperature_of
from services.classifier.evaluation.trials import PREDICTIONS_FILE
from services.classifier.selection import plain_errors


def ship_temperature(weights: Path, runs: Sequence[Path]) -> float:
    """Fit the temperature and write it into a weights file, whose tensors stay as they are.

    Args:
        weights: the file; written beside, then renamed.
        runs: folders of a method under a protocol, with a folder per fold and seed.

    Returns:
        The temperature that was written.

    Raises:
        DatasetMissing: a folder holds no predictions.
        DatasetInvalid: predictions are over other labels than the weights.
        WeightsInvalid: the weights cannot be read.
    """
    loaded = checkpoint.load(weights)
    config = Config.from_dict(loaded.config)
    found = []
    for folder in runs:
        paths = sorted(folder.glob(f"*/{PREDICTIONS_FILE}"))
        if not paths:
            raise DatasetMissing(f"{folder} holds no predictions")
        found += [Predictions.load(path) for path in paths]
    everything = pooled(found)
    if (everything.labels, everything.multi_label) != (config.labels, config.multi_label):
        raise DatasetInvalid("the predictions are over other labels than the weights")
    config = replace(config, temperature=round(temperature_of(everything), 4))
    checkpoint.save(weights, config.to_dict(), loaded.tensors, loaded.notes)
    return config.temperature


def main(
    weights: Annotated[Path, typer.Option(help="weights file that gets the temperature")],
    runs: Annotated[list[Path], typer.Option(help="a method's folder; may be given repeatedly")],
) -> None:
    """Fit the temperature on held-out predictions and write it into a weights file."""
    with plain_errors():
        typer.echo(f"temperature {ship_temperature(weights, runs)}")


if __name__ == "__main__":
    typer.run(main)
