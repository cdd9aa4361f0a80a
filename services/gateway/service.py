"""What the gateway changes in the database: jobs and recordings in.

Every public function is one or more whole transactions and returns nothing that is still attached
to one. A job's row is locked before rows of its recordings, as everywhere. What cancels, retries,
pauses or deletes a whole job is in ``changes``.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session, sessionmaker

from common.db import DbNow, Job, new_id
from common.domain import JobEventKind, JobState, with_needs
from common.errors import Conflict
from common.jobs import NewRecording, add_recordings, record_event
from services.gateway.access import Caller
from services.gateway.schemas import JobRequest

Sessions = sessionmaker[Session]


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
