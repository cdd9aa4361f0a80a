"""What changes the fate of a whole job: cancel, retry, pause, resume, delete.

Every function answers after a few short transactions, however many recordings the job has. What
takes longer than that, the dispatcher does (``services/dispatcher/lifecycle.py``): it needs no more
than the state of the job's row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.orm import Session, sessionmaker

from common import spans, traces
from common.db import DbNow
from common.domain import (
    ENDED_STATES,
    JobEventKind,
    JobState,
    RunState,
    SourceKind,
    SourceState,
)
from common.errors import Conflict, DeadlinePassed
from common.jobs import record_event
from common.sources import MAY_PASS
from common.tables import Job, Rejection, Source
from services.gateway.access import Caller

BUSY_SPANS = 16  # at most so many are cancelled at once: each stage works on neighbours
BUSY_SPAN_RECORDINGS = 500
RETRIED = (*spans.LOST, RunState.CANCELLED)  # the latter by a deadline: the job was not cancelled
RETRIED_ENTRIES = 1_000  # rejections that become one source, in one transaction

Sessions = sessionmaker[Session]


@dataclass(frozen=True)
class Retried:
    """How much went back to work."""

    runs: int
    entries: int  # of sources, that had not become recordings
    sources: int = 0  # that could not be read any further


def cancel_job(sessions: Sessions, caller: Caller, job_id: str) -> None:
    """Cancel what has not ended yet. Results that are there stay.

    What workers hold or are about to get is cut off before this returns, as far as it is not very
    much; the rest follows within a moment. Cancelling again changes nothing.

    Raises:
        NotFound: no such job.
        Conflict: the job has ended in another way.
    """
    with sessions.begin() as session:
        job = caller.job(session, job_id, lock=True)
        if job.state == JobState.CANCELLED:
            return
        if job.state in ENDED_STATES:
            raise Conflict(f"job {job_id} is {job.state} already")
        job.state = JobState.CANCELLED.value  # from here on nothing of it is dispatched
    _cut_off(sessions, job_id)


def delete_job(sessions: Sessions, caller: Caller, job_id: str) -> None:
    """Make a job disappear, and cancel what has not ended. The dispatcher removes what it holds.

    Raises:
        NotFound: no such job.
    """
    with sessions.begin() as session:
        job = caller.job(session, job_id, lock=True)
        job.deleted_at = DbNow()
        if job.state in ENDED_STATES:
            return
        job.state = JobState.CANCELLED.value
    _cut_off(sessions, job_id)


def pause_job(sessions: Sessions, caller: Caller, job_id: str) -> None:
    """Let nothing more of a job be given to workers. What they hold is done to its end.

    Raises:
        NotFound: no such job.
        Conflict: the job has ended.
    """
    with sessions.begin() as session:
        job = _unended(session, caller, job_id)
        if job.paused_at is None:
            job.paused_at = DbNow()
            record_event(session, job, JobEventKind.PAUSED)
        spans.return_dispatched(session, job_id)


def resume_job(sessions: Sessions, caller: Caller, job_id: str) -> None:
    """Go on with a paused job.

    Raises:
        NotFound: no such job.
        Conflict: the job has ended.
    """
    with sessions.begin() as session:
        job = _unended(session, caller, job_id)
        if job.paused_at is not None:
            job.paused_at = None
            record_event(session, job, JobEventKind.RESUMED)


def retry_job(sessions: Sessions, caller: Caller, job_id: str) -> Retried:
    """Put back to work what did not succeed and may do so now.

    Runs that failed, were quarantined or skipped, or were cancelled by a deadline that has been
    moved since; entries of sources that were rejected, and sources that failed, for a reason that
    may have passed.

    Raises:
        NotFound: no such job.
        Conflict: the job was cancelled.
        DeadlinePassed: its deadline still lies behind.
    """
    runs = entries = 0
    after = -1
    while True:
        with sessions.begin() as session:
            job = _retryable(session, caller, job_id)
            span = spans.next_span(session, job_id, RETRIED, after)
            if span is None:
                break
            spans.lock(session, span)
            runs += spans.retry(session, span, RETRIED)
            _reopen(session, job)
            after = span.stop - 1
    while True:
        with sessions.begin() as session:
            job = _retryable(session, caller, job_id)
            found = _take_rejections(session, job)
            if not found:
                break
            entries += found
            _reopen(session, job)
    with sessions.begin() as session:
        job = _retryable(session, caller, job_id)
        sources = _read_on(
            session, job, SourceState.FAILED, Source.error_code.in_(sorted(MAY_PASS))
        )
        if sources or job.state == JobState.EXPIRED:  # nothing was left to cancel at its deadline
            _reopen(session, job)
        if runs or entries or sources:
            record_event(
                session, job, JobEventKind.RETRIED, runs=runs, entries=entries, sources=sources
            )
    return Retried(runs, entries, sources)


def _cut_off(sessions: Sessions, job_id: str) -> None:
    """Cancel what workers hold or are about to get, up to a bound."""
    after = -1
    for _ in range(BUSY_SPANS):
        with sessions.begin() as session:
            session.get(Job, job_id, with_for_update=True)
            span = spans.next_span(session, job_id, spans.BUSY, after, BUSY_SPAN_RECORDINGS)
            if span is None:
                return
            spans.lock(session, span)
            spans.cancel(session, span, spans.BUSY)
            after = span.stop - 1


def _unended(session: Session, caller: Caller, job_id: str) -> Job:
    job = caller.job(session, job_id, lock=True)
    if job.state in ENDED_STATES:
        raise Conflict(f"job {job_id} is {job.state}")
    return job


def _retryable(session: Session, caller: Caller, job_id: str) -> Job:
    job = caller.job(session, job_id, lock=True)
    if job.state == JobState.CANCELLED:
        raise Conflict(f"job {job_id} was cancelled")
    now = session.scalar(select(DbNow())) or 0.0
    if job.state == JobState.EXPIRED and job.deadline_at is not None and job.deadline_at <= now:
        raise DeadlinePassed(f"the deadline of job {job_id} has passed: set another one first")
    return job


def _reopen(session: Session, job: Job) -> None:
    """Let the dispatcher see an ended job again, and sources that its deadline cut off go on."""
    if job.state not in ENDED_STATES:
        return
    if job.state == JobState.EXPIRED:
        _read_on(session, job, SourceState.CANCELLED, Source.error_code == spans.DEADLINE_PASSED)
    job.state = JobState.CLOSED.value
    job.finished_at = None


def _read_on(session: Session, job: Job, state: SourceState, reason: ColumnElement[bool]) -> int:
    """Let sources that ended in ``state`` for ``reason`` go on at their cursor; return how many."""
    changed: Any = session.execute(
        update(Source)
        .where(Source.job_id == job.id, Source.state == state.value, reason)
        .values(
            state=SourceState.PENDING.value,
            finished_at=None,
            next_attempt_at=0.0,
            failures=0,
            error_code=None,
            error_detail=None,
        )
        .execution_options(synchronize_session=False)
    )
    return int(changed.rowcount)


def _take_rejections(session: Session, job: Job) -> int:
    """Turn the next rejections that may become recordings now into a source; return how many."""
    found: Sequence[Rejection] = session.scalars(
        select(Rejection)
        .where(Rejection.job_id == job.id, Rejection.again.is_not(None))
        .order_by(Rejection.id)
        .limit(RETRIED_ENTRIES)
    ).all()
    if found:
        session.add(
            Source(
                job_id=job.id,
                kind=SourceKind.URLS.value,
                name="entries tried again",
                spec={"items": [rejection.again for rejection in found]},
                total=len(found),
                traceparent=traces.current(),
            )
        )
        session.execute(delete(Rejection).where(Rejection.id.in_([r.id for r in found])))
        job.rejected -= len(found)
    return len(found)
