"""The tables: jobs, recordings, stage runs, attempts, artifacts, and what is around them.

What may change which state is decided in ``common.runs``, ``common.ends`` and ``common.spans``; the
diagram is in ``docs/architecture.md``. Times are seconds since 1970 on the database's clock.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Double,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from common.db import DbNow, IdType, Json, Seconds, Serial, new_id
from common.domain import (
    DeliveryState,
    JobState,
    Outcome,
    Priority,
    RunState,
    SourceState,
    UploadState,
)
from common.traces import trace_id_of


class Base(DeclarativeBase):
    """Base of all tables."""


class ApiKey(Base):
    """Lets its holder use the gateway. The key itself is not kept, only its hash.

    A limit that is NULL does not limit. Audio and bytes count what its jobs hold now.
    """

    __tablename__ = "api_key"

    id: Mapped[str] = mapped_column(IdType, primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(Text)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]] = mapped_column(Json)
    created_at: Mapped[float] = mapped_column(Seconds, default=DbNow())
    expires_at: Mapped[float | None] = mapped_column(Seconds)
    revoked_at: Mapped[float | None] = mapped_column(Seconds)
    max_jobs: Mapped[int | None] = mapped_column(Integer)  # that have not ended
    max_bytes: Mapped[int | None] = mapped_column(BigInteger)
    max_audio_s: Mapped[float | None] = mapped_column(Double)
    requests_per_minute: Mapped[int | None] = mapped_column(Integer)


class Job(Base):
    """One submission, from one recording to an archive.

    ``owner`` is the id of an API key; NULL is the one user of an embedded stack. A job with
    ``deleted_at`` is gone for everybody but the dispatcher, which removes what it left.
    """

    __tablename__ = "job"
    __table_args__ = (
        Index("ix_job_owner", "owner", "id"),
        Index(
            "ix_job_unfinished",
            "state",
            sqlite_where=text("finished_at IS NULL"),
            postgresql_where=text("finished_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(IdType, primary_key=True, default=new_id)
    owner: Mapped[str | None] = mapped_column(ForeignKey("api_key.id"))
    name: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16), default=JobState.OPEN.value, index=True)
    priority: Mapped[str] = mapped_column(String(16), default=Priority.BULK.value)
    stages: Mapped[list[str]] = mapped_column(Json)
    params: Mapped[dict[str, Any]] = mapped_column(Json, default=dict)
    created_at: Mapped[float] = mapped_column(Seconds, default=DbNow())
    closed_at: Mapped[float | None] = mapped_column(Seconds)
    finished_at: Mapped[float | None] = mapped_column(Seconds)
    paused_at: Mapped[float | None] = mapped_column(Seconds)  # nothing new is dispatched
    deadline_at: Mapped[float | None] = mapped_column(Seconds)  # then it expires
    retention_s: Mapped[float | None] = mapped_column(Double)  # from its end to its deletion
    deleted_at: Mapped[float | None] = mapped_column(Seconds)
    dry_run: Mapped[bool] = mapped_column(Boolean, default=False)  # sources are only looked at
    recordings: Mapped[int] = mapped_column(Integer, default=0)
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0)  # of all recordings
    rejected: Mapped[int] = mapped_column(Integer, default=0)  # entries of sources: see Rejection
    estimate: Mapped[dict[str, Any] | None] = mapped_column(Json)  # of a dry run, so far

    # Counters for polling, kept by the dispatcher. Audio is weighted by stages done: a recording
    # of 60 s with two of its four stages done counts as 30 s.
    counts: Mapped[dict[str, dict[str, int]]] = mapped_column(Json, default=dict)
    errors: Mapped[list[dict[str, Any]]] = mapped_column(Json, default=list)  # by stage and code
    audio_s_total: Mapped[float] = mapped_column(Double, default=0.0)
    audio_s_done: Mapped[float] = mapped_column(Double, default=0.0)
    rate: Mapped[float | None] = mapped_column(Double)  # seconds of audio per second, recent
    counted_at: Mapped[float | None] = mapped_column(Seconds)


class Source(Base):
    """Something that holds many recordings: an archive, a manifest, a prefix, a list of URLs.

    An ingester reads it entry by entry. ``entries`` is its cursor: how many entries are recordings
    or rejections; it moves in the transaction that records them, so none is lost or taken twice.
    """

    __tablename__ = "source"
    __table_args__ = (
        Index("ix_source_job", "job_id", "state"),
        Index("ix_source_state", "state", "next_attempt_at"),
    )

    id: Mapped[str] = mapped_column(IdType, primary_key=True, default=new_id)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"))
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(Text)  # for people
    spec: Mapped[dict[str, Any]] = mapped_column(Json)  # see common/sources.py
    state: Mapped[str] = mapped_column(String(16), default=SourceState.PENDING.value)
    created_at: Mapped[float] = mapped_column(Seconds, default=DbNow())
    finished_at: Mapped[float | None] = mapped_column(Seconds)
    entries: Mapped[int] = mapped_column(Integer, default=0)
    total: Mapped[int | None] = mapped_column(Integer)  # entries in all, where that is known
    traceparent: Mapped[str | None] = mapped_column(String(55))  # of the request that added it
    recordings: Mapped[int] = mapped_column(Integer, default=0)
    rejected: Mapped[int] = mapped_column(Integer, default=0)
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_detail: Mapped[str | None] = mapped_column(Text)

    next_attempt_at: Mapped[float] = mapped_column(Seconds, default=0.0)
    failures: Mapped[int] = mapped_column(Integer, default=0)
    fence: Mapped[int] = mapped_column(Integer, default=0)
    lease_expires_at: Mapped[float | None] = mapped_column(Seconds)
    worker: Mapped[str | None] = mapped_column(Text)


class Rejection(Base):
    """An entry of a Source that did not become a recording, and why."""

    __tablename__ = "rejection"
    __table_args__ = (
        UniqueConstraint("source_id", "entry", name="uq_rejection_entry"),
        Index("ix_rejection_job", "job_id", "id"),
    )

    id: Mapped[str] = mapped_column(IdType, primary_key=True, default=new_id)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"))
    source_id: Mapped[str] = mapped_column(ForeignKey("source.id"))
    entry: Mapped[int] = mapped_column(Integer)
    name: Mapped[str] = mapped_column(Text)
    custom_id: Mapped[str | None] = mapped_column(Text)
    error_code: Mapped[str] = mapped_column(String(64))
    error_detail: Mapped[str] = mapped_column(Text)
    again: Mapped[dict[str, Any] | None] = mapped_column(Json)  # the entry, if a retry may help
    created_at: Mapped[float] = mapped_column(Seconds, default=DbNow())


class Upload(Base):
    """A large file that arrives in parts, straight into the object store where it can be reached.

    ``store_id`` is the store's own name for the multipart upload.
    """

    __tablename__ = "upload"
    __table_args__ = (Index("ix_upload_state", "state", "expires_at"),)

    id: Mapped[str] = mapped_column(IdType, primary_key=True, default=new_id)
    owner: Mapped[str | None] = mapped_column(ForeignKey("api_key.id"))
    name: Mapped[str] = mapped_column(Text)
    object_key: Mapped[str] = mapped_column(Text)
    store_id: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    part_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64))  # as declared, checked when it is read
    state: Mapped[str] = mapped_column(String(16), default=UploadState.OPEN.value)
    created_at: Mapped[float] = mapped_column(Seconds, default=DbNow())
    expires_at: Mapped[float] = mapped_column(Seconds)


class IdempotencyKey(Base):
    """What a request with an ``Idempotency-Key`` made, so that it makes it once.

    The row is written in the transaction that makes the resource. ``owner`` is "" for the one user
    of an embedded stack.
    """

    __tablename__ = "idempotency_key"
    __table_args__ = (Index("ix_idempotency_created", "created_at"),)

    owner: Mapped[str] = mapped_column(IdType, primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))  # of method, path and content
    resource: Mapped[str] = mapped_column(IdType)  # the id of what was made
    created_at: Mapped[float] = mapped_column(Seconds, default=DbNow())


class JobEvent(Base):
    """Something that happened to a job. Written under the job's lock, so ids follow one another."""

    __tablename__ = "job_event"
    __table_args__ = (Index("ix_job_event_job", "job_id", "id"),)

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"))
    kind: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Any]] = mapped_column(Json)
    created_at: Mapped[float] = mapped_column(Seconds, default=DbNow())


