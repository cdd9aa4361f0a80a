"""How stage runs share results: by idempotency key, never computed twice at the same time.

A worker first commits under which keys it works, then looks for others; whoever removes results
does the same the other way round. Of two, at least one sees the other: see decision 0009.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import (
    ARRAY,
    String,
    bindparam,
    cast,
    column,
    exists,
    func,
    literal,
    select,
    update,
    values,
)
from sqlalchemy.orm import Session, aliased

from common import garbage
from common.db import DbNow
from common.domain import RunState
from common.runs import Claim, Reusable, artifacts_of, lock_recordings
from common.stage_io import AudioFacts
from common.tables import Attempt, Garbage, Recording, StageRun


@dataclass(frozen=True)
class Prospect:
    """What else is known of an idempotency key."""

    succeeded: str | None  # a stage run whose result can be reused
    elsewhere: bool  # a run in another shard works on it
    being_removed: bool  # the objects under it may be about to go


def begin(session: Session, keys: Mapping[str, str], claims: Sequence[Claim]) -> set[str]:
    """Note under which idempotency keys claims are about to be worked on; return those noted.

    The first of them begins at once.

    A key that a run in another shard works on is left to that one, unless there is a result to
    reuse. What another process decides at the same moment is seen by ``prospects`` once this is
    committed: see decision 0009.

    Args:
        keys: By the ids of the claims' stage runs.
    """
    lock_recordings(session, claims)
    _take_turns(session, set(keys.values()))
    known = prospects(session, set(keys.values()), {claim.stage_run_id for claim in claims})
    noted = [
        claim
        for claim in claims
        if not (
            known[keys[claim.stage_run_id]].elsewhere
            and known[keys[claim.stage_run_id]].succeeded is None
        )
    ]
    stale_keys = {c.earlier_key for c in noted if c.earlier_key != keys[c.stage_run_id]}
    garbage.discard(session, {key for key in stale_keys if key})
    if noted:
        session.connection().execute(
            update(StageRun.__table__)  # type: ignore[arg-type]
            .where(
                StageRun.id == bindparam("run"),
                StageRun.fence == bindparam("held"),
                StageRun.state == RunState.RUNNING.value,
            )
            .values(idempotency_key=bindparam("key")),
            [{"run": c.stage_run_id, "held": c.fence, "key": keys[c.stage_run_id]} for c in noted],
        )
        session.execute(
            update(Attempt)
            .where(Attempt.stage_run_id == noted[0].stage_run_id, Attempt.number == noted[0].fence)
            .values(started_at=DbNow())
            .execution_options(synchronize_session=False)
        )
    return {claim.stage_run_id for claim in noted}


def _take_turns(session: Session, keys: Collection[str]) -> None:
    """Let nobody else decide about these keys until the end of the transaction.

    Without it two that decide at the same moment would see each other afterwards and both give way.
    On SQLite there is one writer anyway.
    """
    if session.get_bind().dialect.name == "postgresql":
        wanted = func.unnest(cast(sorted(keys), ARRAY(String))).column_valued("key")
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(wanted, 0))))


def prospects(session: Session, keys: Collection[str], own: Collection[str]) -> dict[str, Prospect]:
    """Return what else is known of each of ``keys``.

    One short look per key, however many runs share it: many recordings of an archive may be alike.

    Args:
        own: The ids of stage runs that do not count as elsewhere.
    """
    if not keys:
        return {}
    wanted = values(column("key", String), name="v").data([(key,) for key in keys]).cte("wanted")
    succeeded, twin = aliased(StageRun), aliased(StageRun)
    first = (
        select(succeeded.id)
        .where(
            succeeded.idempotency_key == wanted.c.key,
            succeeded.state == RunState.SUCCEEDED.value,
        )
        .limit(1)
        .scalar_subquery()
    )
    working = exists().where(
        twin.idempotency_key == wanted.c.key,
        twin.state == RunState.RUNNING.value,
        twin.id.not_in(own),
    )
    removed = exists(select(literal(1)).where(Garbage.key == wanted.c.key))
    rows = session.execute(select(wanted.c.key, first, working, removed))
    return {key: Prospect(run, bool(busy), bool(gone)) for key, run, busy, gone in rows}


def reusable(session: Session, runs: Collection[str]) -> dict[str, Reusable]:
    """Return the results of stage runs that have succeeded, by their ids."""
    if not runs:
        return {}
    artifacts = artifacts_of(session, runs)
    rows = session.execute(
        select(
            StageRun.id,
            StageRun.result,
            Recording.duration_s,
            Recording.sample_rate,
            Recording.channels,
        )
        .join(Recording, Recording.id == StageRun.recording_id)
        .where(StageRun.id.in_(runs), Recording.duration_s.is_not(None))
    )
    return {
        run_id: Reusable(
            tuple(artifacts.get(run_id, ())), result or {}, AudioFacts(duration_s, rate, channels)
        )
        for run_id, result, duration_s, rate, channels in rows
    }
