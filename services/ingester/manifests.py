"""Manifests, line by line: JSON lines, CSV with a header, or a list in the database.

What a line may say is ``common.sources.ManifestLine``. Empty lines are left out.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import ValidationError

from common.errors import SourceInvalid
from common.settings import Settings
from common.sources import ManifestFormat, ManifestLine, ManifestSpec, UrlsSpec
from common.storage import ObjectStore
from services.ingester.entries import Entry, Found, Opens, Refused, Tally, show
from services.ingester.stored import StoredFile

READ_BYTES = 256 << 10
MAX_LINE_BYTES = 128 << 10
COLUMNS = frozenset({"url", "name", "custom_id", "sha256", "params"})
LABEL_PREFIX = "label."
DELIMITERS = ",;\t"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Locate = Callable[[ManifestLine], Opens]
"""Says how the bytes behind a line's address are opened."""


def read_manifest(
    store: ObjectStore,
    spec: ManifestSpec,
    settings: Settings,
    locate: Locate,
    start: int,
    tally: Tally,
) -> Iterator[Found]:
    """Yield the lines of a stored manifest from number ``start``.

    Raises:
        SourceInvalid: manifest_unreadable, archive_too_many_entries.
    """
    lines = _lines(StoredFile(store, spec.object_key))
    parsed = _json_lines(lines) if spec.format is ManifestFormat.JSONL else _csv_rows(lines)
    number = -1
    for number, (text, line) in enumerate(parsed):
        if number >= settings.max_recordings_per_job:
            raise SourceInvalid("archive_too_many_entries", f"more than {number} lines")
        if number >= start:
            yield _entry(number, text, line, locate)
    if number < 0:
        raise SourceInvalid("manifest_unreadable", "it holds no lines")


def read_urls(spec: UrlsSpec, locate: Locate, start: int, tally: Tally) -> Iterator[Found]:
    """Yield the items of a list from number ``start``."""
    tally.total = len(spec.items)
    for number in range(start, len(spec.items)):
        item = spec.items[number]
        yield _entry(number, item.url, item, locate)


def _entry(number: int, text: str, line: ManifestLine | str, locate: Locate) -> Found:
    if isinstance(line, str):
        return Refused(number, show(text), code="line_invalid", detail=line)
    return Entry(
        number,
        line.name or _name_of(line.url),
        line.custom_id,
        line.model_dump(mode="json", exclude_defaults=True),
        open=locate(line),
        labels=line.labels,
        params=line.params,
        sha256=line.sha256,
    )


def _name_of(url: str) -> str:
    """Return the last part of an address; that alone is a name."""
    path = urlsplit(url).path if "://" in url else url
    return show(unquote(path).rstrip("/").rpartition("/")[2])


def _lines(file: StoredFile) -> Iterator[bytes | None]:
    """Yield lines without their ends; None stands for one that is too long."""
    rest = b""
    too_long = False
    first = True
    while block := file.read(READ_BYTES):
        if first:
            block, first = block.removeprefix(BYTE_ORDER_MARK), False
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield None if too_long or len(line) > MAX_LINE_BYTES else line
            too_long = False
        if len(rest) > MAX_LINE_BYTES:
            rest, too_long = b"", True
    if rest or too_long:
        yield None if too_long else rest


def _json_lines(lines: Iterable[bytes | None]) -> Iterator[tuple[str, ManifestLine | str]]:
    for line in lines:
        if line is None:
            yield "a long line", f"longer than {MAX_LINE_BYTES} bytes"
        elif line.strip():
            text = line[:200].decode(errors="replace")
            try:
                yield text, ManifestLine.model_validate_json(line)
            except ValidationError as error:
                yield text, _faults(error)


def _csv_rows(lines: Iterable[bytes | None]) -> Iterator[tuple[str, ManifestLine | str]]:
    texts = _texts(lines)
    header = next(texts, None)
    if header is None:
        return
    delimiter = max(DELIMITERS, key=header.count)
    rows = csv.reader(_chain(header, texts), delimiter=delimiter, strict=True)
    try:
        columns = [column.strip() for column in next(rows)]
        _check_columns(columns)
        for row in rows:
            if any(cell.strip() for cell in row):
                yield delimiter.join(row)[:200], _row(columns, row)
    except csv.Error as error:
        raise SourceInvalid("manifest_unreadable", f"not CSV: {error}") from error


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _texts(lines: Iterable[bytes | None]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if line is None:
            raise SourceInvalid("manifest_unreadable", f"line {number} is too long")
        try:
            yield line.decode() + "\n"
        except UnicodeDecodeError as error:
            raise SourceInvalid("manifest_unreadable", f"line {number} is not UTF-8") from error


def _check_columns(columns: list[str]) -> None:
    unknown = [c for c in columns if c not in COLUMNS and not c.startswith(LABEL_PREFIX)]
    if "url" not in columns:
        raise SourceInvalid("manifest_unreadable", "the header names no column url")
    if unknown:
        raise SourceInvalid("manifest_unreadable", f"unknown column {show(unknown[0])}")
    if len(set(columns)) < len(columns):
        raise SourceInvalid("manifest_unreadable", "the header names a column twice")


def _row(columns: list[str], row: list[str]) -> ManifestLine | str:
    if len(row) > len(columns):
        return "more cells than the header has columns"
    line: dict[str, Any] = {"labels": {}}
    for column, cell in zip(columns, row, strict=False):
        if not cell:
            continue
        if column.startswith(LABEL_PREFIX):
            line["labels"][column.removeprefix(LABEL_PREFIX)] = cell
        elif column == "params":
            try:
                line["params"] = json.loads(cell)
            except (ValueError, RecursionError):
                return "params: not JSON"
        else:
            line[column] = cell
    try:
        return ManifestLine.model_validate(line)
    except ValidationError as error:
        return _faults(error)


def _faults(error: ValidationError) -> str:
    faults = (
        f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}".lstrip(": ")
        for fault in error.errors(include_url=False, include_input=False)[:5]
    )
    return show("; ".join(faults))
