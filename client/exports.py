"""Results of a whole job in one file: which there are, and how they are written."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from client.api import Job
from client.errors import InputInvalid
from client.names import safe_name
from common.domain import ArtifactKind


class Table(StrEnum):
    """What the rows of a table are."""

    EVENTS = "events"
    RECORDINGS = "recordings"
    ERRORS = "errors"
    ATTEMPTS = "attempts"
    MANIFEST = "manifest"


class ExportFormat(StrEnum):
    """How a result of a whole job is written."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"
    RTTM = "rttm"
    RAVEN = "raven"  # one selection table
    RAVEN_ZIP = "raven-zip"  # a selection table per recording
    AUDACITY = "audacity"  # a label track per recording, in a ZIP
    JAMS = "jams"  # a file per recording, in a ZIP


TABULAR = {ExportFormat.JSONL, ExportFormat.CSV, ExportFormat.PARQUET}
LABELS = {
    ExportFormat.RAVEN_ZIP: "raven",
    ExportFormat.AUDACITY: "audacity",
    ExportFormat.JAMS: "jams",
}


@dataclass(frozen=True)
class ExportName:
    """What the gateway calls it, and what the file is called."""

    path: str
    file_name: str
    options: dict[str, Any] = field(default_factory=dict)


def name_of_export(
    job: Job, format: ExportFormat | None, table: Table, kinds: list[ArtifactKind]
) -> ExportName:
    """Return what to ask for: artifacts of some kinds in a ZIP, or a table in a format.

    Raises:
        InputInvalid: there is no such table in this format.
    """
    stem = f"{safe_name(job.name)}-{job.id[-8:]}"
    if format is None:
        return ExportName("artifacts.zip", f"{stem}.zip", {"kind": [str(kind) for kind in kinds]})
    if table is Table.MANIFEST and format is ExportFormat.JSONL:
        return ExportName("manifest.jsonl", f"{stem}.manifest.jsonl")
    if table is Table.MANIFEST or (table is not Table.EVENTS and format not in TABULAR):
        raise InputInvalid(f"There is no {table} table as {format}.")
    if format in LABELS:
        return ExportName("labels.zip", f"{stem}.{format}.zip", {"format": LABELS[format]})
    ending = "raven.txt" if format is ExportFormat.RAVEN else format.value
    return ExportName(f"{table}.{ending}", f"{stem}.{table}.{ending}")


def write_export(blocks: Iterable[bytes], path: Path) -> int:
    """Write a file that is whole when it has its name; return its size in bytes."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    size_bytes = 0
    try:
        with beside.open("wb") as file:
            for block in blocks:
                size_bytes += file.write(block)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return size_bytes
