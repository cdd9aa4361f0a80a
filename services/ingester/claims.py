"""What an ingester may do to a Source: claim it, keep it, give it back, end it. A transaction each.

Every change is guarded by the fence: an ingester that lost its lease changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import and_, case, or_, select, update
from sqlalchemy.orm import Session, defer, sessionmaker

from common.db import DbNow
from common.domain import ENDED_STATES, JobEventKind, JobState, Priority, SourceKind, SourceState
from common.errors import SoundmillError, StaleFence
from common.jobs import record_event
from common.settings import Settings
from common.spans import DEADLINE_PASSED
from common.tables import Job, Source

MAX_BACKOFF_S = 60.0
MAX_LOSSES = 20  # leases lost in a row without an entry in between
DETAIL_LENGTH = 2_000
Sessions = sessionmaker[Session]


class JobEnded(SoundmillError):
    """The job of a source was cancelled, has expired or is being deleted."""


@dataclass(frozen=True)
class GivenUp:
    """How a source was cancelled: whether nobody reads it now, and whether nobody ever will."""

    unread: bool
    for_good: bool


@dataclass(frozen=True)
class Hold:
    """A source that this ingester holds, and what it needs to know to read it.

    ``halted`` is set when reading must stop: the job ended, the lease is lost, the process ends.
    """

    source_id: str
    fence: int
    job_id: str
    kind: SourceKind
    name: str
    spec: dict[str, Any]
    entries: int
    recordings: int
    failures: int
    params: dict[str, Any]  # the job's
    stages: tuple[str, ...]
    dry_run: bool
    interactive: bool
    traceparent: str | None = None  # of the request that added it
    halted: threading.Event = field(default_factory=threading.Event, compare=False)


def is_due(session: Session, interactive_only: bool) -> bool:
    """Return whether a source waits to be read. Changes and locks nothing."""
    return session.scalar(_due(interactive_only).limit(1)) is not None


def claim(session: Session, worker: str, settings: Settings, interactive_only: bool) -> Hold | None:
    """Claim the source whose turn it is: interactive jobs first, then who came first."""
    found = session.scalar(
        _due(interactive_only)
        .order_by(case((Job.priority == Priority.INTERACTIVE.value, 0), else_=1), Source.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=Source)
    )
    if found is None:
        return None
    source = session.get_one(Source, found)
    job = session.get_one(Job, source.job_id)
    if source.state == SourceState.RUNNING.value:  # whoever had it is gone
        source.failures += 1
    source.state = SourceState.RUNNING.value
    source.fence += 1
    source.worker = worker
    source.lease_expires_at = (session.scalar(select(DbNow())) or 0.0) + settings.ingest_lease_s
    return Hold(
        source_id=source.id,
        fence=source.fence,
        job_id=source.job_id,
        kind=SourceKind(source.kind),
        name=source.name,
        spec=source.spec,
        entries=source.entries,
        recordings=source.recordings,
        failures=source.failures,
        params=job.params,
        stages=tuple(job.stages),
        dry_run=job.dry_run,
        interactive=job.priority == Priority.INTERACTIVE.value,
        traceparent=source.traceparent,
    )


def renew(session: Session, holds: Iterable[Hold], lease_s: float) -> set[str]:
    """Extend leases; return the ids of the sources that may be read on."""
    held = [and_(Source.id == hold.source_id, Source.fence == hold.fence) for hold in holds]
    if not held:
        return set()
    renewed = session.scalars(
        update(Source)
        .where(Source.state == SourceState.RUNNING.value, or_(*held))
        .values(lease_expires_at=DbNow() + lease_s)
        .returning(Source.id)
        .execution_options(synchronize_session=False)
    ).all()
    wanted = (
        select(Source.id)
        .join(Job, Job.id == Source.job_id)
        .where(Source.id.in_(renewed), Job.deleted_at.is_(None), Job.state.not_in(ENDED_STATES))
    )
    return set(session.scalars(wanted))


def lock(session: Session, hold: Hold) -> tuple[Job, Source]:
    """Return the job and the source with their rows locked.

    Raises:
        JobEnded: what is left of the source is not wanted any more.
        StaleFence: another ingester owns it now.
    """
    job = session.get(Job, hold.job_id, with_for_update=True)
    if job is None or job.deleted_at is not None or job.state in ENDED_STATES:
        raise JobEnded(f"job {hold.job_id} has ended")
    source = session.get_one(
        Source, hold.source_id, with_for_update=True, options=[defer(Source.spec)]
    )  # a list of URLs may be long
    if source.state == SourceState.CANCELLED.value:
        raise JobEnded(f"source {hold.source_id} was cancelled")
    if source.fence != hold.fence or source.state != SourceState.RUNNING.value:
        raise StaleFence(f"source {hold.source_id} is no longer held under {hold.fence}")
    return job, source


def give_back(session: Session, hold: Hold) -> None:
    """Let another ingester go on, at no cost to the source."""
    session.execute(
        _mine(hold)
        .values(state=SourceState.PENDING.value, lease_expires_at=None)
        .execution_options(synchronize_session=False)
    )


def postpone(session: Session, hold: Hold, settings: Settings, failures: int) -> None:
    """Try again later."""
    wait_s = min(MAX_BACKOFF_S, settings.retry_backoff_s * 2.0 ** (failures - 1))
    session.execute(
        _mine(hold)
        .values(
            state=SourceState.PENDING.value,
            lease_expires_at=None,
            failures=failures,
            next_attempt_at=DbNow() + wait_s,
        )
        .execution_options(synchronize_session=False)
    )


def end(session: Session, hold: Hold, left_out: dict[str, int]) -> None:
    """Record that a source is read to its end. Raises as ``lock`` does."""
    job, source = lock(session, hold)
    source.state = SourceState.DONE.value
    source.total = source.entries
    source.finished_at = session.scalar(select(DbNow()))
    source.lease_expires_at = None
    record_event(
        session,
        job,
        JobEventKind.SOURCE_DONE,
        source_id=source.id,
        source_name=source.name,
        recordings=source.recordings,
        rejected=source.rejected,
        left_out=left_out,
    )


def fail(session: Session, hold: Hold, code: str, detail: str) -> None:
    """Record that a source cannot be read any further. Raises as ``lock`` does."""
    job, source = lock(session, hold)
    source.state = SourceState.FAILED.value
    source.finished_at = session.scalar(select(DbNow()))
    source.lease_expires_at = None
    source.error_code = code
    source.error_detail = detail[:DETAIL_LENGTH]
    record_event(
        session,
        job,
        JobEventKind.SOURCE_FAILED,
        source_id=source.id,
        source_name=source.name,
        recordings=source.recordings,
        rejected=source.rejected,
        error_code=code,
        error_detail=source.error_detail,
    )


def cancel(session: Session, hold: Hold) -> GivenUp:
    """Give a source up with its job. What a deadline cut off may go on later."""
    job = session.get(Job, hold.job_id)
    expired = job is not None and job.deleted_at is None and job.state == JobState.EXPIRED.value
    session.execute(
        _mine(hold)
        .values(
            state=SourceState.CANCELLED.value,
            lease_expires_at=None,
            finished_at=DbNow(),
            error_code=DEADLINE_PASSED if expired else None,
        )
        .execution_options(synchronize_session=False)
    )
    state = session.scalar(select(Source.state).where(Source.id == hold.source_id))
    return GivenUp(unread=state in (None, SourceState.CANCELLED.value), for_good=not expired)


def _due(interactive_only: bool) -> Any:
    """Select the ids of sources that wait, or whose ingester is gone."""
    waits = and_(Source.state == SourceState.PENDING.value, Source.next_attempt_at <= DbNow())
    lost = and_(Source.state == SourceState.RUNNING.value, Source.lease_expires_at < DbNow())
    due = select(Source.id).join(Job, Job.id == Source.job_id).where(or_(waits, lost))
    return due.where(Job.priority == Priority.INTERACTIVE.value) if interactive_only else due


def _mine(hold: Hold) -> Any:
    return update(Source).where(
        Source.id == hold.source_id,
        Source.fence == hold.fence,
        Source.state == SourceState.RUNNING.value,
    )
