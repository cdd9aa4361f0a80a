"""Rows as Parquet, row group by row group.

PyArrow is needed here and takes its time and tens of megabytes to load: import this module only
when somebody asks for Parquet.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import pyarrow as pa
from pyarrow import parquet as pq

from common.formats.tables import Column, Kind, Row

GROUP_ROWS = 16_384
TYPES = {
    Kind.TEXT: pa.string(),
    Kind.INTEGER: pa.int64(),
    Kind.NUMBER: pa.float64(),
    Kind.TIME: pa.timestamp("us", tz="UTC"),
    Kind.MAP: pa.map_(pa.string(), pa.string()),
}


def parquet(columns: Sequence[Column], rows: Iterable[Row]) -> Iterator[bytes]:
    """Yield a Parquet file. It can be read only when it is whole: what it holds stands at its end.

    What is kept until then is a few hundred bytes for each column of each row group.
    """
    schema = pa.schema([pa.field(column.name, TYPES[column.kind]) for column in columns])
    written = _Written()
    source = iter(rows)
    with pq.ParquetWriter(written, schema, compression="zstd") as writer:
        while group := list(islice(source, GROUP_ROWS)):
            arrays = [
                pa.array([_value(column.kind, row[n]) for row in group], TYPES[column.kind])
                for n, column in enumerate(columns)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            yield from written.taken()
    yield from written.taken()


def _value(kind: Kind, value: Any) -> Any:
    if value is None:
        return None
    if kind is Kind.TEXT:
        return _valid(value)
    if kind is Kind.TIME:
        return datetime.fromtimestamp(value, UTC)  # rounded as in the other formats
    if kind is Kind.MAP:
        return [(_valid(key), _valid(text)) for key, text in value.items()]
    return value


def _valid(text: str) -> str:
    """Return text that UTF-8 can hold: as ``tables.in_blocks`` does."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class _Written(io.RawIOBase):
    """A file that hands on what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        part = bytes(data)
        self._parts.append(part)
        return len(part)

    def taken(self) -> Iterator[bytes]:
        """Yield, and forget, what has been written since the last time."""
        parts, self._parts = self._parts, []
        if block := b"".join(parts):
            yield block
