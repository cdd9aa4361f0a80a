"""Ends jobs: cancels what is left of one, lets deadlines pass, notes that all is done.

The gateway sets a job's state and cuts off what workers hold; the many runs that nobody works on
are cancelled here, a span of recordings in each short transaction, so that neither dispatching nor
the gateway waits for long. Everything to do is found in the database: a dispatcher that is killed
leaves the rest to the next one.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session, sessionmaker

from common import spans
from common.db import DbNow
from common.domain import JobEventKind, JobState, SourceState
from common.jobs import has_work, record_event
from common.tables import Job, Source
from services.dispatcher import observe

ENDING_S = 0.2  # of one turn, at most and rounded up to whole spans: dispatching goes on meanwhile
ACTIVE = (JobState.OPEN.value, JobState.CLOSED.value)
ENDS = {
    JobState.CANCELLED.value: JobEventKind.CANCELLED,
    JobState.EXPIRED.value: JobEventKind.EXPIRED,
}


def expire_jobs(readers: sessionmaker[Session], sessions: sessionmaker[Session]) -> int:
    """End the jobs whose deadline has passed; return how many. ``end_jobs`` does the rest."""
    due = (Job.state.in_(ACTIVE), Job.deadline_at <= DbNow())
    with readers() as session:
        found = session.scalars(select(Job.id).where(*due)).all()
    for job_id in found:
        with sessions.begin() as session:  # it may have been moved or cancelled meanwhile
            session.execute(
                update(Job)
                .where(Job.id == job_id, *due)
                .values(state=JobState.EXPIRED.value)
                .execution_options(synchronize_session=False)
            )
    return len(found)


def end_jobs(
    readers: sessionmaker[Session], sessions: sessionmaker[Session], for_s: float = ENDING_S
) -> None:
    """Go on cancelling what is left of jobs that were cancelled or have expired, for a while.

    A job with nothing left gets its time of end, and its owner is told.
    """
    started = time.monotonic()
    while time.monotonic() - started < for_s:
        with readers() as session:
            ending = session.scalars(
                select(Job.id)
                .where(Job.state.in_(ENDS), Job.finished_at.is_(None))
                .order_by(Job.id)
            ).all()
        steps = [_end_next(sessions, job_id) for job_id in ending]
        observe.add(observe.JOBS_ENDED, Counter(step.ended for step in steps if step.ended))
        if not any(step.more for step in steps):
            return


def complete_job(session: Session, job: Job) -> bool:
    """End a closed job, whose row is locked, when all of it is done; return whether it was."""
    if job.state != JobState.CLOSED.value or has_work(session, job):
        return False
    job.state = JobState.COMPLETED.value
    job.finished_at = session.scalar(select(DbNow()))
    record_event(session, job, JobEventKind.COMPLETED)
    return True


@dataclass(frozen=True)
class _Step:
    """What one step came to: whether there is more to do at once, and the state that it ended."""

    more: bool = False
    ended: str | None = None


def _end_next(sessions: sessionmaker[Session], job_id: str) -> _Step:
    """Cancel the next span of an ending job."""
    with sessions.begin() as session:
        job = session.scalar(select(Job).where(Job.id == job_id).with_for_update(skip_locked=True))
        if job is None or job.state not in ENDS or job.finished_at is not None:
            return _Step()
        code = spans.DEADLINE_PASSED if job.state == JobState.EXPIRED.value else None
        _cancel_sources(session, job, code)
        for states in (spans.BUSY, spans.UNFINISHED):  # first what workers hold, so that they stop
            span = spans.next_span(session, job_id, states)
            if span is not None:
                spans.lock(session, span)
                spans.cancel(session, span, states, code)
                return _Step(more=True)
        if has_work(session, job):
            return _Step()
        job.finished_at = session.scalar(select(DbNow()))
        if job.deleted_at is None:
            record_event(session, job, ENDS[job.state])
        return _Step(ended=job.state)


def _cancel_sources(session: Session, job: Job, code: str | None) -> None:
    """Cancel the sources that nobody reads. An ingester cancels its own and clears up after it."""
    session.execute(
        update(Source)
        .where(
            Source.job_id == job.id,
            or_(
                Source.state == SourceState.PENDING.value,
                and_(Source.state == SourceState.RUNNING.value, Source.lease_expires_at < DbNow()),
            ),
        )
        .values(
            state=SourceState.CANCELLED.value,
            finished_at=DbNow(),
            lease_expires_at=None,
            error_code=code,
        )
        .execution_options(synchronize_session=False)
    )
