"""The tables of a whole job: events, recordings, errors, attempts.

Their columns never change with the job. A row is there once what it tells about has been recorded;
a job that has not ended has rows to come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from common.domain import RunState, SourceState, Stage
from common.formats import tables
from common.formats.tables import Column, Kind, Row
from common.tables import Attempt, Recording, Rejection, Source, StageRun
from services.gateway.events import EVENT_COLUMNS, event_rows
from services.gateway.exports import FIRST, PAGE, Export, check_there, heard, walk
from services.gateway.walks import recordings_with_runs

INGEST = "ingest"  # where entries of sources fail, before any stage
REJECTED = "rejected"
BROKEN = (RunState.FAILED, RunState.QUARANTINED)
PIPELINE = [stage.value for stage in Stage]
MEASURED = (  # columns of an attempt, as the database has them
    Column("outcome", Kind.TEXT),
    Column("error_code", Kind.TEXT),
    Column("error_detail", Kind.TEXT),
    Column("worker", Kind.TEXT),
    Column("shard_id", Kind.TEXT),
    Column("claimed_at", Kind.TIME),
    Column("started_at", Kind.TIME),
    Column("finished_at", Kind.TIME),
    Column("queue_wait_s", Kind.NUMBER),
    Column("download_s", Kind.NUMBER),
    Column("decode_s", Kind.NUMBER),
    Column("infer_s", Kind.NUMBER),
    Column("encode_s", Kind.NUMBER),
    Column("upload_s", Kind.NUMBER),
    Column("audio_s", Kind.NUMBER),
    Column("batch_size", Kind.INTEGER),
    Column("device", Kind.TEXT),
    Column("peak_memory_bytes", Kind.INTEGER),
    Column("device_memory_bytes", Kind.INTEGER),
    Column("model_digest", Kind.TEXT),
)


class TableFormat(StrEnum):
    """How a table may be written."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


@dataclass(frozen=True)
class Table:
    """A table of a job: its columns and how its rows are read."""

    name: str
    columns: tuple[Column, ...]
    rows: Callable[[Export], Iterator[Row]]


def write(table: Table, export: Export, form: TableFormat) -> Iterator[bytes]:
    """Yield a table in a format. PyArrow is loaded when Parquet is asked for, not before."""
    rows = table.rows(export)
    match form:
        case TableFormat.JSONL:
            return tables.jsonl(table.columns, rows)
        case TableFormat.CSV:
            return tables.csv_lines(table.columns, rows)
        case TableFormat.PARQUET:
            from common.formats.parquet import parquet

            return parquet(table.columns, rows)


def _event_rows(export: Export) -> Iterator[Row]:
    for one in heard(export):
        if one.found is not None:
            recording = one.recording
            for row in event_rows(one.found):
                yield recording.id, recording.custom_id, recording.name, *row


def _recording_rows(export: Export) -> Iterator[Row]:
    return walk(export, _recordings_with_states)


def _recordings_with_states(session: Session, page: Sequence[Recording]) -> Iterator[Row]:
    ids = [recording.id for recording in page]
    states: dict[str, dict[str, tuple[str, str | None]]] = {id_: {} for id_ in ids}
    for run in session.execute(
        select(StageRun.recording_id, StageRun.stage, StageRun.state, StageRun.error_code).where(
            StageRun.recording_id.in_(ids)
        )
    ):
        states[run.recording_id][run.stage] = run.state, run.error_code
    results = {
        row.recording_id: row.result or {}
        for row in session.execute(
            select(StageRun.recording_id, StageRun.result).where(
                StageRun.recording_id.in_(ids),
                StageRun.stage == Stage.CLASSIFY.value,
                StageRun.state == RunState.SUCCEEDED.value,
            )
        )
    }
    for recording in page:
        result = results.get(recording.id, {})
        yield (
            recording.id,
            recording.position,
            recording.custom_id,
            recording.name,
            recording.labels,
            recording.size_bytes,
            recording.sha256,
            recording.created_at,
            recording.duration_s,
            recording.sample_rate,
            recording.channels,
            *(value for s in PIPELINE for value in states[recording.id].get(s, (None, None))),
            result.get("events"),
            result.get("top"),
            result.get("top_confidence"),
        )


def _error_rows(export: Export) -> Iterator[Row]:
    for source in _sources(export):
        yield from _rejections(export, source.id)
        if source.state == SourceState.FAILED:
            yield (
                INGEST,
                source.state,
                source.error_code,
                source.error_detail,
                source.finished_at,
                None,
                None,
                source.name,
                source.id,
                None,
            )
    yield from _broken_runs(export)


def _sources(export: Export) -> Iterator[Source]:
    """Yield the sources of a job that failed or hold rejections, oldest first."""
    after = ""
    while True:
        query = select(Source).where(
            Source.job_id == export.job_id,
            Source.id > after,
            or_(Source.state == SourceState.FAILED.value, Source.rejected > 0),
        )
        with export.readers() as session:
            page = session.scalars(query.order_by(Source.id).limit(PAGE)).all()
            check_there(session, export.job_id)
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1].id


