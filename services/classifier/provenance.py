"""What weights were made of: noted in their file, and compared with what they are judged on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import checkpoint
from common.datasets import Clip
from common.errors import WeightsInvalid

TRAINED_ON = "trained_on"
LICENCES = {
    "esc10": "CC BY 3.0",
    "esc50": "CC BY-NC 3.0",
    "us8k": "CC BY-NC 3.0",
    "fsd50k": "CC BY 4.0; its clips CC0, CC BY, CC BY-NC or CC Sampling+",
    "digits": "CC BY-SA 4.0",
}
"""Of the published data sets, as a whole. Those of one's own have none that we could know."""
WHOLE = {"esc10": "esc50"}
"""Data sets that are a part of another one."""


def training_notes(clips: Iterable[Clip]) -> dict[str, Any]:
    """Return the notes for weights trained on ``clips``: each data set's folds, and its licence."""
    folds: dict[str, set[int]] = {}
    for clip in clips:
        folds.setdefault(clip.dataset, set()).add(clip.fold)
    return {
        TRAINED_ON: {name: sorted(of) for name, of in sorted(folds.items())},
        "licences": licences_of(folds),
    }


def licences_of(datasets: Iterable[str]) -> dict[str, str]:
    """Return the licences of the published data sets among those named."""
    return {name: LICENCES[name] for name in sorted(datasets) if name in LICENCES}


def trained_on(weights: Path) -> dict[str, tuple[int, ...]]:
    """Return the folds by data set that a weights file says it was trained on; {} if it is silent.

    Raises:
        WeightsInvalid: the file cannot be read, or says it in another form.
    """
    told = checkpoint.load(weights).notes.get(TRAINED_ON, {})
    try:
        return {str(name): tuple(int(fold) for fold in folds) for name, folds in told.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise WeightsInvalid(f"{weights.name} names no data sets and folds: {error}") from error


def seen_in_training(clips: Iterable[Clip], learnt_on: Mapping[str, Sequence[int]]) -> list[Clip]:
    """Return the clips of the folds that ``learnt_on`` has. A whole fold counts as seen."""
    folds = {(WHOLE.get(name, name), fold) for name, of in learnt_on.items() for fold in of}
    return [clip for clip in clips if (WHOLE.get(clip.dataset, clip.dataset), clip.fold) in folds]
