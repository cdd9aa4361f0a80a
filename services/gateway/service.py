"""What the gateway changes in the database: jobs and recordings in, cancel, retry.

Every public function is one or more whole transactions and returns nothing that is still attached
to one. A job's row is locked before rows of its recordings, and a recording's before those of its
stage runs, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session, sessionmaker

from common.db import Attempt, DbNow, Job, Recording, StageRun, new_id
from common.domain import (
    STAGE_NEEDS,
    TERMINAL_STATES,
    JobState,
    Outcome,
    RunState,
    Stage,
    with_needs,
)
from common.errors import Conflict, NotFound
from common.runs import release_downstream
from common.storage import StoredObject
from services.gateway.schemas import JobRequest
from services.gateway.walks import recordings_with_runs

ASSUMED_BYTES_PER_S = 44_100 * 2 * 2  # of CD audio; replaced once a recording is decoded
BATCH_RECORDINGS = 500  # changed in one transaction when a whole job is

Sessions = sessionmaker[Session]


@dataclass(frozen=True)
class Upload:
    """A recording whose bytes lie in the object store, not yet in the database."""

    recording_id: str
    name: str
    stored: StoredObject


@dataclass(frozen=True)
class _Batch:
    """Recordings whose runs are changed in one transaction, and the position of the last."""

    recordings: Sequence[str]
    last: int | None


def object_key(job_id: str, recording_id: str) -> str:
    """Return where the bytes of a recording lie. Its name is no part of it."""
    return f"recordings/{job_id}/{recording_id}"


def create_job(sessions: Sessions, request: JobRequest) -> str:
    """Create an open job; return its id."""
    with sessions.begin() as session:
        return _add_job(session, new_id(), request).id


def submit_job(
    sessions: Sessions, job_id: str, request: JobRequest, uploads: Sequence[Upload], most: int
) -> None:
    """Create a closed job with all of its recordings, at once or not at all."""
    with sessions.begin() as session:
        job = _add_job(session, job_id, request)
        _add_recordings(session, job, uploads, most)
        _close(job)


def check_open(sessions: Sessions, job_id: str) -> None:
    """Return if the job takes recordings now. Raises NotFound, Conflict."""
    with sessions() as session:
        _require_open(_get_job(session, job_id))


def add_recording(sessions: Sessions, job_id: str, upload: Upload, most: int) -> None:
    """Record an upload and its stage runs: the first of them is ready from then on.

    Raises:
        NotFound: no such job.
        Conflict: the job takes no more recordings.
    """
    with sessions.begin() as session:
        job = _lock_job(session, job_id)
        _require_open(job)
        _add_recordings(session, job, [upload], most)


def close_job(sessions: Sessions, job_id: str) -> None:
    """Let a job take no more recordings. Closing it again changes nothing."""
    with sessions.begin() as session:
        job = _lock_job(session, job_id)
        if job.state == JobState.CANCELLED:
            raise Conflict(f"job {job_id} was cancelled")
        if job.state == JobState.OPEN:
            _close(job)


def cancel_job(sessions: Sessions, job_id: str) -> None:
    """Cancel what has not ended yet. Results that are there stay.

    A run that is being worked on is cut off: its attempt holds a lease on nothing from now on, and
    what it writes is refused. Cancelling again finishes what an interrupted call began.

    Raises:
        NotFound: no such job.
        Conflict: the job has already completed.
    """
    with sessions.begin() as session:
        job = _lock_job(session, job_id)
        if job.state == JobState.COMPLETED:
            raise Conflict(f"job {job_id} has already completed")
        job.state = JobState.CANCELLED.value  # from here on nothing of it is dispatched
    unfinished = [state for state in RunState if state not in TERMINAL_STATES]
    after: int | None = -1
    while after is not None:
        with sessions.begin() as session:
            _lock_job(session, job_id)
            batch = _next_batch(session, job_id, unfinished, after)
            _cancel_runs(session, batch.recordings, unfinished)
            after = batch.last
    with sessions.begin() as session:
        job = _lock_job(session, job_id)
        if job.finished_at is None:
            job.finished_at = DbNow()


def retry_job(sessions: Sessions, job_id: str) -> int:
    """Put runs that failed, were quarantined or skipped back to work; return how many.

    Their counts of failures and crashes start anew. A run that was quarantined stays alone in its
    shard.

    Raises:
        NotFound: no such job.
        Conflict: the job was cancelled.
    """
    lost = [RunState.FAILED, RunState.QUARANTINED, RunState.SKIPPED]
    retried = 0
    after: int | None = -1
    while after is not None:
        with sessions.begin() as session:
            job = _lock_job(session, job_id)
            if job.state == JobState.CANCELLED:
                raise Conflict(f"job {job_id} was cancelled")
            batch = _next_batch(session, job_id, lost, after)
            retried += _retry_runs(session, batch.recordings, lost)
            if batch.recordings and job.state == JobState.COMPLETED:
                job.state = JobState.CLOSED.value
                job.finished_at = None
            after = batch.last
    return retried


def _add_job(session: Session, job_id: str, request: JobRequest) -> Job:
    job = Job(
        id=job_id,
        name=request.name,
        state=JobState.OPEN.value,
        priority=request.priority.value,
        stages=[stage.value for stage in with_needs(request.stages)],
        params=request.params.model_dump(mode="json"),
        recordings=0,
    )
    session.add(job)
    session.flush()
    return job


def _add_recordings(session: Session, job: Job, uploads: Sequence[Upload], most: int) -> None:
    if job.recordings + len(uploads) > most:
        raise Conflict(f"a job holds at most {most} recordings")
    now = session.scalar(select(DbNow())) or 0.0
    recordings: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for position, upload in enumerate(uploads, start=job.recordings):
        recordings.append(
            {
                "id": upload.recording_id,
                "job_id": job.id,
                "position": position,
                "name": upload.name,
                "object_key": upload.stored.key,
                "size_bytes": upload.stored.size_bytes,
                "sha256": upload.stored.sha256,
                "created_at": now,
            }
        )
        for stage in map(Stage, job.stages):
            ready = not STAGE_NEEDS[stage]
            runs.append(
                {
                    "id": new_id(),
                    "job_id": job.id,
                    "recording_id": upload.recording_id,
                    "stage": stage.value,
                    "state": (RunState.READY if ready else RunState.BLOCKED).value,
                    "priority": job.priority,
                    "position": position,
                    "audio_s": upload.stored.size_bytes / ASSUMED_BYTES_PER_S,
                    "ready_at": now if ready else None,
                }
            )
    session.execute(insert(Recording), recordings)
    session.execute(insert(StageRun), runs)
    job.recordings += len(uploads)


def _get_job(session: Session, job_id: str) -> Job:
    job = session.get(Job, job_id)
    if job is None:
        raise NotFound(f"no job {job_id}")
    return job


def _lock_job(session: Session, job_id: str) -> Job:
    job = session.get(Job, job_id, with_for_update=True)
    if job is None:
        raise NotFound(f"no job {job_id}")
    return job


def _require_open(job: Job) -> None:
    if job.state != JobState.OPEN:
        raise Conflict(f"job {job.id} is {job.state} and takes no more recordings")


def _close(job: Job) -> None:
    job.state = JobState.CLOSED.value
    job.closed_at = DbNow()


def _next_batch(session: Session, job_id: str, states: Sequence[RunState], after: int) -> _Batch:
    """Return the next recordings that have a run in one of ``states``, their rows locked."""
    found = session.execute(recordings_with_runs(job_id, states, after, BATCH_RECORDINGS)).all()
    locked = session.scalars(
        select(Recording.id)
        .where(Recording.id.in_([row.recording_id for row in found]))
        .order_by(Recording.id)
        .with_for_update()
    ).all()
    return _Batch(locked, found[-1].position if found else None)


def _cancel_runs(session: Session, recordings: Sequence[str], states: Sequence[RunState]) -> None:
    cancelled = session.scalars(
        update(StageRun)
        .where(StageRun.recording_id.in_(recordings), StageRun.state.in_([s.value for s in states]))
        .values(
            state=RunState.CANCELLED.value,
            finished_at=DbNow(),
            lease_expires_at=None,
            shard_id=None,
        )
        .returning(StageRun.id)
        .execution_options(synchronize_session=False)
    ).all()
    session.execute(
        update(Attempt)
        .where(Attempt.stage_run_id.in_(cancelled), Attempt.outcome == Outcome.RUNNING.value)
        .values(outcome=Outcome.CANCELLED.value, finished_at=DbNow())
        .execution_options(synchronize_session=False)
    )


def _retry_runs(session: Session, recordings: Sequence[str], states: Sequence[RunState]) -> int:
    """Block all lost runs of these recordings, then release those that have what they need."""
    alone = StageRun.state == RunState.QUARANTINED.value
    session.execute(
        update(StageRun)
        .where(StageRun.recording_id.in_(recordings), alone)
        .values(shard_limit=1)
        .execution_options(synchronize_session=False)
    )
    changed = session.execute(
        update(StageRun)
        .where(StageRun.recording_id.in_(recordings), StageRun.state.in_([s.value for s in states]))
        .values(
            state=RunState.BLOCKED.value,
            next_attempt_at=0.0,
            shard_id=None,
            ready_at=None,
            lease_expires_at=None,
            worker=None,
            failures=0,
            crashes=0,
            finished_at=None,
            error_code=None,
            error_detail=None,
        )
        .returning(StageRun.id)
        .execution_options(synchronize_session=False)
    ).all()
    for recording_id in recordings:
        release_downstream(session, recording_id)
    return len(changed)
