"""The database: the truth about jobs, recordings, stage runs, attempts and artifacts.

Owns the tables, the engine for SQLite (WAL) and PostgreSQL, and the database's clock. What may
change which state lives in ``common.runs``; the diagram is in ``docs/architecture.md``.

Times are seconds since 1970 on the database's clock (``DbNow``), so that leases do not depend on
the clocks of the machines around it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Double,
    Engine,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    create_engine,
    event,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import make_url
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.sql.expression import FunctionElement

from common.domain import JobState, Outcome, Priority, RunState
from common.settings import Settings

ID_LENGTH = 32
SQLITE_BUSY_TIMEOUT_S = 60
READ_ONLY = {"read_only": True}

Json = JSON().with_variant(JSONB(), "postgresql")
Seconds = Double
IdType = String(ID_LENGTH)


def new_id() -> str:
    """Return a new id: 48 bits of milliseconds and 80 random bits, as 32 hexadecimal digits.

    Ids made later sort later, which keeps index pages warm and gives lists a natural order.
    """
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"


class DbNow(FunctionElement[float]):
    """The database's own clock, in seconds since 1970."""

    type = Double()
    inherit_cache = True


@compiles(DbNow, "postgresql")
def _now_postgresql(element: DbNow, compiler: Any, **options: Any) -> str:
    return "EXTRACT(EPOCH FROM clock_timestamp())::double precision"


@compiles(DbNow, "sqlite")
def _now_sqlite(element: DbNow, compiler: Any, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


class Base(DeclarativeBase):
    """Base of all tables."""


class Job(Base):
    """One submission, from one recording to an archive."""

    __tablename__ = "job"

    id: Mapped[str] = mapped_column(IdType, primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16), default=JobState.OPEN.value, index=True)
    priority: Mapped[str] = mapped_column(String(16), default=Priority.BULK.value)
    stages: Mapped[list[str]] = mapped_column(Json)
    params: Mapped[dict[str, Any]] = mapped_column(Json, default=dict)
    created_at: Mapped[float] = mapped_column(Seconds, default=DbNow())
    closed_at: Mapped[float | None] = mapped_column(Seconds)
    finished_at: Mapped[float | None] = mapped_column(Seconds)
    recordings: Mapped[int] = mapped_column(Integer, default=0)

    # Counters for polling, kept by the dispatcher. Audio is weighted by stages done: a recording
    # of 60 s with two of its four stages done counts as 30 s.
    counts: Mapped[dict[str, dict[str, int]]] = mapped_column(Json, default=dict)
    audio_s_total: Mapped[float] = mapped_column(Double, default=0.0)
    audio_s_done: Mapped[float] = mapped_column(Double, default=0.0)
    rate: Mapped[float | None] = mapped_column(Double)  # seconds of audio per second, recent
    counted_at: Mapped[float | None] = mapped_column(Seconds)


class Recording(Base):
    """An uploaded audio file. ``position`` is its place in the job, from 0."""

    __tablename__ = "recording"
    __table_args__ = (UniqueConstraint("job_id", "position", name="uq_recording_position"),)

    id: Mapped[str] = mapped_column(IdType, primary_key=True, default=new_id)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"))
    position: Mapped[int] = mapped_column(Integer)
    name: Mapped[str] = mapped_column(Text)
    object_key: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Seconds, default=DbNow())

    # Known once the segmenter has decoded it
    duration_s: Mapped[float | None] = mapped_column(Double)
    sample_rate: Mapped[int | None] = mapped_column(Integer)
    channels: Mapped[int | None] = mapped_column(Integer)


