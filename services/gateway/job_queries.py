"""Jobs as the gateway reads them from the database: one, a page of them, their rejections."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from common.domain import ENDED_STATES, JobState, Priority, RunState
from common.tables import Job, Rejection, Source
from services.gateway import cursors
from services.gateway.access import Caller
from services.gateway.job_schemas import Funnel, JobOut, JobPage, RejectionOut, RejectionPage

FUNNEL = {
    RunState.BLOCKED: "waiting",
    RunState.READY: "waiting",
    RunState.DISPATCHED: "waiting",
    RunState.RUNNING: "running",
    RunState.SUCCEEDED: "succeeded",
    RunState.FAILED: "failed",
    RunState.QUARANTINED: "failed",
    RunState.SKIPPED: "skipped",
    RunState.CANCELLED: "cancelled",
}
COMPUTED = frozenset({"paused", "sources", "funnel", "audio_s_left", "eta_s", "on_track"})


@dataclass(frozen=True)
class JobFilter:
    """Which jobs to list. None lets all through."""

    state: JobState | None = None
    name: str | None = None  # a part of it, in any letter case
    priority: Priority | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


def get_job(session: Session, caller: Caller, job_id: str) -> JobOut:
    """Return a job. Raises NotFound."""
    (job,) = _jobs_out(session, [caller.job(session, job_id)])
    return job


def list_jobs(
    session: Session, caller: Caller, wanted: JobFilter, cursor: str | None, limit: int
) -> JobPage:
    """Return a page of jobs, newest first. Raises Problem when the cursor was not made here."""
    mine = (caller.owns(Job.owner), Job.deleted_at.is_(None))
    query = select(Job).where(*mine).order_by(Job.id.desc()).limit(limit + 1)
    if wanted.state is not None:
        query = query.where(Job.state == wanted.state.value)
    if wanted.name is not None:
        query = query.where(Job.name.icontains(wanted.name, autoescape=True))
    if wanted.priority is not None:
        query = query.where(Job.priority == wanted.priority.value)
    if wanted.created_after is not None:
        query = query.where(Job.created_at > wanted.created_after.timestamp())
    if wanted.created_before is not None:
        query = query.where(Job.created_at < wanted.created_before.timestamp())
    if cursor is not None:
        query = query.where(Job.id < cursors.decode(cursor))
    jobs = session.scalars(query).all()
    page = jobs[:limit]
    return JobPage(
        jobs=_jobs_out(session, page),
        next_cursor=cursors.encode(page[-1].id) if len(jobs) > limit else None,
    )


def list_rejections(
    session: Session,
    caller: Caller,
    job_id: str,
    error_code: str | None,
    cursor: str | None,
    limit: int,
) -> RejectionPage:
    """Return a page of a job's rejections, all or those with a code.

    Raises:
        NotFound: no such job.
        Problem: the cursor was not made here.
    """
    caller.job(session, job_id)
    query = select(Rejection).where(Rejection.job_id == job_id)
    if error_code is not None:
        query = query.where(Rejection.error_code == error_code)
    if cursor is not None:
        query = query.where(Rejection.id > cursors.decode(cursor))
    found = session.scalars(query.order_by(Rejection.id).limit(limit + 1)).all()
    page = found[:limit]
    return RejectionPage(
        rejections=[RejectionOut.model_validate(row) for row in page],
        next_cursor=cursors.encode(page[-1].id) if len(found) > limit else None,
    )


def _jobs_out(session: Session, jobs: Sequence[Job]) -> list[JobOut]:
    sources: dict[str, dict[str, int]] = defaultdict(dict)
    for job_id, state, number in session.execute(
        select(Source.job_id, Source.state, func.count())
        .where(Source.job_id.in_([job.id for job in jobs]))
        .group_by(Source.job_id, Source.state)
    ):
        sources[job_id][state] = number
    return [_job_out(job, sources[job.id]) for job in jobs]


def _job_out(job: Job, sources: Mapping[str, int]) -> JobOut:
    left_s = max(0.0, job.audio_s_total - job.audio_s_done)
    eta_s = _eta_s(job, left_s)
    columns = {name: getattr(job, name) for name in JobOut.model_fields if name not in COMPUTED}
    return JobOut.model_validate(
        {
            **columns,
            "paused": job.paused_at is not None,
            "sources": sources,
            "funnel": {stage: _funnel(job.counts.get(stage, {})) for stage in job.stages},
            "audio_s_left": left_s,
            "eta_s": eta_s,
            "on_track": _on_track(job, eta_s),
        }
    )


def _eta_s(job: Job, left_s: float) -> float | None:
    if job.state in ENDED_STATES or job.counted_at is None:
        return None
    if left_s <= 0.0:
        return 0.0
    return left_s / job.rate if job.rate else None


def _on_track(job: Job, eta_s: float | None) -> bool | None:
    """Return whether a job ends before its deadline; None without one, or while nobody knows."""
    if job.deadline_at is None or job.state == JobState.CANCELLED:
        return None
    if job.state in ENDED_STATES:
        return job.state == JobState.COMPLETED
    if eta_s is None or job.counted_at is None or job.paused_at is not None:
        return None
    return job.counted_at + eta_s <= job.deadline_at


def _funnel(counts: Mapping[str, int]) -> Funnel:
    sums: dict[str, Any] = defaultdict(int)
    for state, number in counts.items():
        sums[FUNNEL[RunState(state)]] += number
    return Funnel(**sums)
