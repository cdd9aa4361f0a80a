"""Results of a whole job, streamed: tables, labels, a ZIP of artifacts.

All of them are made while they are sent: there is no Content-Length, and an error on the way cuts
the connection. The header ``Soundmill-Job-State`` tells whether more may be to come.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from fastapi import Query, Response

from common.domain import ArtifactKind
from services.gateway import export_files, export_tables
from services.gateway.access import Caller, Reader
from services.gateway.context import Around, Surroundings, new_router
from services.gateway.downloads import MadeResponse, documents, made
from services.gateway.events import MEDIA_TYPES, EventsFormat
from services.gateway.export_files import LabelsFormat
from services.gateway.export_tables import Table, TableFormat, write
from services.gateway.exports import Export
from services.gateway.names import download_name

ZIP = "application/zip"
JSON_LINES = MEDIA_TYPES[EventsFormat.JSONL]
MAX_POSITION = 999_999_999


class JobEventsFormat(StrEnum):
    """How the events of a whole job may be written into one file."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"
    RTTM = "rttm"
    RAVEN = "raven.txt"


router = new_router()

Position = Annotated[int, Query(ge=0, le=MAX_POSITION)]
Kinds = Annotated[list[ArtifactKind], Query(min_length=1, max_length=len(ArtifactKind))]
TABLE_DOCUMENTS = documents(MEDIA_TYPES[EventsFormat(form)] for form in TableFormat)


@router.get(
    "/jobs/{job_id}/events.{form}",
    response_class=Response,
    responses=documents(MEDIA_TYPES[EventsFormat(form)] for form in JobEventsFormat),
)
def get_job_events(
    around: Around, caller: Reader, job_id: str, form: JobEventsFormat
) -> MadeResponse:
    """Return the events of all recordings in one file, in the order of the job."""
    opened = _open(around, caller, job_id)
    media_type, ending = MEDIA_TYPES[EventsFormat(form)], f"events.{form}"
    match form:
        case JobEventsFormat.RTTM:
            blocks = export_files.rttm(opened.export)
        case JobEventsFormat.RAVEN:
            blocks = export_files.raven(opened.export)
        case _:
            blocks = write(export_tables.EVENTS, opened.export, TableFormat(form))
    return _answer(around, opened, blocks, media_type, ending)


@router.get("/jobs/{job_id}/recordings.{form}", response_class=Response, responses=TABLE_DOCUMENTS)
def get_job_recordings(
    around: Around, caller: Reader, job_id: str, form: TableFormat
) -> MadeResponse:
    """Return all recordings in one table: how far each is, and what is heard most in it."""
    return _table(around, caller, job_id, export_tables.RECORDINGS, form)


@router.get("/jobs/{job_id}/errors.{form}", response_class=Response, responses=TABLE_DOCUMENTS)
def get_job_errors(around: Around, caller: Reader, job_id: str, form: TableFormat) -> MadeResponse:
    """Return what failed and why in one table: sources, their entries, stages of recordings."""
    return _table(around, caller, job_id, export_tables.ERRORS, form)


@router.get("/jobs/{job_id}/attempts.{form}", response_class=Response, responses=TABLE_DOCUMENTS)
def get_job_attempts(
    around: Around, caller: Reader, job_id: str, form: TableFormat
) -> MadeResponse:
    """Return every attempt at a stage of a recording in one table, with all that it measured."""
    return _table(around, caller, job_id, export_tables.ATTEMPTS, form)


@router.get(
    "/jobs/{job_id}/manifest.jsonl", response_class=Response, responses=documents([JSON_LINES])
)
def get_job_manifest(around: Around, caller: Reader, job_id: str) -> MadeResponse:
    """Return where the results of every recording come from, a line of JSON each."""
    opened = _open(around, caller, job_id)
    blocks = export_files.manifest_lines(opened.export)
    return _answer(around, opened, blocks, JSON_LINES, "manifest.jsonl")


@router.get("/jobs/{job_id}/labels.zip", response_class=Response, responses=documents([ZIP]))
def get_job_labels(
    around: Around,
    caller: Reader,
    job_id: str,
    form: Annotated[LabelsFormat, Query(alias="format")],
) -> MadeResponse:
    """Return a ZIP with the events of each recording in a file of its own."""
    opened = _open(around, caller, job_id)
    blocks = export_files.labels_zip(opened.export, form, around.settings.scratch_dir)
    return _answer(around, opened, blocks, ZIP, f"{form}.zip")


@router.get("/jobs/{job_id}/artifacts.zip", response_class=Response, responses=documents([ZIP]))
def get_job_artifacts(
    around: Around,
    caller: Reader,
    job_id: str,
    kind: Kinds,
    start: Position = 0,
    stop: Position | None = None,
) -> MadeResponse:
    """Return a ZIP of artifacts of some kinds; of recordings ``start`` to before ``stop``."""
    opened = _open(around, caller, job_id)
    blocks = export_files.artifacts_zip(
        opened.export, set(kind), around.settings.scratch_dir, start, stop
    )
    return _answer(around, opened, blocks, ZIP, "artifacts.zip")


@dataclass(frozen=True)
class _Opened:
    """A job that its owner collects from."""

    export: Export
    name: str
    state: str


def _open(around: Surroundings, caller: Caller, job_id: str) -> _Opened:
    with around.readers() as session:
        job = caller.job(session, job_id)
    return _Opened(Export(around.readers, around.store, job.id), job.name, job.state)


def _table(
    around: Surroundings, caller: Caller, job_id: str, table: Table, form: TableFormat
) -> MadeResponse:
    opened = _open(around, caller, job_id)
    blocks = write(table, opened.export, form)
    media_type = MEDIA_TYPES[EventsFormat(form)]
    return _answer(around, opened, blocks, media_type, f"{table.name}.{form}")


def _answer(
    around: Surroundings, opened: _Opened, blocks: Iterator[bytes], media_type: str, ending: str
) -> MadeResponse:
    answer = made(blocks, media_type, download_name(opened.name, ending), around.exports)
    answer.headers["Soundmill-Job-State"] = opened.state
    return answer
