"""Data sets in the layouts they are published in: ``load_layout``.

Owns which layout keeps what where; how tables are read is ``tables``. The sets and their folds:
ESC-50 and ESC-10 (Piczak 2015), UrbanSound8K (Salamon, Jacoby and Bello 2014), FSD50K (Fonseca et
al. 2020), the Free Spoken Digit Dataset (Jackson et al.); and two layouts of one's own, a folder
per class and a CSV manifest (``own_layouts``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common.datasets.clips import LAYOUTS, Clip, Dataset
from common.datasets.drafts import Draft, clips_from
from common.datasets.own_layouts import find_manifest, read_folders, read_manifest
from common.datasets.tables import MAX_TABLE_BYTES, DataFolder, Row, read_table, shown
from common.errors import DatasetInvalid, DatasetMissing

ESC_TABLE = "meta/esc50.csv"
ESC_FOLDS = 5
ESC10_FOLDER = re.compile(r"[0-9]{3} - (.+)")
ESC10_FILE = re.compile(r"([1-5])-([0-9]+)-[A-Z]")
ESC10_NAMES = {
    "Dog bark": "dog",
    "Rain": "rain",
    "Sea waves": "sea_waves",
    "Baby cry": "crying_baby",
    "Clock tick": "clock_tick",
    "Person sneeze": "sneezing",
    "Helicopter": "helicopter",
    "Chainsaw": "chainsaw",
    "Rooster": "rooster",
    "Fire crackling": "crackling_fire",
}
"""The folders of ESC-10's own release, and what ESC-50 calls their classes."""
US8K_TABLE = "metadata/UrbanSound8K.csv"
US8K_FOLDS = 10
FSD50K_TRUTH = "FSD50K.ground_truth"
FSD50K_FOLDS = {"train": 1, "val": 2}
FSD50K_EVAL_FOLD = 3
FSD50K_SUFFIXES = (".wav", ".flac", ".ogg")
DIGIT_FOLDERS = ("audio", "recordings")
DIGIT_FILE = re.compile(r"([0-9])_([^_]+)_([0-9]+)")
DIGIT_SUFFIXES = frozenset({".flac", ".wav", ".ogg"})
MAX_SUGGESTIONS_FROM = 50
"""Folders inside the one given that are looked at for a suggestion."""


def load_layout(folder: Path, layout: str) -> list[Clip]:
    """Return every clip of a data set, all classes by their own names, in a stable order.

    Args:
        folder: the data set's own folder; for ``csv`` the manifest, or the folder that holds it.
        layout: one of LAYOUTS.

    Raises:
        DatasetMissing: a folder, table, column or audio file is missing; says which and how many,
            and which layouts the folder could be.
        DatasetInvalid: a line, name, label or link that is refused.
    """
    known = next((name for name in LAYOUTS if name == layout), None)
    if known is None:
        raise DatasetInvalid(f"there is no layout {shown(layout)}; known are {', '.join(LAYOUTS)}")
    if not folder.exists():
        raise DatasetMissing(f"there is no folder {folder}")
    if known != "csv" and not folder.is_dir():
        raise DatasetMissing(f"{folder} is a file; the layout {known} is a folder")
    files = DataFolder(folder.parent if folder.is_file() else folder)
    try:
        drafts = list(_read_own(folder, files) if known == "csv" else READERS[known](files))
        return clips_from(drafts, files, known)
    except DatasetMissing as error:
        raise DatasetMissing(f"{error}{_suggestion(folder, known)}") from error


def _read_own(folder: Path, files: DataFolder) -> Iterator[Draft]:
    return read_manifest(find_manifest(folder), files)


def read_esc50(files: DataFolder) -> Iterator[Draft]:
    """Yield the clips of ESC-50's table."""
    for row in _esc_rows(files, ()):
        yield _esc_draft(row, files)


def read_esc10(files: DataFolder) -> Iterator[Draft]:
    """Yield the clips that ESC-50's table marks as ESC-10, or those of ESC-10's own release."""
    if not files.holds(files.root / ESC_TABLE) and _esc10_folders(files):
        yield from _read_esc10_release(files)
        return
    for row in _esc_rows(files, ("esc10",)):
        mark = row.text("esc10").lower()
        if mark not in {"true", "false"}:
            raise DatasetInvalid(f"{row.where}: the column esc10 is neither True nor False")
        if mark == "true":
            yield _esc_draft(row, files)


