"""After a restore: what was on its way when the backup was made begins anew.

No worker, no ingester and no message of then is left. What claims counted stays, so fences go on
rising, and nothing that happened since is thought of twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select, update

from common.db import DbNow
from common.domain import Outcome, RunState, SourceState, UploadState
from common.tables import Attempt, Job, Source, StageRun, Upload, Webhook

LOST = "worker_lost"
ON_THE_WAY = (RunState.DISPATCHED.value, RunState.RUNNING.value)


@dataclass(frozen=True)
class Revived:
    """How much of what begins anew."""

    runs: int
    sources: int
    uploads: int  # in parts, given up: the parts are in no backup
    deleted_jobs: int


def revive(connection: Connection, deleted_jobs: Sequence[str]) -> Revived:
    """Put what was on its way back to where it waits, and delete what was deleted meanwhile."""
    connection.execute(
        update(Attempt)
        .where(Attempt.outcome == Outcome.RUNNING.value)
        .values(
            outcome=Outcome.LOST.value,
            finished_at=DbNow(),
            error_code=LOST,
            error_detail="it ran when the backup was made",
        )
    )
    connection.execute(
        update(StageRun)
        .where(StageRun.state == RunState.RUNNING.value)
        .values(ready_at=DbNow(), lease_expires_at=None)
    )
    runs = connection.execute(
        update(StageRun)
        .where(StageRun.state.in_(ON_THE_WAY))
        .values(state=RunState.READY.value, shard_id=None)
    ).rowcount
    sources = connection.execute(
        update(Source)
        .where(Source.state == SourceState.RUNNING.value)
        .values(state=SourceState.PENDING.value, lease_expires_at=None, next_attempt_at=0.0)
    ).rowcount
    uploads = connection.execute(
        update(Upload)
        .where(Upload.state == UploadState.OPEN.value)
        .values(state=UploadState.ABORTED.value, expires_at=DbNow())
    ).rowcount
    there = connection.scalars(
        select(Job.id).where(Job.id.in_(deleted_jobs), Job.deleted_at.is_(None))
    ).all()
    connection.execute(update(Job).where(Job.id.in_(there)).values(deleted_at=DbNow()))
    return Revived(runs, sources, uploads, len(there))


def silence(connection: Connection) -> None:
    """Disable every webhook."""
    connection.execute(
        update(Webhook).where(Webhook.disabled_at.is_(None)).values(disabled_at=DbNow())
    )