class Webhook(Base):
    """An address that wants to be told what happens to its owner's jobs."""

    __tablename__ = "webhook"
    __table_args__ = (Index("ix_webhook_owner", "owner"),)

    id: Mapped[str] = mapped_column(IdType, primary_key=True, default=new_id)
    owner: Mapped[str | None] = mapped_column(ForeignKey("api_key.id"))
    url: Mapped[str] = mapped_column(Text)
    secret: Mapped[str] = mapped_column(Text)  # signs, so it must be kept as it is
    kinds: Mapped[list[str]] = mapped_column(Json)  # of events; empty: all
    created_at: Mapped[float] = mapped_column(Seconds, default=DbNow())
    disabled_at: Mapped[float | None] = mapped_column(Seconds)


class WebhookDelivery(Base):
    """One event on its way to one webhook: the outbox of deliveries."""

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        UniqueConstraint("webhook_id", "event_id", name="uq_delivery"),
        Index("ix_delivery_due", "webhook_id", "state", "next_attempt_at"),
        Index("ix_delivery_event", "event_id"),
    )

    id: Mapped[str] = mapped_column(IdType, primary_key=True, default=new_id)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhook.id"))
    event_id: Mapped[int] = mapped_column(ForeignKey("job_event.id"))
    state: Mapped[str] = mapped_column(String(16), default=DeliveryState.PENDING.value)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    next_attempt_at: Mapped[float] = mapped_column(Seconds, default=0.0)
    status_code: Mapped[int | None] = mapped_column(Integer)  # of the newest answer
    error: Mapped[str | None] = mapped_column(Text)
    delivered_at: Mapped[float | None] = mapped_column(Seconds)