def _esc_rows(files: DataFolder, more: tuple[str, ...]) -> Iterator[Row]:
    columns = ("filename", "fold", "category", "src_file", *more)
    return read_table(table_in(files, ESC_TABLE), ESC_TABLE, columns)


def _esc_draft(row: Row, files: DataFolder) -> Draft:
    return Draft(
        path=files.path(f"audio/{row.text('filename')}", row.where),
        labels=(row.label("category"),),
        fold=row.fold("fold", highest=ESC_FOLDS),
        source_id=row.text("src_file"),
        where=row.where,
    )


def _esc10_folders(files: DataFolder) -> dict[str, Path]:
    found = {}
    for folder in files.folders(files.root):
        match = ESC10_FOLDER.fullmatch(folder.name)
        if match and match[1] in ESC10_NAMES:
            found[match[1]] = folder
    return found


def _read_esc10_release(files: DataFolder) -> Iterator[Draft]:
    folders = _esc10_folders(files)
    missing = sorted(set(ESC10_NAMES) - set(folders))
    if missing:
        raise DatasetMissing(
            f"{len(missing)} of ESC-10's {len(ESC10_NAMES)} class folders are missing in "
            f"{files.root}, the first is '... - {missing[0]}'"
        )
    for name, folder in sorted(folders.items(), key=lambda item: item[1]):
        for path in files.audio_files(folder):
            match = ESC10_FILE.fullmatch(path.stem)
            if match is None:
                raise DatasetInvalid(f"{path} is not named <fold>-<Freesound id>-<take>")
            yield Draft(path, (ESC10_NAMES[name],), int(match[1]), match[2], str(path))


def read_us8k(files: DataFolder) -> Iterator[Draft]:
    """Yield the clips of UrbanSound8K's table."""
    columns = ("slice_file_name", "fsID", "fold", "class")
    for row in read_table(table_in(files, US8K_TABLE), US8K_TABLE, columns):
        fold = row.fold("fold", highest=US8K_FOLDS)
        yield Draft(
            path=files.path(f"audio/fold{fold}/{row.text('slice_file_name')}", row.where),
            labels=(row.label("class"),),
            fold=fold,
            source_id=row.text("fsID"),
            where=row.where,
        )


def read_fsd50k(files: DataFolder) -> Iterator[Draft]:
    """Yield the clips of FSD50K: folds 1 and 2 are its train and val splits, 3 its eval set."""
    name = f"{FSD50K_TRUTH}/vocabulary.csv"
    header = ("index", "label", "mid")
    rows = read_table(table_in(files, name), name, (), header)
    vocabulary = {row.label("label") for row in rows}
    for part, more in (("dev", ("split",)), ("eval", ())):
        uploaders = _uploaders(files, part)
        name = f"{FSD50K_TRUTH}/{part}.csv"
        for row in read_table(table_in(files, name), name, ("fname", "labels", *more)):
            labels = row.labels("labels", ",")
            unknown = [label for label in labels if label not in vocabulary]
            if unknown:
                raise DatasetInvalid(
                    f"{row.where}: the label {shown(unknown[0])} is not in vocabulary.csv"
                )
            number = row.text("fname")
            yield Draft(
                path=_fsd50k_file(files, part, number, row.where),
                labels=labels,
                fold=_fsd50k_fold(row) if part == "dev" else FSD50K_EVAL_FOLD,
                source_id=number,
                where=row.where,
                uploader=uploaders.get(number, ""),
            )


def _fsd50k_fold(row: Row) -> int:
    split = row.text("split")
    if split not in FSD50K_FOLDS:
        raise DatasetInvalid(f"{row.where}: the split {shown(split)} is neither train nor val")
    return FSD50K_FOLDS[split]


def _fsd50k_file(files: DataFolder, part: str, number: str, where: str) -> Path:
    paths = [
        files.path(f"FSD50K.{part}_audio/{number}{suffix}", where) for suffix in FSD50K_SUFFIXES
    ]
    return next((path for path in paths if files.holds(path)), paths[0])


