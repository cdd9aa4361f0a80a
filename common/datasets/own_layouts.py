"""The layouts of one's own recordings: a folder per class, and a CSV manifest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from common.datasets.clips import OWN_SOURCE
from common.datasets.drafts import Draft
from common.datasets.tables import DataFolder, clean_label, read_table, shown
from common.errors import DatasetInvalid, DatasetMissing

HASHED_FOLDS = 5
"""Folds that clips are spread over where nothing says which fold they are in."""
FOLD_FOLDER = re.compile(r"fold[ _-]?([0-9]{1,4})", re.IGNORECASE)
MANIFEST = "manifest.csv"


def hashed_fold(source_id: str) -> int:
    """Return the fold, 1 to HASHED_FOLDS, of a source: the same on every machine and every day."""
    digest = hashlib.sha256(source_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") % HASHED_FOLDS + 1


def read_folders(files: DataFolder) -> Iterator[Draft]:
    """Yield the clips of ``<class>/...`` or ``fold<n>/<class>/...``.

    A folder inside a class folder is one recording: what lies in it has one source, whatever the
    class. A file directly in a class folder is a recording of its own.

    Raises:
        DatasetMissing: there are no class folders, or one holds no audio.
        DatasetInvalid: audio beside the class folders, or fold folders beside class folders.
    """
    top = files.folders(files.root)
    folds = {path: FOLD_FOLDER.fullmatch(path.name) for path in top}
    if not top:
        raise DatasetMissing(f"{files.root} holds no folder; a class is a folder of audio files")
    if not any(folds.values()):
        yield from _read_classes(files, files.root, None)
        return
    for path, match in folds.items():
        if match is None:
            raise DatasetInvalid(
                f"{files.root} holds fold folders and also {shown(path.name)}; either all of its "
                "folders are folds or all are classes"
            )
        yield from _read_classes(files, path, int(match[1]))


def _read_classes(files: DataFolder, parent: Path, fold: int | None) -> Iterator[Draft]:
    loose = files.audio_files(parent)
    if loose:
        raise DatasetInvalid(
            f"{len(loose)} audio files lie in {parent} beside the class folders, the first is "
            f"{shown(loose[0].name)}"
        )
    for folder in files.folders(parent):
        label = clean_label(folder.name, f"the folder {folder}")
        paths = files.all_audio_files(folder)
        if not paths:
            raise DatasetMissing(f"the class folder {folder} holds no audio file")
        for path in paths:
            inside = path.relative_to(folder).parent.as_posix()
            place = path.relative_to(files.root).as_posix()
            source_id = OWN_SOURCE + place if inside == "." else inside
            number = hashed_fold(source_id) if fold is None else fold
            yield Draft(path, (label,), number, source_id, str(path), place=place)


def find_manifest(folder: Path) -> Path:
    """Return the manifest that ``folder`` is or holds: manifest.csv, or its only table."""
    if folder.is_file():
        return folder
    if (folder / MANIFEST).is_file():
        return folder / MANIFEST
    tables = sorted(folder.glob("*.csv"))
    if len(tables) != 1:
        raise DatasetMissing(
            f"{folder} holds {len(tables)} tables and none is called {MANIFEST}; name the manifest"
        )
    return tables[0]


def read_manifest(table: Path, files: DataFolder) -> Iterator[Draft]:
    """Yield the clips of a table with the columns path, label[, fold][, source].

    Paths start at the table's folder. Several labels are separated by ``;``. Without a column fold
    (or source) every clip gets a fold by hash (or is a source of its own); a source may be left
    empty, a fold may not. Other columns are ignored.
    """
    files.holds(table)  # a link that leads out is refused
    for row in read_table(table, table.name, ("path", "label")):
        name = row.text("path")
        source_id = row.values.get("source", "").strip()
        if source_id:
            source_id = row.text("source")
        if source_id.startswith(OWN_SOURCE):
            raise DatasetInvalid(f"{row.where}: a source must not begin with {OWN_SOURCE}")
        path = files.path(name, row.where)
        place = path.relative_to(files.root).as_posix()
        source_id = source_id or OWN_SOURCE + place
        yield Draft(
            path=path,
            labels=row.labels("label", ";"),
            fold=row.fold("fold", lowest=0) if "fold" in row.values else hashed_fold(source_id),
            source_id=source_id,
            where=row.where,
            place=place,
        )
