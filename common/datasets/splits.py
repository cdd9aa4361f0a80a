"""The split that the shipped models share: which clips they learn from and which they never see.

``load_clips`` merges ESC-10, UrbanSound8K and the spoken digits into the classes of
``common.labels``. Cross-validation by official folds is ``folds``, data sets with classes of their
own are ``layouts``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from common.datasets.clips import RENAMED, Clip, Dataset
from common.datasets.drafts import Draft, check_files
from common.datasets.layouts import read_digits, read_esc10, read_us8k
from common.datasets.leaks import Origin, origin_of
from common.datasets.tables import DataFolder
from common.errors import DatasetMissing
from common.labels import LABELS

Split = Literal["train", "validation", "test"]

FOLDERS: dict[Dataset, tuple[str, ...]] = {
    "esc10": ("esc-10", "ESC-10", "ESC-50", "ESC-50-master"),
    "us8k": ("urbansound8k-part", "UrbanSound8K"),
    "digits": ("free-spoken-digit", "free-spoken-digit-dataset"),
}
"""Where a data set may lie inside the data folder; the first that exists is read."""

ESC_TEST_FOLD, ESC_VALIDATION_FOLD = 5, 4
US8K_TEST_FOLD = 3
US8K_VALIDATION_SHARE = 0.1
DIGITS_TEST_SPEAKER, DIGITS_VALIDATION_SPEAKER = "theo", "nicolas"


def load_clips(data: Path) -> list[Clip]:
    """Return every clip under ``data`` whose class is in the label set, in a stable order.

    Raises:
        DatasetMissing: a data set, its table or a file named in it is missing; says which.
        DatasetInvalid: a line of a table that is refused.
    """
    clips: list[Clip] = []
    for dataset, read in _READERS.items():
        files = DataFolder(_folder_of(dataset, data))
        known = [draft for draft in read(files) if _label(draft, dataset) in LABELS]
        check_files(known, files)
        for draft in known:
            label = _label(draft, dataset)
            clips.append(Clip(draft.path, label, dataset, draft.fold, draft.source_id, len(clips)))
    return clips


def split_of(clip: Clip) -> Split:
    """Return which part of the data a clip of ``load_clips`` belongs to.

    Test: ESC fold 5, UrbanSound8K fold 3, digits of one speaker. Validation: ESC fold 4, a tenth
    of the other UrbanSound8K sources (chosen by hash), digits of another speaker.

    Raises:
        ValueError: the clip is of a layout that has no such split.
    """
    if clip.dataset == "esc10":
        return _split(clip.fold, ESC_TEST_FOLD, ESC_VALIDATION_FOLD)
    if clip.dataset == "digits":
        return _split(clip.source_id, DIGITS_TEST_SPEAKER, DIGITS_VALIDATION_SPEAKER)
    if clip.dataset != "us8k":
        raise ValueError(f"the layout {clip.dataset} has folds, but no split of its own")
    if clip.fold == US8K_TEST_FOLD:
        return "test"
    draw = int(hashlib.sha256(clip.source_id.encode()).hexdigest()[:8], 16) / 16**8
    return "validation" if draw < US8K_VALIDATION_SHARE else "train"


def exclude_leaks(clips: Iterable[Clip]) -> list[Clip]:
    """Return ``clips`` without those that share a recording with a split held out from them.

    ESC and UrbanSound8K both draw on Freesound. A training clip goes if its recording is also in
    the test or validation split, a validation clip if it is also in the test split.
    """
    clips = list(clips)
    held: dict[Split, set[Origin]] = {"train": set(), "validation": set(), "test": set()}
    for clip in clips:
        held[split_of(clip)].add(origin_of(clip))
    banned: dict[Split, set[Origin]] = {
        "train": held["validation"] | held["test"],
        "validation": held["test"],
        "test": set(),
    }
    return [clip for clip in clips if origin_of(clip) not in banned[split_of(clip)]]


def in_split(clips: Iterable[Clip], split: Split) -> list[Clip]:
    """Return those of ``clips`` that belong to one split."""
    return [clip for clip in clips if split_of(clip) == split]


def clips_of(data: Path, split: Split) -> list[Clip]:
    """Return the leak-free clips of one split under ``data``."""
    return in_split(exclude_leaks(load_clips(data)), split)


def _split(part: int | str, test: int | str, validation: int | str) -> Split:
    if part == test:
        return "test"
    return "validation" if part == validation else "train"


def _label(draft: Draft, dataset: Dataset) -> str:
    label = draft.labels[0]
    return "speech" if dataset == "digits" else RENAMED.get(label, label)


def _folder_of(dataset: Dataset, data: Path) -> Path:
    for name in FOLDERS[dataset]:
        if (data / name).is_dir():
            return data / name
    raise DatasetMissing(f"{data} holds none of the folders {', '.join(FOLDERS[dataset])}")


_READERS: dict[Dataset, Callable[[DataFolder], Iterator[Draft]]] = {
    "esc10": read_esc10,
    "us8k": read_us8k,
    "digits": read_digits,
}
