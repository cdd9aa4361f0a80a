"""Keeps the counters and the list of errors in the job rows, and ends jobs that are done.

Counting is one grouped query per active job, a few times a second at most and less often when it
takes long: never once per file. It reads beside the writers; only the result is written under the
job's lock, and only when something has changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session, sessionmaker

from common.db import DbNow
from common.domain import TERMINAL_STATES, JobState, RunState
from common.tables import Job, Recording, Rejection, StageRun
from services.dispatcher import observe
from services.dispatcher.lifecycle import complete_job

RATE_WINDOW_S = 20.0
RATE_OF_NOTHING = 1e-3  # a slower job stands still: its row is not written any more
MOST_ERRORS = 50
INGEST = "ingest"  # stands for the stage of entries that did not become recordings
AT_FAULT = (RunState.FAILED, RunState.QUARANTINED)


@dataclass(frozen=True)
class Counted:
    """What one look at the runs of a job found."""

    counts: dict[str, dict[str, int]]  # runs by stage and state
    errors: list[dict[str, Any]]  # by stage and code, each with its first example
    audio_s_total: float
    audio_s_done: float
    at: float  # the database's clock, before the look

    @property
    def runs(self) -> int:
        return sum(sum(states.values()) for states in self.counts.values())

    @property
    def ended(self) -> bool:
        return all(state in TERMINAL_STATES for states in self.counts.values() for state in states)


@dataclass
class Rates:
    """The recent speed of every active job, as an exponential moving average."""

    _last: dict[str, tuple[float, float, float | None]] = field(default_factory=dict)

    def update(self, job_id: str, now: float, audio_s_done: float) -> float | None:
        """Return seconds of audio done per second, over about the last ``RATE_WINDOW_S``."""
        if job_id not in self._last:
            self._last[job_id] = (now, audio_s_done, None)
            return None
        then, before, rate = self._last[job_id]
        elapsed = now - then
        if elapsed <= 0.0:
            return rate
        newest = max(0.0, audio_s_done - before) / elapsed
        weight = 1.0 if rate is None else 1.0 - math.exp(-elapsed / RATE_WINDOW_S)
        rate = newest if rate is None else rate + weight * (newest - rate)
        self._last[job_id] = (now, audio_s_done, rate)
        return rate

    def forget(self, job_id: str) -> None:
        """Drop a job that has ended."""
        self._last.pop(job_id, None)


def stale_jobs(session: Session) -> list[str]:
    """Return the ids of jobs whose counters may be out of date."""
    stale = or_(
        Job.finished_at.is_(None), Job.counted_at.is_(None), Job.counted_at <= Job.finished_at
    )
    return list(
        session.scalars(select(Job.id).where(stale, Job.deleted_at.is_(None)).order_by(Job.id))
    )


def count_job(
    readers: sessionmaker[Session], sessions: sessionmaker[Session], job_id: str, rates: Rates
) -> None:
    """Refresh the counters of one job, and end it when all of it is done."""
    with readers() as session:
        now = session.scalar(select(DbNow())) or 0.0
        job = session.get(Job, job_id)
        if job is None or job.deleted_at is not None:
            rates.forget(job_id)
            return
        counted = _look(session, job, now)
    rate = rates.update(job_id, counted.at, counted.audio_s_done)
    if rate is not None and rate < RATE_OF_NOTHING:
        rate = 0.0
    ready_to_end = job.state == JobState.CLOSED.value and counted.ended
    if job.finished_at is None and not ready_to_end and _tells(job, counted, rate):
        return
    completed = False
    with sessions.begin() as session:
        locked = session.scalar(
            select(Job).where(Job.id == job_id).with_for_update(skip_locked=True)
        )
        if locked is None:  # another process changes it: the next time
            return
        locked.counts = counted.counts
        locked.errors = counted.errors
        locked.audio_s_total = counted.audio_s_total
        locked.audio_s_done = counted.audio_s_done
        locked.rate = rate
        locked.counted_at = counted.at
        if counted.ended and counted.runs == locked.recordings * len(locked.stages):
            completed = complete_job(session, locked)
        if locked.finished_at is not None:
            rates.forget(job_id)
    if completed:
        observe.JOBS_ENDED.labels(JobState.COMPLETED.value).inc()


def _look(session: Session, job: Job, now: float) -> Counted:
    counts: dict[str, dict[str, int]] = {stage: {} for stage in job.stages}
    total_s = done_s = 0.0
    for stage, state, runs, audio_s in session.execute(
        select(StageRun.stage, StageRun.state, func.count(), func.sum(StageRun.audio_s))
        .where(StageRun.job_id == job.id)
        .group_by(StageRun.stage, StageRun.state)
    ):
        counts.setdefault(stage, {})[state] = runs
        total_s += audio_s
        done_s += audio_s if state in TERMINAL_STATES else 0.0
    return Counted(
        counts=counts,
        errors=_errors(session, job, counts),
        audio_s_total=total_s / len(job.stages),
        audio_s_done=done_s / len(job.stages),
        at=now,
    )


def _tells(job: Job, counted: Counted, rate: float | None) -> bool:
    """Return whether the row tells all of this already."""
    return (
        job.counted_at is not None
        and job.counts == counted.counts
        and job.errors == counted.errors
        and job.audio_s_total == counted.audio_s_total
        and job.rate == rate
    )


def _errors(session: Session, job: Job, counts: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    """Return how often what went wrong. Looked up when there is more of it, and at the end."""
    known: dict[str, int] = {}
    for error in job.errors:
        known[error["stage"]] = known.get(error["stage"], 0) + error["count"]
    at_fault = {
        stage: sum(states.get(state.value, 0) for state in AT_FAULT)
        for stage, states in counts.items()
    }
    at_fault[INGEST] = job.rejected
    ended = all(state in TERMINAL_STATES for states in counts.values() for state in states)
    if not ended and {stage: n for stage, n in at_fault.items() if n} == known:
        return job.errors
    found = [error for stage in job.stages if at_fault[stage] for error in _of(session, job, stage)]
    if job.rejected:
        found += _rejections(session, job)
    return found[:MOST_ERRORS]


def _of(session: Session, job: Job, stage: str) -> list[dict[str, Any]]:
    """Return the errors of one stage, the most frequent first, each with its first recording."""
    here = (
        StageRun.job_id == job.id,
        StageRun.stage == stage,
        StageRun.state.in_([state.value for state in AT_FAULT]),
    )
    groups = session.execute(
        select(StageRun.error_code, func.count(), func.min(StageRun.position))
        .where(*here)
        .group_by(StageRun.error_code)
        .order_by(func.count().desc(), StageRun.error_code)
        .limit(MOST_ERRORS)
    ).all()
    errors = []
    for code, count, position in groups:
        example = session.execute(
            select(StageRun.recording_id, StageRun.error_detail, Recording.name)
            .join(Recording, Recording.id == StageRun.recording_id)
            .where(*here, StageRun.position == position)
        ).first()
        if example is not None:
            errors.append(
                {
                    "stage": stage,
                    "code": code,
                    "count": count,
                    "recording_id": example.recording_id,
                    "name": example.name,
                    "detail": example.error_detail,
                }
            )
    return errors


def _rejections(session: Session, job: Job) -> list[dict[str, Any]]:
    """Return why entries did not become recordings, the most frequent first."""
    groups = session.execute(
        select(Rejection.error_code, func.count(), func.min(Rejection.id))
        .where(Rejection.job_id == job.id)
        .group_by(Rejection.error_code)
        .order_by(func.count().desc(), Rejection.error_code)
        .limit(MOST_ERRORS)
    ).all()
    errors = []
    for code, count, first in groups:
        example = session.get(Rejection, first)
        if example is not None:
            errors.append(
                {
                    "stage": INGEST,
                    "code": code,
                    "count": count,
                    "recording_id": None,
                    "name": example.name,
                    "detail": example.error_detail,
                }
            )
    return errors
