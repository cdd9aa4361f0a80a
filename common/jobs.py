"""What several services do to a job: add recordings to it, note what happened, ask if it is done.

The caller's transaction holds the job's row (``lock_job``). A job's row is locked before rows of
its sources and recordings, and a recording's before those of its stage runs, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from common import quotas
from common.db import DbNow, new_id
from common.domain import (
    STAGE_NEEDS,
    TERMINAL_STATES,
    JobEventKind,
    RunState,
    SourceState,
    Stage,
)
from common.errors import Conflict, NotFound
from common.tables import Job, JobEvent, Recording, Source, StageRun, Webhook, WebhookDelivery

ASSUMED_BYTES_PER_S = 44_100 * 2 * 2  # of CD audio; replaced once a recording is decoded
UNREAD = (SourceState.PENDING.value, SourceState.RUNNING.value)


@dataclass(frozen=True)
class NewRecording:
    """A recording whose bytes lie in the object store, not yet in the database.

    ``params``, where they differ from the job's, are those of all stages; ``audio_s`` is None where
    nothing is known before decoding.
    """

    id: str
    name: str
    object_key: str
    size_bytes: int
    sha256: str
    audio_s: float | None = None
    custom_id: str | None = None
    labels: dict[str, str] | None = None
    params: dict[str, Any] | None = None
    source_id: str | None = None
    entry: int | None = None
    traceparent: str | None = None  # of the request that brought it


def recording_key(job_id: str, recording_id: str) -> str:
    """Return where the bytes of a recording lie. Its name is no part of it."""
    return f"recordings/{job_id}/{recording_id}"


def lock_job(session: Session, job_id: str) -> Job:
    """Return a job with its row locked. Raises NotFound, also when it is being deleted."""
    job = session.get(Job, job_id, with_for_update=True)
    if job is None or job.deleted_at is not None:
        raise NotFound(f"no job {job_id}")
    return job


def add_recordings(session: Session, job: Job, new: Sequence[NewRecording], most: int) -> None:
    """Record recordings and their stage runs: the first of each is ready from then on.

    Raises:
        Conflict: the job would hold more than ``most``.
        QuotaExceeded: the job's key may not hold as much.
    """
    if job.recordings + len(new) > most:
        raise Conflict(f"a job holds at most {most} recordings")
    lengths_s = [
        recording.size_bytes / ASSUMED_BYTES_PER_S
        if recording.audio_s is None
        else recording.audio_s
        for recording in new
    ]
    size_bytes = sum(recording.size_bytes for recording in new)
    quotas.check_room(session, job.owner, size_bytes=size_bytes, audio_s=sum(lengths_s))
    now = session.scalar(select(DbNow())) or 0.0
    recordings: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for position, (recording, audio_s) in enumerate(
        zip(new, lengths_s, strict=True), start=job.recordings
    ):
        recordings.append(
            {
                "id": recording.id,
                "job_id": job.id,
                "position": position,
                "name": recording.name,
                "object_key": recording.object_key,
                "size_bytes": recording.size_bytes,
                "sha256": recording.sha256,
                "created_at": now,
                "custom_id": recording.custom_id,
                "labels": recording.labels,
                "params": recording.params,
                "source_id": recording.source_id,
                "entry": recording.entry,
                "traceparent": recording.traceparent,
            }
        )
        for stage in map(Stage, job.stages):
            ready = not STAGE_NEEDS[stage]
            runs.append(
                {
                    "id": new_id(),
                    "job_id": job.id,
                    "recording_id": recording.id,
                    "stage": stage.value,
                    "state": (RunState.READY if ready else RunState.BLOCKED).value,
                    "priority": job.priority,
                    "position": position,
                    "audio_s": audio_s,
                    "ready_at": now if ready else None,
                }
            )
    if recordings:
        session.execute(insert(Recording), recordings)
        session.execute(insert(StageRun), runs)
    job.recordings += len(new)
    job.size_bytes += size_bytes
    job.audio_s_total += sum(lengths_s)  # until the dispatcher counts anew


def record_event(session: Session, job: Job, kind: JobEventKind, **data: Any) -> None:
    """Note what happened to a job, and that its owner's webhooks are to be told.

    The job's row is locked, so that the ids of its events follow the order of what happened.
    """
    event = JobEvent(
        job_id=job.id,
        kind=kind.value,
        data={"job_id": job.id, "name": job.name, "state": job.state, **data},
    )
    session.add(event)
    session.flush()
    owned = Webhook.owner.is_(None) if job.owner is None else Webhook.owner == job.owner
    listening = select(Webhook).where(owned, Webhook.disabled_at.is_(None))
    # The lock keeps a webhook from being deleted before its delivery is committed.
    for webhook in session.scalars(listening.with_for_update(read=True, key_share=True)):
        if not webhook.kinds or kind.value in webhook.kinds:
            session.add(WebhookDelivery(webhook_id=webhook.id, event_id=event.id))


def has_work(session: Session, job: Job) -> bool:
    """Return whether a source of the job is unread or a stage run has not ended."""
    unread = select(Source.id).where(Source.job_id == job.id, Source.state.in_(UNREAD))
    if session.scalar(unread.limit(1)) is not None:
        return True
    alive = [state for state in RunState if state not in TERMINAL_STATES]
    for stage in job.stages:
        for state in alive:  # one short look into the index each
            run = select(StageRun.id).where(
                StageRun.job_id == job.id, StageRun.stage == stage, StageRun.state == state.value
            )
            if session.scalar(run.limit(1)) is not None:
                return True
    return False
