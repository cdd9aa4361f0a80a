"""What the gateway changes in the database: jobs and recordings in, a job's own settings.

Every public function is one or more whole transactions and returns nothing that is still attached
to one. A job's row is locked before rows of its recordings, as everywhere. What cancels, retries,
pauses or deletes a whole job is in ``changes``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from http import HTTPStatus
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from common import quotas
from common.db import DbNow, new_id
from common.domain import JobEventKind, JobState, with_needs
from common.errors import Conflict
from common.jobs import NewRecording, add_recordings, record_event
from common.params import merge_params
from common.tables import Job, Recording
from services.gateway.access import Caller
from services.gateway.idempotency import Once
from services.gateway.job_schemas import MAX_RETENTION_S, JobChange, JobRequest
from services.gateway.problems import Problem, invalid

Sessions = sessionmaker[Session]


@dataclass(frozen=True)
class Described:
    """What the owner says about one recording. ``params`` are changes to those of the job."""

    custom_id: str | None = None
    labels: dict[str, str] | None = None
    params: dict[str, Any] | None = None

    def content(self) -> dict[str, Any]:
        """Return it as JSON, for ``Once.claim``."""
        return {"custom_id": self.custom_id, "labels": self.labels, "params": self.params}


def create_job(sessions: Sessions, caller: Caller, once: Once, request: JobRequest) -> str:
    """Create an open job; return its id."""
    with sessions.begin() as session:
        job_id = new_id()
        once.claim(session, job_id, request.content())
        return _add_job(session, caller, job_id, request).id


def submit_job(
    sessions: Sessions,
    caller: Caller,
    once: Once,
    job_id: str,
    request: JobRequest,
    uploads: Sequence[NewRecording],
    most: int,
) -> None:
    """Create a closed job with all of its recordings, at once or not at all."""
    files = [[upload.name, upload.sha256] for upload in uploads]
    with sessions.begin() as session:
        once.claim(session, job_id, {**request.content(), "files": files})
        job = _add_job(session, caller, job_id, request)
        _require_wet(job)
        add_recordings(session, job, uploads, most)
        _close(session, job)


def check_recording(
    sessions: Sessions, caller: Caller, once: Once, job_id: str, described: Described
) -> None:
    """Return if the job takes such a recording now, or if the same request has been followed.

    Raises:
        NotFound, Conflict, ParametersInvalid, Problem: see ``add_recording``.
    """
    with sessions() as session:
        job = caller.job(session, job_id)
        if not once.known(session):
            _check_described(session, job, described)


def add_recording(
    sessions: Sessions,
    caller: Caller,
    once: Once,
    job_id: str,
    upload: NewRecording,
    described: Described,
    most: int,
) -> None:
    """Record an upload and its stage runs: the first of them is ready from then on.

    Raises:
        NotFound: no such job.
        Conflict: the job takes no more recordings.
        ParametersInvalid: the recording's own parameters do not fit.
        Problem: the custom id is taken, or the job is a dry run.
        Replayed: see ``Once.claim``.
    """
    content = {"name": upload.name, "sha256": upload.sha256, **described.content()}
    with sessions.begin() as session:
        job = caller.job(session, job_id, lock=True)
        once.claim(session, upload.id, content)
        params = _check_described(session, job, described)
        recording = replace(
            upload, custom_id=described.custom_id, labels=described.labels, params=params
        )
        add_recordings(session, job, [recording], most)


def close_job(sessions: Sessions, caller: Caller, job_id: str) -> None:
    """Let a job take no more recordings and sources. Closing it again changes nothing."""
    with sessions.begin() as session:
        job = caller.job(session, job_id, lock=True)
        if job.state in (JobState.CANCELLED, JobState.EXPIRED):
            raise Conflict(f"job {job_id} is {job.state}")
        if job.state == JobState.OPEN:
            _close(session, job)


def change_job(sessions: Sessions, caller: Caller, job_id: str, change: JobChange) -> None:
    """Change what a job is called, how urgent it is and how long it may take and stay.

    Raises:
        NotFound: no such job.
        Problem: the deadline lies in the past.
    """
    asked = change.model_fields_set
    with sessions.begin() as session:
        job = caller.job(session, job_id, lock=True)
        if "name" in asked:
            job.name = change.name
        if "retention_s" in asked:
            job.retention_s = change.retention_s
        if "deadline_at" in asked:
            job.deadline_at = _deadline(session, change.deadline_at)
        if "priority" in asked:
            job.priority = change.priority.value  # its runs follow when they are dispatched


def require_open(job: Job) -> None:
    """Return if the job takes recordings and sources. Raises Conflict."""
    if job.state != JobState.OPEN:
        raise Conflict(f"job {job.id} is {job.state} and takes no more recordings")


def _add_job(session: Session, caller: Caller, job_id: str, request: JobRequest) -> Job:
    quotas.check_room(session, caller.owner, jobs=1)
    job = Job(
        id=job_id,
        owner=caller.owner,
        name=request.name,
        state=JobState.OPEN.value,
        priority=request.priority.value,
        stages=[stage.value for stage in with_needs(request.stages)],
        params=request.params.model_dump(mode="json"),
        deadline_at=_deadline(session, request.deadline_at),
        retention_s=request.retention_s,
        dry_run=request.dry_run,
        recordings=0,
        size_bytes=0,
        audio_s_total=0.0,
    )
    session.add(job)
    session.flush()
    record_event(session, job, JobEventKind.CREATED)
    return job


def _deadline(session: Session, at: datetime | None) -> float | None:
    if at is None:
        return None
    now = session.scalar(select(DbNow())) or 0.0
    if not now < at.timestamp() < now + MAX_RETENTION_S:
        raise invalid("deadline_invalid", "deadline_at must lie ahead, by less than a century.")
    return at.timestamp()


def _check_described(session: Session, job: Job, described: Described) -> dict[str, Any] | None:
    """Return the parameters of a recording that the job takes, None where they are the job's."""
    require_open(job)
    _require_wet(job)
    if described.custom_id is not None:
        taken = select(Recording.id).where(
            Recording.job_id == job.id, Recording.custom_id == described.custom_id
        )
        if session.scalar(taken) is not None:
            raise Problem(
                HTTPStatus.CONFLICT,
                "custom_id_taken",
                "Another recording of this job has this custom_id.",
            )
    return None if described.params is None else merge_params(job.params, described.params)


def _require_wet(job: Job) -> None:
    if job.dry_run:
        raise invalid("dry_run", "A dry run takes sources, whose files it only looks at.")


def _close(session: Session, job: Job) -> None:
    job.state = JobState.CLOSED.value
    job.closed_at = DbNow()
    record_event(session, job, JobEventKind.CLOSED)
