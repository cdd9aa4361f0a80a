"""Puts ready StageRuns into shards: bounded per queue, in turns between API keys and jobs (b).

A shard holds a number of seconds of audio rather than a number of files, so that short
recordings travel together and long ones alone.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, distinct, func, select, update
from sqlalchemy.orm import Session

from common.db import DbNow, new_id
from common.domain import JobState, Priority, RunState, Stage
from common.settings import Settings
from common.tables import Job, StageRun

SHARDS_PER_WORKER = 2  # one in work, one waiting
REMEMBERED = 10_000  # jobs and keys whose turn is remembered


@dataclass(frozen=True)
class Shard:
    """StageRuns that go to a worker as one message."""

    id: str
    stage: Stage
    priority: Priority
    job_id: str
    stage_run_ids: tuple[str, ...]
    audio_s: float


@dataclass(frozen=True)
class Waiting:
    """A job with something to dispatch, and the API key it belongs to."""

    job_id: str
    owner: str | None


class Turns:
    """Whose turn it is at the queues of one stage.

    API keys take turns, and so do the jobs of each key: who sends a hundred jobs gets no more of
    the workers than who sends one.
    """

    def __init__(self) -> None:
        self._keys = _Order()
        self._jobs = _Order()

    def next(self, waiting: Collection[Waiting]) -> Waiting:
        """Return who is served next: the one never or longest ago served."""
        return min(
            waiting,
            key=lambda w: (self._keys.rank(w.owner), w.owner or "", self._jobs.rank(w.job_id)),
        )

    def served(self, who: Waiting) -> None:
        """Note that a job, and so its key, had its turn."""
        self._keys.append(who.owner)
        self._jobs.append(who.job_id)


class _Order:
    """What was appended last ranks highest; what never was ranks 0."""

    def __init__(self) -> None:
        self._last: dict[str | None, int] = {}
        self._number = 0

    def rank(self, item: str | None) -> int:
        return self._last.get(item, 0)

    def append(self, item: str | None) -> None:
        self._number += 1
        self._last.pop(item, None)
        self._last[item] = self._number
        if len(self._last) > REMEMBERED:
            del self._last[next(iter(self._last))]


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


def waiting_jobs(session: Session, stage: Stage, priority: Priority) -> list[Waiting]:
    """Return the jobs that have a ready StageRun for this queue, oldest first."""
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
    found = session.execute(
        select(Job.id, Job.owner)
        .where(*_working(), Job.priority == priority.value, ready)
        .order_by(Job.id)
    )
    return [Waiting(job_id, owner) for job_id, owner in found]


def _working() -> tuple[ColumnElement[bool], ...]:
    """Return the conditions under which runs of a job are given to workers."""
    return (
        Job.state.in_([JobState.OPEN.value, JobState.CLOSED.value]),
        Job.paused_at.is_(None),
        Job.deleted_at.is_(None),
    )


def take_shard(
    session: Session, job_id: str, stage: Stage, priority: Priority, settings: Settings
) -> Shard | None:
    """Move the next ready StageRuns of a job into a new shard; None when there are none left.

    Several dispatchers may do this at once: rows another one holds are passed over. The job is kept
    from being paused or cancelled until the shard is recorded.
    """
    kept = select(Job.id).where(Job.id == job_id, *_working())
    if session.scalar(kept.with_for_update(read=True, key_share=True)) is None:
        return None
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
        .values(
            state=RunState.DISPATCHED.value,
            shard_id=shard.id,
            dispatched_at=DbNow(),
            priority=priority.value,  # the job's, which may have been changed
        )
        .execution_options(synchronize_session=False)
    )
    return shard
