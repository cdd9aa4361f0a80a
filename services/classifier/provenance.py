"""What weights were made of: noted in their file, and compared with what they are judged on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from common import checkpoint
from common.datasets import Clip
from common.errors import WeightsInvalid

TRAINED_ON = "trained_on"
CHOSEN_ON = "chosen_on"
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


Folds = Mapping[str, Sequence[int]]
"""By data set."""


@dataclass(frozen=True)
class Provenance:
    """The folds that made a weights file, by data set.

    ``chosen_on``: held out of the training, but what was measured on them ended it or set the
    calibration.
    """

    trained_on: Folds = field(default_factory=dict)
    chosen_on: Folds = field(default_factory=dict)

    def __str__(self) -> str:
        """In words, for a warning."""
        parts = []
        if self.trained_on:
            parts.append(f"trained on {_in_words(self.trained_on)}")
        if self.chosen_on:
            parts.append(f"stopped or calibrated by {_in_words(self.chosen_on)}")
        return ", and ".join(parts)


def training_notes(
    clips: Iterable[Clip], chosen_by: Iterable[Clip] = (), start: Provenance | None = None
) -> dict[str, Any]:
    """Return the notes for weights: each data set's folds, and its licence.

    Args:
        clips: trained on.
        chosen_by: held out, and used to end the training or to calibrate.
        start: of the weights that were started from, which are in these too.
    """
    before = start or Provenance()
    learnt = _together(before.trained_on, clips)
    return {
        TRAINED_ON: learnt,
        CHOSEN_ON: _together(before.chosen_on, chosen_by),
        "licences": licences_of(learnt),
    }


def _together(before: Folds, clips: Iterable[Clip]) -> dict[str, list[int]]:
    folds = {name: set(of) for name, of in before.items()}
    for clip in clips:
        folds.setdefault(clip.dataset, set()).add(clip.fold)
    return {name: sorted(of) for name, of in sorted(folds.items())}


def licences_of(datasets: Iterable[str]) -> dict[str, str]:
    """Return the licences of the published data sets among those named."""
    return {name: LICENCES[name] for name in sorted(datasets) if name in LICENCES}


def provenance_of(weights: Path) -> Provenance:
    """Return what a weights file says it was made of; nothing where it is silent.

    Raises:
        WeightsInvalid: the file cannot be read, or says it in another form.
    """
    notes = checkpoint.load(weights).notes
    try:
        return Provenance(*(_folds_in(notes.get(key, {})) for key in (TRAINED_ON, CHOSEN_ON)))
    except (AttributeError, TypeError, ValueError) as error:
        raise WeightsInvalid(f"{weights.name} names no data sets and folds: {error}") from error


def _folds_in(told: Any) -> Folds:
    return {str(name): tuple(int(fold) for fold in folds) for name, folds in told.items()}


def seen_in(clips: Iterable[Clip], folds: Folds) -> list[Clip]:
    """Return the clips of the folds that are named. A whole fold counts as seen."""
    seen = {(WHOLE.get(name, name), fold) for name, of in folds.items() for fold in of}
    return [clip for clip in clips if (WHOLE.get(clip.dataset, clip.dataset), clip.fold) in seen]


def tell_seen(clips: Sequence[Clip], made_of: Provenance, what: str) -> None:
    """Warn on stderr where clips that are judged on were heard by weights, or chose them.

    Args:
        clips: that are judged on.
        made_of: what the weights were made of.
        what: these weights in words, "The weights" or such.
    """
    counts = {
        "SEEN IN TRAINING": len(seen_in(clips, made_of.trained_on)),
        "USED TO CHOOSE": len(seen_in(clips, made_of.chosen_on)),
    }
    found = [f"{title}: {n} of these {len(clips)} clips" for title, n in counts.items() if n]
    if found:
        typer.secho(
            f"{'; '.join(found)}. {what} were {made_of}; what follows says nothing about other "
            "recordings.",
            fg=typer.colors.RED,
            bold=True,
            err=True,
        )


def _in_words(folds: Folds) -> str:
    return "; ".join(f"{name} folds {', '.join(map(str, of))}" for name, of in folds.items())
