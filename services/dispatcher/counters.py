"""Keeps the counters in the job rows, and ends jobs whose StageRuns have all ended.

Counting is one grouped query per active job, a few times a second at most and less often when it
takes long: never once per file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from common.db import DbNow, Job, StageRun
from common.domain import TERMINAL_STATES, JobState

RATE_WINDOW_S = 20.0


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
    active = [JobState.OPEN.value, JobState.CLOSED.value]
    return list(
        session.scalars(
            select(Job.id)
            .where(
                or_(
                    Job.state.in_(active),
                    Job.counted_at.is_(None),
                    Job.counted_at < Job.finished_at,
                )
            )
            .order_by(Job.id)
        )
    )


def count_job(session: Session, job_id: str, rates: Rates) -> JobState | None:
    """Refresh the counters of one job; return its state, or None if another process counts it."""
    job = session.scalar(select(Job).where(Job.id == job_id).with_for_update(skip_locked=True))
    if job is None:
        return None
    counts: dict[str, dict[str, int]] = {stage: {} for stage in job.stages}
    total_s = done_s = 0.0
    for stage, state, runs, audio_s in session.execute(
        select(StageRun.stage, StageRun.state, func.count(), func.sum(StageRun.audio_s))
        .where(StageRun.job_id == job_id)
        .group_by(StageRun.stage, StageRun.state)
    ):
        counts.setdefault(stage, {})[state] = runs
        total_s += audio_s
        done_s += audio_s if state in TERMINAL_STATES else 0.0
    now = session.scalar(select(DbNow())) or 0.0
    job.counts = counts
    job.audio_s_total = total_s / len(job.stages)
    job.audio_s_done = done_s / len(job.stages)
    job.rate = rates.update(job_id, now, job.audio_s_done)
    job.counted_at = now
    ended = all(state in TERMINAL_STATES for stage in counts.values() for state in stage)
    if job.state == JobState.CLOSED.value and ended:
        job.state = JobState.COMPLETED.value
        job.finished_at = now
    state = JobState(job.state)
    if state in (JobState.COMPLETED, JobState.CANCELLED):
        rates.forget(job_id)
    return state