class StageRun(Base):
    """One stage on one recording: the unit of work, and the outbox of the dispatcher."""

    __tablename__ = "stage_run"
    __table_args__ = (
        UniqueConstraint("recording_id", "stage", name="uq_stage_run_recording_stage"),
        Index("ix_stage_run_job", "job_id", "stage", "state", "position"),
        Index("ix_stage_run_queue", "state", "stage", "priority"),
        Index("ix_stage_run_shard", "shard_id"),
        Index("ix_stage_run_key", "idempotency_key"),
    )

    id: Mapped[str] = mapped_column(IdType, primary_key=True, default=new_id)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"))
    recording_id: Mapped[str] = mapped_column(ForeignKey("recording.id"))
    stage: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16), default=RunState.BLOCKED.value)
    priority: Mapped[str] = mapped_column(String(16))
    position: Mapped[int] = mapped_column(Integer)
    audio_s: Mapped[float] = mapped_column(Double)  # estimated from bytes until decoded

    # Dispatch
    next_attempt_at: Mapped[float] = mapped_column(Seconds, default=0.0)
    shard_id: Mapped[str | None] = mapped_column(IdType)
    shard_limit: Mapped[int | None] = mapped_column(Integer)  # most runs its next shard may hold
    ready_at: Mapped[float | None] = mapped_column(Seconds)
    dispatched_at: Mapped[float | None] = mapped_column(Seconds)

    # The claim: who runs it, until when, under which fence
    fence: Mapped[int] = mapped_column(Integer, default=0)  # number of the newest attempt
    lease_expires_at: Mapped[float | None] = mapped_column(Seconds)
    worker: Mapped[str | None] = mapped_column(Text)
    failures: Mapped[int] = mapped_column(Integer, default=0)  # transient failures so far
    crashes: Mapped[int] = mapped_column(Integer, default=0)  # times it was alone in a lost shard

    # The end
    finished_at: Mapped[float | None] = mapped_column(Seconds)
    idempotency_key: Mapped[str | None] = mapped_column(String(64))
    result: Mapped[dict[str, Any] | None] = mapped_column(Json)
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_detail: Mapped[str | None] = mapped_column(Text)


class Attempt(Base):
    """One execution of a StageRun, with what it measured."""

    __tablename__ = "attempt"
    __table_args__ = (UniqueConstraint("stage_run_id", "number", name="uq_attempt_number"),)

    id: Mapped[str] = mapped_column(IdType, primary_key=True, default=new_id)
    stage_run_id: Mapped[str] = mapped_column(ForeignKey("stage_run.id"))
    number: Mapped[int] = mapped_column(Integer)  # the fence it held
    worker: Mapped[str] = mapped_column(Text)
    shard_id: Mapped[str] = mapped_column(IdType)
    outcome: Mapped[str] = mapped_column(String(16), default=Outcome.RUNNING.value)
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_detail: Mapped[str | None] = mapped_column(Text)
    claimed_at: Mapped[float] = mapped_column(Seconds)
    started_at: Mapped[float | None] = mapped_column(Seconds)
    finished_at: Mapped[float | None] = mapped_column(Seconds)

    queue_wait_s: Mapped[float | None] = mapped_column(Double)
    download_s: Mapped[float | None] = mapped_column(Double)
    decode_s: Mapped[float | None] = mapped_column(Double)
    infer_s: Mapped[float | None] = mapped_column(Double)
    encode_s: Mapped[float | None] = mapped_column(Double)
    upload_s: Mapped[float | None] = mapped_column(Double)
    audio_s: Mapped[float | None] = mapped_column(Double)
    batch_size: Mapped[int | None] = mapped_column(Integer)
    device: Mapped[str | None] = mapped_column(String(32))
    peak_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    model_digest: Mapped[str | None] = mapped_column(String(64))


class Artifact(Base):
    """A stored output of a StageRun. Several rows may share an object key (reused results)."""

    __tablename__ = "artifact"
    __table_args__ = (
        UniqueConstraint("stage_run_id", "kind", name="uq_artifact_kind"),
        Index("ix_artifact_recording", "recording_id"),
    )

    id: Mapped[str] = mapped_column(IdType, primary_key=True, default=new_id)
    stage_run_id: Mapped[str] = mapped_column(ForeignKey("stage_run.id"))
    recording_id: Mapped[str] = mapped_column(ForeignKey("recording.id"))
    kind: Mapped[str] = mapped_column(String(16))
    object_key: Mapped[str] = mapped_column(Text)
    media_type: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Seconds, default=DbNow())


def make_engine(settings: Settings) -> Engine:
    """Return an engine for SQLite or PostgreSQL. Connects to nothing yet."""
    url = make_url(settings.database_url.get_secret_value())
    if url.get_backend_name() == "sqlite":
        if url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(url, connect_args={"timeout": SQLITE_BUSY_TIMEOUT_S})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return create_engine(url, pool_pre_ping=True, pool_size=5, max_overflow=10)


def make_sessions(engine: Engine) -> sessionmaker[Session]:
    """Return the session factory. ``with sessions.begin() as session`` is one transaction."""
    return sessionmaker(engine, expire_on_commit=False)


def make_readers(engine: Engine) -> sessionmaker[Session]:
    """Return a factory of sessions that only read: they never wait for a writer."""
    return sessionmaker(engine.execution_options(**READ_ONLY), expire_on_commit=False)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver must not begin transactions by itself: see _begin_sqlite.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # what was acknowledged survives a power cut
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Any) -> None:
    # A transaction that reads first and writes later fails at once ("database is locked") when
    # another wrote in between; taking the write lock first waits for it instead.
    readonly = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")