def _rejections(export: Export, source_id: str) -> Iterator[Row]:
    after = -1
    while True:
        query = select(Rejection).where(Rejection.source_id == source_id, Rejection.entry > after)
        with export.readers() as session:
            page = session.scalars(query.order_by(Rejection.entry).limit(PAGE)).all()
            check_there(session, export.job_id)
        for rejection in page:
            yield (
                INGEST,
                REJECTED,
                rejection.error_code,
                rejection.error_detail,
                rejection.created_at,
                None,
                rejection.custom_id,
                rejection.name,
                rejection.source_id,
                rejection.entry,
            )
        if len(page) < PAGE:
            return
        after = page[-1].entry


def _broken_runs(export: Export) -> Iterator[Row]:
    after = FIRST
    while True:
        with export.readers() as session:
            hit = session.execute(recordings_with_runs(export.job_id, BROKEN, after, PAGE)).all()
            runs = session.execute(
                select(StageRun, Recording)
                .join(Recording, Recording.id == StageRun.recording_id)
                .where(
                    StageRun.recording_id.in_([row.recording_id for row in hit]),
                    StageRun.state.in_([state.value for state in BROKEN]),
                )
            ).all()
            check_there(session, export.job_id)
        in_order = sorted(runs, key=lambda row: (row[0].position, PIPELINE.index(row[0].stage)))
        for run, recording in in_order:
            yield (
                run.stage,
                run.state,
                run.error_code,
                run.error_detail,
                run.finished_at,
                recording.id,
                recording.custom_id,
                recording.name,
                recording.source_id,
                recording.entry,
            )
        if len(hit) < PAGE:
            return
        after = hit[-1].position


def _attempt_rows(export: Export) -> Iterator[Row]:
    return walk(export, _recordings_with_attempts)


def _recordings_with_attempts(session: Session, page: Sequence[Recording]) -> Iterator[Row]:
    recordings = {recording.id: recording for recording in page}
    found = session.execute(
        select(StageRun.recording_id, StageRun.stage, Attempt)
        .join(Attempt, Attempt.stage_run_id == StageRun.id)
        .where(StageRun.recording_id.in_(recordings))
    ).all()
    rows = [(recordings[of], stage, attempt) for of, stage, attempt in found]
    rows.sort(key=lambda row: (row[0].position, PIPELINE.index(row[1]), row[2].number))
    for recording, stage, attempt in rows:
        yield (
            recording.id,
            recording.position,
            recording.custom_id,
            recording.name,
            stage,
            attempt.number,
            *(getattr(attempt, column.name) for column in MEASURED),
        )


EVENTS = Table(
    "events",
    (
        Column("recording_id", Kind.TEXT),
        Column("custom_id", Kind.TEXT),
        Column("name", Kind.TEXT),
        *EVENT_COLUMNS,
    ),
    _event_rows,
)
RECORDINGS = Table(
    "recordings",
    (
        Column("id", Kind.TEXT),
        Column("position", Kind.INTEGER),
        Column("custom_id", Kind.TEXT),
        Column("name", Kind.TEXT),
        Column("labels", Kind.MAP),
        Column("size_bytes", Kind.INTEGER),
        Column("sha256", Kind.TEXT),
        Column("created_at", Kind.TIME),
        Column("duration_s", Kind.NUMBER),
        Column("sample_rate", Kind.INTEGER),
        Column("channels", Kind.INTEGER),
        *(Column(f"{s}{end}", Kind.TEXT) for s in PIPELINE for end in ("_state", "_error")),
        Column("events", Kind.INTEGER),
        Column("top_label", Kind.TEXT),
        Column("top_confidence", Kind.NUMBER),
    ),
    _recording_rows,
)
ERRORS = Table(
    "errors",
    (
        Column("stage", Kind.TEXT),
        Column("state", Kind.TEXT),
        Column("error_code", Kind.TEXT),
        Column("error_detail", Kind.TEXT),
        Column("failed_at", Kind.TIME),
        Column("recording_id", Kind.TEXT),
        Column("custom_id", Kind.TEXT),
        Column("name", Kind.TEXT),
        Column("source_id", Kind.TEXT),
        Column("entry", Kind.INTEGER),
    ),
    _error_rows,
)
ATTEMPTS = Table(
    "attempts",
    (
        Column("recording_id", Kind.TEXT),
        Column("position", Kind.INTEGER),
        Column("custom_id", Kind.TEXT),
        Column("name", Kind.TEXT),
        Column("stage", Kind.TEXT),
        Column("number", Kind.INTEGER),
        *MEASURED,
    ),
    _attempt_rows,
)
