"""Puts ready StageRuns into shards: bounded per queue, in turns between jobs (b).

A shard holds a number of seconds of audio rather than a number of files, so that short
recordings travel together and long ones alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import distinct, func, select, update
from sqlalchemy.orm import Session

from common.db import DbNow, Job, StageRun, new_id
from common.domain import JobState, Priority, RunState, Stage
from common.settings import Settings

SHARDS_PER_WORKER = 2  # one in work, one waiting


@dataclass(frozen=True)
class Shard:
    """StageRuns that go to a worker as one message."""

    id: str
    stage: Stage
    priority: Priority
    job_id: str
    stage_run_ids: tuple[str, ...]
    audio_s: float


class Turns:
    """Whose turn it is: a job that was served goes behind all others that wait."""

    def __init__(self) -> None:
        self._served: deque[str] = deque(maxlen=10_000)

    def order(self, job_ids: Sequence[str]) -> list[str]:
        """Return ``job_ids``, those never or longest ago served first."""
        rank = {job_id: place for place, job_id in enumerate(self._served, start=1)}
        return sorted(job_ids, key=lambda job_id: rank.get(job_id, 0))

    def served(self, job_id: str) -> None:
        """Note that the job had its turn."""
        if job_id in self._served:
            self._served.remove(job_id)
        self._served.append(job_id)


def free_places(session: Session, stage: Stage, settings: Settings) -> dict[Priority, int]:
    """Return how many more shards each queue of a stage may hold.

    Enough to keep every worker busy that was seen working, and never fewer than the minimum, so
    that new workers find something; Redis stays small however large the archive is.
    """
    workers = session.scalar(
        select(func.count(distinct(StageRun.worker))).where(
            StageRun.state == RunState.RUNNING.value, StageRun.stage == stage.value
        )
    )
    allowed = max(settings.min_shards_per_queue, SHARDS_PER_WORKER * (workers or 0))
    waiting = dict(
        session.execute(
            select(StageRun.priority, func.count(distinct(StageRun.shard_id)))
            .where(StageRun.state == RunState.DISPATCHED.value, StageRun.stage == stage.value)
            .group_by(StageRun.priority)
        ).all()
    )
    return {p: max(0, allowed - waiting.get(p.value, 0)) for p in Priority}


def waiting_jobs(session: Session, stage: Stage, priority: Priority) -> list[str]:
    """Return the ids of the jobs that have a ready StageRun for this queue."""
    ready = (
        select(StageRun.id)
        .where(
            StageRun.job_id == Job.id,
            StageRun.stage == stage.value,
            StageRun.state == RunState.READY.value,
            StageRun.next_attempt_at <= DbNow(),
        )
        .exists()
    )
    return list(
        session.scalars(
            select(Job.id)
            .where(
                Job.state.in_([JobState.OPEN.value, JobState.CLOSED.value]),
                Job.priority == priority.value,
                ready,
            )
            .order_by(Job.id)
        )
    )


def take_shard(
    session: Session, job_id: str, stage: Stage, priority: Priority, settings: Settings
) -> Shard | None:
    """Move the next ready StageRuns of a job into a new shard; None when there are none left.

    Several dispatchers may do this at once: rows another one holds are passed over.
    """
    candidates = session.execute(
        select(StageRun.id, StageRun.audio_s, StageRun.shard_limit)
        .where(
            StageRun.job_id == job_id,
            StageRun.stage == stage.value,
            StageRun.state == RunState.READY.value,
            StageRun.next_attempt_at <= DbNow(),
        )
        .order_by(StageRun.position)
        .limit(settings.shard_max_runs)
        .with_for_update(skip_locked=True)
    ).all()
    taken: list[str] = []
    audio_s = 0.0
    limit = settings.shard_max_runs
    for run in candidates:
        limit = min(limit, run.shard_limit or limit)
        full = len(taken) + 1 > limit or audio_s + run.audio_s > settings.shard_audio_s
        if taken and full:
            break
        taken.append(run.id)
        audio_s += run.audio_s
    if not taken:
        return None
    shard = Shard(new_id(), stage, priority, job_id, tuple(taken), audio_s)
    session.execute(
        update(StageRun)
        .where(StageRun.id.in_(taken))
        .values(state=RunState.DISPATCHED.value, shard_id=shard.id, dispatched_at=DbNow())
        .execution_options(synchronize_session=False)
    )
    return shard
