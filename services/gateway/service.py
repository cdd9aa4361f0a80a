"""What the gateway changes in the database: jobs and recordings in, cancel, retry.

Every public function is one or more whole transactions and returns nothing that is still attached
to one. A job's row is locked before rows of its recordings, and a recording's before those of its
stage runs, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from common.db import Attempt, DbNow, Job, Recording, StageRun, new_id
from common.domain import TERMINAL_STATES, JobEventKind, JobState, Outcome, RunState, with_needs
from common.errors import Conflict
from common.jobs import NewRecording, add_recordings, lock_job, record_event
from common.runs import release_downstream
from services.gateway.access import Caller
from services.gateway.schemas import JobRequest
from services.gateway.walks import recordings_with_runs

BATCH_RECORDINGS = 500  # changed in one transaction when a whole job is

Sessions = sessionmaker[Session]


@dataclass(frozen=True)
class _Batch:
    """Recordings whose runs are changed in one transaction, and the position of the last."""

    recordings: Sequence[str]
    last: int | None


def create_job(sessions: Sessions, caller: Caller, request: JobRequest) -> str:
    """Create an open job; return its id."""
    with sessions.begin() as session:
        return _add_job(session, caller, new_id(), request).id


def submit_job(
    sessions: Sessions,
    caller: Caller,
    job_id: str,
    request: JobRequest,
    uploads: Sequence[NewRecording],
    most: int,
) -> None:
    """Create a closed job with all of its recordings, at once or not at all."""
    with sessions.begin() as session:
        job = _add_job(session, caller, job_id, request)
        add_recordings(session, job, uploads, most)
        _close(session, job)


def check_open(sessions: Sessions, caller: Caller, job_id: str) -> None:
    """Return if the job takes recordings now. Raises NotFound, Conflict."""
    with sessions() as session:
        require_open(caller.job(session, job_id))


def add_recording(
    sessions: Sessions, caller: Caller, job_id: str, upload: NewRecording, most: int
) -> None:
    """Record an upload and its stage runs: the first of them is ready from then on.

    Raises:
        NotFound: no such job.
        Conflict: the job takes no more recordings.
    """
    with sessions.begin() as session:
        job = caller.job(session, job_id, lock=True)
        require_open(job)
        add_recordings(session, job, [upload], most)


def close_job(sessions: Sessions, caller: Caller, job_id: str) -> None:
    """Let a job take no more recordings. Closing it again changes nothing."""
    with sessions.begin() as session:
        job = caller.job(session, job_id, lock=True)
        if job.state == JobState.CANCELLED:
            raise Conflict(f"job {job_id} was cancelled")
        if job.state == JobState.OPEN:
            _close(session, job)


def cancel_job(sessions: Sessions, caller: Caller, job_id: str) -> None:
    """Cancel what has not ended yet. Results that are there stay.

    A run that is being worked on is cut off: its attempt holds a lease on nothing from now on, and
    what it writes is refused. Cancelling again finishes what an interrupted call began.

    Raises:
        NotFound: no such job.
        Conflict: the job has already completed.
    """
    with sessions.begin() as session:
        job = caller.job(session, job_id, lock=True)
        if job.state == JobState.COMPLETED:
            raise Conflict(f"job {job_id} has already completed")
        job.state = JobState.CANCELLED.value  # from here on nothing of it is dispatched
    unfinished = [state for state in RunState if state not in TERMINAL_STATES]
    after: int | None = -1
    while after is not None:
        with sessions.begin() as session:
            lock_job(session, job_id)
            batch = _next_batch(session, job_id, unfinished, after)
            _cancel_runs(session, batch.recordings, unfinished)
            after = batch.last
    with sessions.begin() as session:
        job = lock_job(session, job_id)
        if job.finished_at is None:
            job.finished_at = DbNow()


def retry_job(sessions: Sessions, caller: Caller, job_id: str) -> int:
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
            job = caller.job(session, job_id, lock=True)
            if job.state == JobState.CANCELLED:
                raise Conflict(f"job {job_id} was cancelled")
            batch = _next_batch(session, job_id, lost, after)
            retried += _retry_runs(session, batch.recordings, lost)
            if batch.recordings and job.state == JobState.COMPLETED:
                job.state = JobState.CLOSED.value
                job.finished_at = None
            after = batch.last
    return retried


def _add_job(session: Session, caller: Caller, job_id: str, request: JobRequest) -> Job:
    job = Job(
        id=job_id,
        owner=caller.owner,
        name=request.name,
        state=JobState.OPEN.value,
        priority=request.priority.value,
        stages=[stage.value for stage in with_needs(request.stages)],
        params=request.params.model_dump(mode="json"),
        recordings=0,
        size_bytes=0,
        audio_s_total=0.0,
    )
    session.add(job)
    session.flush()
    record_event(session, job, JobEventKind.CREATED)
    return job


def require_open(job: Job) -> None:
    if job.state != JobState.OPEN:
        raise Conflict(f"job {job.id} is {job.state} and takes no more recordings")


def _close(session: Session, job: Job) -> None:
    job.state = JobState.CLOSED.value
    job.closed_at = DbNow()
    record_event(session, job, JobEventKind.CLOSED)


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