class Garbage(Base):
    """Results under an idempotency key that nobody uses any more, about to be removed.

    A worker that is about to compute the same key waits until the row is gone: see
    ``docs/decisions/0009-deleting-shared-results.md``.
    """

    __tablename__ = "garbage"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[float] = mapped_column(Seconds, default=DbNow())


class Recording(Base):
    """An uploaded audio file. ``position`` is its place in the job, from 0."""

    __tablename__ = "recording"
    __table_args__ = (
        UniqueConstraint("job_id", "position", name="uq_recording_position"),
        Index("uq_recording_custom_id", "job_id", "custom_id", unique=True),
        Index("uq_recording_entry", "source_id", "entry", unique=True),
    )

    id: Mapped[str] = mapped_column(IdType, primary_key=True, default=new_id)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"))
    position: Mapped[int] = mapped_column(Integer)
    name: Mapped[str] = mapped_column(Text)
    object_key: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Seconds, default=DbNow())

    # As its owner described it
    custom_id: Mapped[str | None] = mapped_column(String(255))
    labels: Mapped[dict[str, str] | None] = mapped_column(Json)
    params: Mapped[dict[str, Any] | None] = mapped_column(Json)  # instead of the job's, whole
    source_id: Mapped[str | None] = mapped_column(ForeignKey("source.id"))
    entry: Mapped[int | None] = mapped_column(Integer)  # its place in the source, from 0
    traceparent: Mapped[str | None] = mapped_column(String(55))  # of the request that brought it

    # Known once the segmenter has decoded it
    duration_s: Mapped[float | None] = mapped_column(Double)
    sample_rate: Mapped[int | None] = mapped_column(Integer)
    channels: Mapped[int | None] = mapped_column(Integer)

    @property
    def trace_id(self) -> str | None:
        return trace_id_of(self.traceparent)


class StageRun(Base):
    """One stage on one recording: the unit of work, and the outbox of the dispatcher."""

    __tablename__ = "stage_run"
    __table_args__ = (
        UniqueConstraint("recording_id", "stage", name="uq_stage_run_recording_stage"),
        Index("ix_stage_run_job", "job_id", "stage", "state", "position", "audio_s"),
        Index("ix_stage_run_backlog", "state", "stage", "priority", "audio_s", "ready_at"),
        Index("ix_stage_run_shard", "shard_id"),
        Index(
            "ix_stage_run_key",
            "idempotency_key",
            "state",
            sqlite_where=text("idempotency_key IS NOT NULL"),
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(IdType, primary_key=True, default=new_id)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"))
    recording_id: Mapped[str] = mapped_column(ForeignKey("recording.id"))
    stage: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16), default=RunState.BLOCKED.value)
    priority: Mapped[str] = mapped_column(String(16))  # of the queue it was last put into
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
    device_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)  # of a GPU, at most
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
