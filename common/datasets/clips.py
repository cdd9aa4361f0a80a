"""What a clip is: a labelled training example, and the sets of clips that layouts give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

Dataset = Literal["esc50", "esc10", "us8k", "fsd50k", "folders", "csv", "digits"]
LAYOUTS: tuple[Dataset, ...] = get_args(Dataset)
"""The layouts that ``load_layout`` reads; a clip's ``dataset`` is one of them."""

RENAMED: Mapping[str, str] = {"dog_bark": "dog"}
"""Class names that mean one of ``common.labels``."""

OWN_SOURCE = "./"
"""Begins the ``source_id`` of a clip of which nothing is known but its own file."""


@dataclass(frozen=True)
class Clip:
    """A labelled training example.

    ``labels`` are all its labels, ``label`` the first of them. ``source_id`` says which recording
    (Freesound id) or speaker it is from; where nobody says so it is ``OWN_SOURCE`` and the file's
    path inside its data set. ``index`` is the position in the list that it was loaded in.
    """

    path: Path
    label: str
    dataset: Dataset
    fold: int
    source_id: str
    index: int
    labels: tuple[str, ...] = ()
    uploader: str = ""  # where the data set tells it
    place: str = ""  # of one's own: the file's path inside the data set, with forward slashes

    def __post_init__(self) -> None:
        if not self.labels:
            object.__setattr__(self, "labels", (self.label,))
        if self.labels[0] != self.label:
            raise ValueError(f"the first of the labels {self.labels} is not {self.label!r}")


def labels_of(clips: Iterable[Clip]) -> tuple[str, ...]:
    """Return the label set of ``clips``: every label once, sorted by name."""
    return tuple(sorted({label for clip in clips for label in clip.labels}))


def renamed(clips: Iterable[Clip], names: Mapping[str, str] = RENAMED) -> list[Clip]:
    """Return ``clips`` with the labels in ``names`` replaced, so that sets can share classes."""
    clips = list(clips)
    changed = []
    for clip in clips:
        labels = tuple(dict.fromkeys(names.get(label, label) for label in clip.labels))
        changed.append(replace(clip, label=labels[0], labels=labels))
    return changed


def joined(*sets: Sequence[Clip]) -> list[Clip]:
    """Return the clips of several sets as one list, numbered anew."""
    clips = [clip for clips in sets for clip in clips]
    return [replace(clip, index=index) for index, clip in enumerate(clips)]
