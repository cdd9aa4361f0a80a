"""Takes back what was lost: expired leases, messages that Redis no longer has (e, f).

A worker that dies takes its shard's leases with it. The shard comes back in halves until the
recording that kills workers is alone; alone and killing again, it is quarantined.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import exists, or_, select, update
from sqlalchemy.orm import Session

from common.db import DbNow
from common.domain import Outcome, Priority, RunState, Stage, queue_name
from common.release import release_downstream
from common.runs import halved
from common.settings import Settings
from common.tables import Attempt, Recording, StageRun

MOST_AT_ONCE = 1_000
LOST = "worker_lost"


@dataclass(frozen=True)
class TakenBack:
    """How many runs of each stage lost their lease, and how many of them were quarantined."""

    expired: Counter[str]
    quarantined: Counter[str]


class EmptyQueues:
    """Since when each queue has been seen empty, on this process's monotonic clock."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def longer_than(self, lengths: Mapping[str, int], seconds: float) -> set[str]:
        """Take a new look at the queues; return those empty for at least ``seconds``."""
        now = time.monotonic()
        self._since = {
            name: self._since.get(name, now) for name, length in lengths.items() if not length
        }
        return {name for name, since in self._since.items() if now - since >= seconds}


def anything_lost(session: Session, empty: set[str], settings: Settings) -> bool:
    """Return whether there may be something to take back, without locking anything."""
    running = StageRun.state == RunState.RUNNING.value
    dispatched = StageRun.state == RunState.DISPATCHED.value
    grace_s = settings.lost_message_grace_s if empty else settings.dispatch_timeout_s
    return bool(
        session.scalar(
            select(
                or_(
                    exists().where(running, StageRun.lease_expires_at < DbNow()),
                    exists().where(dispatched, StageRun.dispatched_at < DbNow() - grace_s),
                )
            )
        )
    )


def recover_leases(session: Session, settings: Settings) -> TakenBack:
    """Take back StageRuns whose lease has expired; return how many of which stage.

    Runs that were in one shard count as lost together.
    """
    expired = (StageRun.state == RunState.RUNNING.value, StageRun.lease_expires_at < DbNow())
    # Recordings are locked before their runs, as everywhere, so that nobody waits in a circle.
    found = session.scalars(select(StageRun.recording_id).where(*expired).limit(MOST_AT_ONCE))
    locked = session.scalars(
        select(Recording.id)
        .where(Recording.id.in_(found.all()))
        .order_by(Recording.id)
        .with_for_update(skip_locked=True)
    ).all()
    rows = session.execute(
        select(
            StageRun.id,
            StageRun.recording_id,
            StageRun.stage,
            StageRun.fence,
            StageRun.shard_id,
            StageRun.crashes,
            StageRun.worker,
        )
        .where(StageRun.recording_id.in_(locked), *expired)
        .with_for_update(skip_locked=True)
    ).all()
    by_shard: dict[str | None, list[Any]] = defaultdict(list)
    for run in rows:
        by_shard[run.shard_id].append(run)
    quarantined: Counter[str] = Counter()
    for lost in by_shard.values():
        for run in lost:
            quarantined[run.stage] += _take_back(session, run, len(lost), settings)
    return TakenBack(Counter(run.stage for run in rows), quarantined)


def _take_back(session: Session, run: Any, shard_size: int, settings: Settings) -> bool:
    """Take back one run; return whether it was quarantined."""
    alone = shard_size == 1
    crashes = run.crashes + alone
    quarantined: bool = crashes >= settings.max_crashes_alone
    detail = f"worker {run.worker} stopped answering"
    change: dict[str, Any]
    if quarantined:
        change = {
            "state": RunState.QUARANTINED.value,
            "finished_at": DbNow(),
            "error_code": LOST,
            "error_detail": f"killed its worker {crashes} times while alone",
        }
    else:
        change = {
            "state": RunState.READY.value,
            "ready_at": DbNow(),
            "shard_id": None,
            "shard_limit": halved(shard_size),
        }
    session.execute(
        update(StageRun)
        .where(StageRun.id == run.id)
        .values(lease_expires_at=None, crashes=crashes, **change)
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(Attempt)
        .where(Attempt.stage_run_id == run.id, Attempt.number == run.fence)
        .values(
            outcome=Outcome.LOST.value, finished_at=DbNow(), error_code=LOST, error_detail=detail
        )
        .execution_options(synchronize_session=False)
    )
    if quarantined:
        release_downstream(session, [run.recording_id])
    return quarantined


def recover_messages(session: Session, empty: set[str], settings: Settings) -> Counter[str]:
    """Take back StageRuns whose message is lost; return how many of which stage.

    A run that is dispatched although its queue has been empty for a while has no message, nor has
    one that has waited longer than any queue should make it. Should the message turn up after
    all, its shard id is stale and the worker ignores it.

    Args:
        empty: Queues seen empty for ``lost_message_grace_s`` (see ``EmptyQueues``).
    """
    taken: Counter[str] = Counter()
    for stage in Stage:
        for priority in Priority:
            grace_s = (
                settings.lost_message_grace_s
                if queue_name(stage, priority) in empty
                else settings.dispatch_timeout_s
            )
            lost = session.scalars(
                select(StageRun.id)
                .where(
                    StageRun.state == RunState.DISPATCHED.value,
                    StageRun.stage == stage.value,
                    StageRun.priority == priority.value,
                    StageRun.dispatched_at < DbNow() - grace_s,
                )
                .with_for_update(skip_locked=True)
            ).all()
            if lost:
                return_runs(session, StageRun.id.in_(lost))
                taken[stage.value] += len(lost)
    return taken


def return_shard(session: Session, shard_id: str) -> None:
    """Take back a shard that could not be published."""
    return_runs(session, StageRun.shard_id == shard_id)


def return_runs(session: Session, which: Any) -> None:
    """Move dispatched StageRuns back to ready (e). What somebody else changes is passed over."""
    dispatched = StageRun.state == RunState.DISPATCHED.value
    found = session.scalars(
        select(StageRun.id).where(which, dispatched).with_for_update(skip_locked=True)
    ).all()
    session.execute(
        update(StageRun)
        .where(StageRun.id.in_(found), dispatched)
        .values(state=RunState.READY.value, shard_id=None)
        .execution_options(synchronize_session=False)
    )