def _uploaders(files: DataFolder, part: str) -> dict[str, str]:
    """Return who uploaded each recording; empty where the metadata were not unpacked."""
    name = f"FSD50K.metadata/{part}_clips_info_FSD50K.json"
    path = files.root / name
    if not files.holds(path):
        return {}
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise DatasetInvalid(f"{name} is larger than {MAX_TABLE_BYTES} bytes")
    try:
        told: Any = json.loads(path.read_bytes())
        return {number: str(facts["uploader"]) for number, facts in told.items()}
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise DatasetInvalid(
            f"{name} is not JSON that maps recordings to their uploaders"
        ) from error


def read_digits(files: DataFolder) -> Iterator[Draft]:
    """Yield the spoken digits; the fold is the number of the speaker among the sorted names."""
    for name in DIGIT_FOLDERS:
        paths = [
            path
            for path in files.audio_files(files.root / name)
            if path.suffix.lower() in DIGIT_SUFFIXES
        ]
        if paths:
            break
    else:
        raise DatasetMissing(f"{files.root} holds no audio/<digit>_<speaker>_<index>.flac")
    parts = {path: DIGIT_FILE.fullmatch(path.stem) for path in paths}
    wrong = [path.name for path, match in parts.items() if match is None]
    if wrong:
        raise DatasetInvalid(
            f"{len(wrong)} of {len(paths)} files in {paths[0].parent} are not named "
            f"<digit>_<speaker>_<index>, the first is {shown(wrong[0])}"
        )
    named = {path: match for path, match in parts.items() if match is not None}
    speakers = sorted({match[2] for match in named.values()})
    for path, match in named.items():
        yield Draft(path, (match[1],), speakers.index(match[2]) + 1, match[2], str(path))


READERS: dict[Dataset, Callable[[DataFolder], Iterator[Draft]]] = {
    "esc50": read_esc50,
    "esc10": read_esc10,
    "us8k": read_us8k,
    "fsd50k": read_fsd50k,
    "folders": read_folders,
    "digits": read_digits,
}


def table_in(files: DataFolder, name: str) -> Path:
    """Return a table of a data set. Raises DatasetMissing where there is none."""
    path = files.root / name
    if not files.holds(path):
        raise DatasetMissing(f"the table {name} is missing in {files.root}")
    return path


def layouts_like(folder: Path) -> tuple[Dataset, ...]:
    """Return the layouts that a folder could be, by what lies in it; clips are not looked for."""
    files = DataFolder(folder)
    found: list[Dataset] = []
    if files.holds(folder / ESC_TABLE):
        found += ["esc50", "esc10"]
    elif _esc10_folders(files):
        found.append("esc10")
    if files.holds(folder / US8K_TABLE):
        found.append("us8k")
    if files.holds(folder / FSD50K_TRUTH / "dev.csv"):
        found.append("fsd50k")
    digits = (path for name in DIGIT_FOLDERS for path in files.audio_files(folder / name))
    first = next(digits, None)
    if first is not None and DIGIT_FILE.fullmatch(first.stem):
        found.append("digits")
    if any(path.suffix == ".csv" for path in folder.glob("*.csv")):
        found.append("csv")
    if not found and sum(bool(files.all_audio_files(one)) for one in files.folders(folder)) > 1:
        found.append("folders")
    return tuple(found)


def _suggestion(folder: Path, asked: Dataset) -> str:
    """Return the end of a message: what else the folder, or one inside it, could be."""
    if not folder.is_dir():
        return ""
    try:
        here = [name for name in layouts_like(folder) if name != asked]
        inner = DataFolder(folder).folders(folder)[:MAX_SUGGESTIONS_FROM]
        inside = [path.name for path in inner if asked in layouts_like(path)]
    except (DatasetInvalid, DatasetMissing):
        return ""
    hints = []
    if here:
        hints.append(f"the folder could be of the layout {' or '.join(here)}")
    if inside and asked != "folders":
        hints.append(f"its folder {shown(inside[0])} could be what is meant")
    return f" ({'; '.join(hints)})" if hints else ""
