"""What predictions by a protocol are worth: scores by fold and seed, calibrations, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.classifier.calibration import Scale, fit_clips
from services.classifier.evaluation.predictions import Array, Predictions, pooled
from services.classifier.evaluation.scoring import ClipScores, score_clips

MEASURES = (
    "accuracy",
    "open_accuracy",
    "top3",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "mean_ap",
    "auc",
    "ece",
    "open_ece",
)
"""What is reported of each fold; all but the calibration errors are better when higher."""


@dataclass(frozen=True)
class FoldScores:
    """One fold under one seed. The calibration comes from the other folds' predictions."""

    fold: int
    seed: int
    scale: Scale
    scores: ClipScores
    raw_ece: float  # not calibrated
    raw_open_ece: float


@dataclass(frozen=True)
class Spread:
    """A measure over folds and seeds: means over the others, and the median of the seeds' means."""

    by_fold: tuple[float, ...]
    by_seed: tuple[float, ...]
    median: float
    std: float  # of the seeds' means; 0 where there is one seed


@dataclass(frozen=True)
class Summary:
    """What a method reached by a protocol."""

    method: str
    protocol: str
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    n: int  # clips in all folds
    measures: dict[str, Spread]

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Summary:
        """Return what JSON has kept of a summary."""
        measures = {
            name: Spread(**{k: _tupled(v) for k, v in kept.items()})
            for name, kept in raw["measures"].items()
        }
        return cls(**{k: _tupled(v) for k, v in raw.items()} | {"measures": measures})


@dataclass(frozen=True)
class Result:
    """A summary and what it is made from. ``by_seed`` are the scores of all folds as one."""

    summary: Summary
    by_seed: tuple[ClipScores, ...]
    trials: tuple[FoldScores, ...]


def scales(by_fold: Mapping[int, Predictions]) -> dict[int, Scale]:
    """Return each fold's calibration, fitted on the predictions of the other folds.

    The other folds are training data of this one; what their models said of them was said
    without having seen them. A protocol of one fold has nothing to fit on: it is not calibrated.
    """
    fitted = {}
    for fold in by_fold:
        others = [predictions for other, predictions in by_fold.items() if other != fold]
        fitted[fold] = scale_of(pooled(others)) if others else Scale()
    return fitted


def scale_of(predictions: Predictions) -> Scale:
    """Return the calibration that fits predictions best."""
    return fit_clips(predictions.logits, predictions.present, predictions.multi_label)


def calibrated(by_fold: Mapping[int, Predictions], fitted: Mapping[int, Scale]) -> Array:
    """Return the confidences of all folds, one after the other, each under its calibration."""
    return np.concatenate([found.confidence(fitted[fold]) for fold, found in by_fold.items()])


def judged(
    protocol: str,
    method: str,
    predictions: Mapping[tuple[int, int], Predictions],
    among: Sequence[int],
) -> Result:
    """Return what predictions are worth.

    Args:
        protocol: its name.
        method: what made the predictions.
        predictions: by (seed, fold), of every fold under every seed.
        among: numbers of the data set's own classes.
    """
    seeds = tuple(sorted({seed for seed, _ in predictions}))
    folds = tuple(sorted({fold for _, fold in predictions}))
    trials: list[FoldScores] = []
    by_seed: list[ClipScores] = []
    for seed in seeds:
        by_fold = {fold: predictions[seed, fold] for fold in folds}
        fitted = scales(by_fold)
        for fold, found in by_fold.items():
            scores = score_clips(found.confidence(fitted[fold]), found.truth, found.labels, among)
            raw = score_clips(found.confidence(Scale()), found.truth, found.labels, among)
            trials.append(FoldScores(fold, seed, fitted[fold], scores, raw.ece, raw.open_ece))
        whole = pooled(list(by_fold.values()))
        by_seed.append(score_clips(calibrated(by_fold, fitted), whole.truth, whole.labels, among))
    measures: dict[str, list[float | None]] = {
        name: [getattr(trial.scores, name) for trial in trials] for name in MEASURES
    }
    measures["raw_ece"] = [trial.raw_ece for trial in trials]
    measures["raw_open_ece"] = [trial.raw_open_ece for trial in trials]
    summary = Summary(
        method=method,
        protocol=protocol,
        folds=folds,
        seeds=seeds,
        n=by_seed[0].n,
        measures={
            name: spread(np.array(values, np.float64).reshape(len(seeds), len(folds)))
            for name, values in measures.items()
            if None not in values
        },
    )
    return Result(summary, tuple(by_seed), tuple(trials))


def spread(grid: Array) -> Spread:
    """Return the means of values (seeds, folds)."""
    by_seed = grid.mean(axis=1)
    return Spread(
        by_fold=tuple(grid.mean(axis=0).tolist()),
        by_seed=tuple(by_seed.tolist()),
        median=float(np.median(by_seed)),
        std=float(by_seed.std(ddof=1)) if len(by_seed) > 1 else 0.0,
    )


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
