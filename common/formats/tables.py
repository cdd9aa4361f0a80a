"""Rows as JSON lines and as CSV, a block of bytes at a time.

JSON lines hold values as they are. In CSV a missing value is an empty cell, a map is JSON, and
text that a spreadsheet would take for a formula gets an apostrophe in front (see ``guarded``).
Both are UTF-8 without a byte order mark; times are ISO 8601 in UTC.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

Row = Sequence[Any]
"""One value or None for each column."""

BLOCK_BYTES = 1 << 16
FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
PLAIN_NUMBER = re.compile(r"[+-]?[0-9]+([.,][0-9]+)?")


class Kind(StrEnum):
    """What the values of a column are."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    TIME = "time"  # seconds since 1970
    MAP = "map"  # from text to text


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    kind: Kind


def iso_time(seconds: float) -> str:
    """Return a time, in seconds since 1970, as ISO 8601 in UTC with microseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


def guarded(text: str) -> str:
    """Return text that no spreadsheet takes for a formula.

    An apostrophe is put before what begins with one of = + - @, a tab, a carriage return or an
    apostrophe, unless it is a plain number: who takes one apostrophe away has the text back.
    """
    if text.startswith(FORMULA) and not PLAIN_NUMBER.fullmatch(text):
        return f"'{text}"
    return text


def jsonl(columns: Sequence[Column], rows: Iterable[Row]) -> Iterator[bytes]:
    """Yield one JSON object per line, in blocks of whole lines."""
    names = [column.name for column in columns]
    times = [n for n, column in enumerate(columns) if column.kind is Kind.TIME]
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

    def line(row: Row) -> str:
        values = list(row)
        for n in times:
            values[n] = None if values[n] is None else iso_time(values[n])
        return encode(dict(zip(names, values, strict=True))) + "\n"

    return in_blocks(line(row) for row in rows)


def csv_lines(columns: Sequence[Column], rows: Iterable[Row]) -> Iterator[bytes]:
    """Yield a header and one line per row, in blocks of whole lines."""
    cells = [_CELL[column.kind] for column in columns]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")

    def line(values: Iterable[Any]) -> str:
        writer.writerow(values)
        written = text.getvalue()
        text.seek(0)
        text.truncate()
        return written

    def lines() -> Iterator[str]:
        yield line(column.name for column in columns)
        for row in rows:
            yield line(
                None if value is None else cell(value)
                for cell, value in zip(cells, row, strict=True)
            )

    return in_blocks(lines())


def in_blocks(parts: Iterable[str]) -> Iterator[bytes]:
    """Yield text as UTF-8, whole parts joined until there are ``BLOCK_BYTES``; never nothing.

    Half a surrogate pair, which UTF-8 cannot hold, becomes a question mark.
    """
    held: list[str] = []
    size = 0
    for part in parts:
        held.append(part)
        size += len(part)
        if size >= BLOCK_BYTES:
            yield "".join(held).encode("utf-8", "replace")
            held, size = [], 0
    if size:
        yield "".join(held).encode("utf-8", "replace")


def _map_cell(value: dict[str, str]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


_CELL: dict[Kind, Callable[[Any], Any]] = {
    Kind.TEXT: guarded,
    Kind.INTEGER: int,
    Kind.NUMBER: float,
    Kind.TIME: iso_time,
    Kind.MAP: _map_cell,
}
