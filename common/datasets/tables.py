"""Tables and files of a data set, read as if they were hostile.

Owns bounded reading of tables, what a label, a fold and a file name may be, and that no name and no
link leads out of the data set's folder.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from common.errors import DatasetInvalid, DatasetMissing
from common.names import AUDIO_SUFFIXES

MAX_TABLE_BYTES = 256 * 1024 * 1024
MAX_LINE_LENGTH = 65_536
MAX_NAME_LENGTH = 500
MAX_LABEL_LENGTH = 100
MAX_FOLD = 9_999
MAX_DEPTH = 16
"""Folders within folders that are looked into."""


@dataclass(frozen=True)
class Row:
    """One line of a table: its values by column, and ``where`` it stands, for messages."""

    values: dict[str, str]
    where: str

    def text(self, column: str) -> str:
        """Return a value without space around it. Raises DatasetInvalid where it is empty."""
        value = self.values[column].strip()
        if not value:
            raise DatasetInvalid(f"{self.where}: the column {column} is empty")
        if len(value) > MAX_NAME_LENGTH or not value.isprintable():
            raise DatasetInvalid(
                f"{self.where}: the column {column} holds {shown(value)}: longer than "
                f"{MAX_NAME_LENGTH} characters, or with control characters"
            )
        return value

    def label(self, column: str) -> str:
        """Return the one label in a column."""
        return clean_label(self.values[column], f"{self.where}, column {column}")

    def labels(self, column: str, separator: str) -> tuple[str, ...]:
        """Return the labels in a column, each once, in their order."""
        value = self.values[column]
        if not value.strip():
            raise DatasetInvalid(f"{self.where}: the column {column} is empty, there is no label")
        where = f"{self.where}, column {column}"
        return tuple(dict.fromkeys(clean_label(part, where) for part in value.split(separator)))

    def fold(self, column: str, lowest: int = 1, highest: int = MAX_FOLD) -> int:
        """Return the fold in a column, ``lowest`` to ``highest``."""
        value = self.text(column)
        if value.isascii() and value.isdecimal() and len(value) <= 4:
            number = int(value)
            if lowest <= number <= highest:
                return number
        raise DatasetInvalid(f"{self.where}: the fold {shown(value)} is not {lowest} to {highest}")


def shown(text: str) -> str:
    """Return ``text`` quoted for a message, cut where it is long."""
    return repr(text) if len(text) <= 80 else f"{text[:60]!r}... ({len(text)} characters)"


def clean_label(raw: str, where: str) -> str:
    """Return a label without space around it.

    Raises:
        DatasetInvalid: it is empty, longer than MAX_LABEL_LENGTH or holds control characters.
    """
    label = raw.strip()
    if not label:
        raise DatasetInvalid(f"{where}: a label is empty")
    if len(label) > MAX_LABEL_LENGTH:
        raise DatasetInvalid(
            f"{where}: the label {shown(label)} is longer than {MAX_LABEL_LENGTH} characters"
        )
    if not label.isprintable():
        raise DatasetInvalid(f"{where}: the label {shown(label)} holds control characters")
    return label


def read_table(
    table: Path, name: str, columns: Sequence[str], header: Sequence[str] | None = None
) -> Iterator[Row]:
    """Yield the rows of a comma-separated table that has at least ``columns``.

    Args:
        table: the file. ``name`` is how messages call it.
        header: the columns of a table that has no line for them.

    Raises:
        DatasetMissing: no such file, no lines, or a column is missing; says which.
        DatasetInvalid: too large, a line too long, not UTF-8, or with another number of values than
            the header; says which line.
    """
    if not table.is_file():
        raise DatasetMissing(f"the table {name} is missing in {table.parent}")
    size = table.stat().st_size
    if size > MAX_TABLE_BYTES:
        raise DatasetInvalid(f"{name} has {size} bytes; the limit is {MAX_TABLE_BYTES}")
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(_lines(file, name), strict=True)
        try:
            names = list(header) if header is not None else [c.strip() for c in next(reader, [])]
            _check_header(names, name, columns)
            for values in reader:
                if not values:
                    continue
                where = f"line {reader.line_num} of {name}"
                if len(values) != len(names):
                    raise DatasetInvalid(
                        f"{where} has {len(values)} values, its header has {len(names)}"
                    )
                yield Row(dict(zip(names, values, strict=True)), where)
        except csv.Error as error:
            raise DatasetInvalid(f"line {reader.line_num} of {name}: {error}") from error
        except UnicodeDecodeError as error:
            message = f"{name} is not UTF-8, somewhere after line {reader.line_num}"
            raise DatasetInvalid(message) from error


def _lines(file: TextIO, name: str) -> Iterator[str]:
    number = 0
    while line := file.readline(MAX_LINE_LENGTH + 1):
        number += 1
        if len(line) > MAX_LINE_LENGTH:
            raise DatasetInvalid(
                f"line {number} of {name} is longer than {MAX_LINE_LENGTH} characters"
            )
        yield line


def _check_header(names: Sequence[str], table: str, columns: Sequence[str]) -> None:
    if not any(names):
        raise DatasetMissing(f"the table {table} is empty")
    missing = [column for column in columns if column not in names]
    if missing:
        raise DatasetMissing(
            f"the table {table} lacks the column {', '.join(missing)}; it has "
            f"{shown(', '.join(names))}"
        )
    if len(set(names)) != len(names):
        raise DatasetInvalid(f"the table {table} names a column twice: {shown(', '.join(names))}")


@dataclass(frozen=True)
class _Entry:
    is_file: bool
    is_folder: bool
    is_link: bool


class DataFolder:
    """The files below one folder. What a table or a link names outside it is refused."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real = os.path.realpath(root)
        self._listed: dict[Path, dict[str, _Entry]] = {}

    def path(self, name: str, where: str) -> Path:
        """Return where a file of this name lies.

        Raises:
            DatasetInvalid: the name is absolute, climbs up, is too long or has control characters.
        """
        parts = name.replace("\\", "/").split("/")
        if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable():
            raise DatasetInvalid(
                f"{where}: the file name {shown(name)} is empty, longer than {MAX_NAME_LENGTH} "
                "characters or has control characters"
            )
        if ".." in parts or parts[0] in {"", "~"} or parts[0].endswith(":"):
            raise DatasetInvalid(f"{where}: the file name {shown(name)} leads out of the data set")
        return self.root / name

    def holds(self, path: Path) -> bool:
        """Return whether ``path`` is a regular file.

        Raises:
            DatasetInvalid: it, or a folder on the way, is a link that leads out of the root.
        """
        entry = self._entries(path.parent).get(path.name)
        if entry is None or not entry.is_file:
            return False
        if entry.is_link:
            self._check_inside(path)
        return True

    def folders(self, folder: Path) -> list[Path]:
        """Return the folders in ``folder``, sorted, hidden ones left out."""
        return self._visible(folder, lambda entry: entry.is_folder)

    def audio_files(self, folder: Path) -> list[Path]:
        """Return the files in ``folder`` that are named like audio, sorted."""
        files = self._visible(folder, lambda entry: entry.is_file)
        return [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]

    def all_audio_files(self, folder: Path, depth: int = MAX_DEPTH) -> list[Path]:
        """Return the same for ``folder`` and the folders below it."""
        if depth == 0:
            raise DatasetInvalid(f"{folder} lies more than {MAX_DEPTH} folders deep")
        below = [self.all_audio_files(inner, depth - 1) for inner in self.folders(folder)]
        return sorted([*self.audio_files(folder), *(path for paths in below for path in paths)])

    def _visible(self, folder: Path, wanted: Callable[[_Entry], bool]) -> list[Path]:
        found = []
        for name, entry in sorted(self._entries(folder).items()):
            if wanted(entry) and not name.startswith((".", "__MACOSX")):
                if entry.is_link:
                    self._check_inside(folder / name)
                found.append(folder / name)
        return found

    def _entries(self, folder: Path) -> dict[str, _Entry]:
        if folder not in self._listed:
            self._check_inside(folder)
            self._listed[folder] = _list(folder)
        return self._listed[folder]

    def _check_inside(self, path: Path) -> None:
        real = os.path.realpath(path)
        if real != self._real and not real.startswith(self._real.rstrip("/") + "/"):
            raise DatasetInvalid(f"{path} leads out of the data set {self.root} through a link")


def _list(folder: Path) -> dict[str, _Entry]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name: _looked_at(entry) for entry in entries}
    except PermissionError as error:
        raise DatasetMissing(f"the folder {folder} may not be read") from error
    except OSError:  # nothing of this name, or no folder
        return {}


def _looked_at(entry: os.DirEntry[str]) -> _Entry:
    try:
        return _Entry(entry.is_file(), entry.is_dir(), entry.is_symlink())
    except OSError:  # a link to itself
        return _Entry(False, False, True)
