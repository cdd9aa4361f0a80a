"""What a worker may do to the StageRuns of a shard: claim them, keep them, begin with them.

Every change is guarded by the state it starts from and, once claimed, by the fence: an attempt
that lost its lease changes nothing. How runs end is in ``common.ends``; the letters are those of
the diagram in ``docs/architecture.md``; what the dispatcher does is in ``services.dispatcher``.

Whoever waits for several rows of runs holds their recordings' rows, in the order of their ids;
others pass over rows that are held. So nobody waits in a circle.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    String,
    bindparam,
    column,
    exists,
    insert,
    literal,
    select,
    update,
    values,
)
from sqlalchemy.orm import Session, aliased

from common import garbage
from common.db import Artifact, Attempt, DbNow, Garbage, Job, Recording, StageRun, new_id
from common.domain import ENDED_STATES, STAGE_NEEDS, ArtifactKind, RunState, Stage
from common.stage_io import AudioFacts


@dataclass(frozen=True)
class StoredArtifact:
    """An artifact that lies in the object store."""

    kind: ArtifactKind
    object_key: str
    media_type: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Claim:
    """A StageRun that this worker holds, and what it needs to know to run it."""

    stage_run_id: str
    fence: int
    stage: Stage
    job_id: str
    recording_id: str
    name: str
    object_key: str
    sha256: str
    params: dict[str, Any]  # of all stages
    failures: int
    earlier_key: str | None  # of an earlier attempt at this run
    upstream: tuple[StoredArtifact, ...] = ()  # of the runs this one builds on
    upstream_keys: tuple[str, ...] = ()  # of these runs, in pipeline order


@dataclass(frozen=True)
class Reusable:
    """An earlier result under the same idempotency key."""

    artifacts: tuple[StoredArtifact, ...]
    result: dict[str, Any]
    audio: AudioFacts


@dataclass(frozen=True)
class Prospect:
    """What else is known of an idempotency key."""

    succeeded: str | None  # a stage run whose result can be reused
    elsewhere: bool  # a run in another shard works on it
    being_removed: bool  # the objects under it may be about to go


def claim(session: Session, shard_id: str, worker: str, lease_s: float) -> list[Claim]:
    """Claim every StageRun of a shard that is still dispatched in it (c).

    Returns nothing when the message is stale: delivered twice, its runs were taken back, or the job
    has ended.
    """
    now = session.scalar(select(DbNow())) or 0.0
    ended = [state.value for state in ENDED_STATES]
    free = session.scalars(
        select(StageRun.id)
        .where(
            StageRun.shard_id == shard_id,
            StageRun.state == RunState.DISPATCHED.value,
            ~exists().where(Job.id == StageRun.job_id, Job.state.in_(ended)),
        )
        .with_for_update(skip_locked=True)
    ).all()
    claimed = session.execute(
        update(StageRun)
        .where(StageRun.id.in_(free))
        .values(
            state=RunState.RUNNING.value,
            fence=StageRun.fence + 1,
            worker=worker,
            lease_expires_at=now + lease_s,
        )
        .returning(StageRun.id, StageRun.fence, StageRun.ready_at)
        .execution_options(synchronize_session=False)
    ).all()
    if not claimed:
        return []
    session.execute(
        insert(Attempt),
        [
            {
                "id": new_id(),
                "stage_run_id": run.id,
                "number": run.fence,
                "worker": worker,
                "shard_id": shard_id,
                "claimed_at": now,
                "queue_wait_s": None if run.ready_at is None else max(0.0, now - run.ready_at),
            }
            for run in claimed
        ],
    )
    return _claims(session, [run.id for run in claimed])


def _claims(session: Session, ids: Sequence[str]) -> list[Claim]:
    rows = session.execute(
        select(
            StageRun.id,
            StageRun.fence,
            StageRun.stage,
            StageRun.job_id,
            StageRun.recording_id,
            StageRun.failures,
            StageRun.idempotency_key,
            Recording.name,
            Recording.object_key,
            Recording.sha256,
            Recording.params,
        )
        .join(Recording, Recording.id == StageRun.recording_id)
        .where(StageRun.id.in_(ids))
        .order_by(StageRun.job_id, StageRun.position)
    ).all()
    jobs = session.execute(select(Job.id, Job.params).where(Job.id.in_({r.job_id for r in rows})))
    job_params: dict[str, dict[str, Any]] = {row.id: row.params for row in jobs}
    stage = Stage(rows[0].stage)  # a shard is of one stage
    keys, artifacts = _upstream(session, stage, [run.recording_id for run in rows])
    return [
        Claim(
            stage_run_id=run.id,
            fence=run.fence,
            stage=stage,
            job_id=run.job_id,
            recording_id=run.recording_id,
            name=run.name,
            object_key=run.object_key,
            sha256=run.sha256,
            params=run.params or job_params[run.job_id],
            failures=run.failures,
            earlier_key=run.idempotency_key,
            upstream=tuple(artifacts.get(run.recording_id, ())),
            upstream_keys=tuple(
                keys.get((run.recording_id, need.value), "") for need in STAGE_NEEDS[stage]
            ),
        )
        for run in rows
    ]


def _upstream(
    session: Session, stage: Stage, recordings: Sequence[str]
) -> tuple[dict[tuple[str, str], str], dict[str, list[StoredArtifact]]]:
    """Return keys by recording and stage, and artifacts by recording, of what a stage builds on."""
    needs = [need.value for need in STAGE_NEEDS[stage]]
    if not needs:
        return {}, {}
    runs = session.execute(
        select(StageRun.id, StageRun.recording_id, StageRun.stage, StageRun.idempotency_key).where(
            StageRun.recording_id.in_(recordings), StageRun.stage.in_(needs)
        )
    ).all()
    keys = {(run.recording_id, run.stage): run.idempotency_key or "" for run in runs}
    recording_of = {run.id: run.recording_id for run in runs}
    artifacts: dict[str, list[StoredArtifact]] = {}
    for run_id, found in _artifacts(session, list(recording_of)).items():
        artifacts.setdefault(recording_of[run_id], []).extend(found)
    return keys, artifacts


def _artifacts(session: Session, runs: Collection[str]) -> dict[str, list[StoredArtifact]]:
    rows = session.execute(
        select(
            Artifact.stage_run_id,
            Artifact.kind,
            Artifact.object_key,
            Artifact.media_type,
            Artifact.size_bytes,
            Artifact.sha256,
        ).where(Artifact.stage_run_id.in_(runs))
    )
    found: dict[str, list[StoredArtifact]] = {}
    for run_id, kind, object_key, media_type, size_bytes, sha256 in rows:
        found.setdefault(run_id, []).append(
            StoredArtifact(ArtifactKind(kind), object_key, media_type, size_bytes, sha256)
        )
    return found


def lock_recordings(session: Session, claims: Collection[Claim]) -> None:
    """Hold the rows of the claims' recordings, before rows of their runs."""
    ids = {claim.recording_id for claim in claims}
    session.scalars(
        select(Recording.id).where(Recording.id.in_(ids)).order_by(Recording.id).with_for_update()
    ).all()


def renew(session: Session, claims: Collection[Claim], lease_s: float) -> None:
    """Extend the leases of claims still held. One that somebody else changes is passed over."""
    fences = {claim.stage_run_id: claim.fence for claim in claims}
    running = session.execute(
        select(StageRun.id, StageRun.fence)
        .where(StageRun.id.in_(fences), StageRun.state == RunState.RUNNING.value)
        .with_for_update(skip_locked=True)
    )
    held = [run_id for run_id, fence in running if fence == fences[run_id]]
    session.execute(
        update(StageRun)
        .where(StageRun.id.in_(held))
        .values(lease_expires_at=DbNow() + lease_s)
        .execution_options(synchronize_session=False)
    )


def held(session: Session, claims: Collection[Claim]) -> set[str]:
    """Return the ids of the claims that are still held."""
    fences = {claim.stage_run_id: claim.fence for claim in claims}
    running = session.execute(
        select(StageRun.id, StageRun.fence).where(
            StageRun.id.in_(fences), StageRun.state == RunState.RUNNING.value
        )
    )
    return {run_id for run_id, fence in running if fence == fences[run_id]}


def begin(session: Session, keys: Mapping[str, str], claims: Sequence[Claim]) -> set[str]:
    """Note under which idempotency keys claims are about to be worked on; return those noted.

    A key that a run in another shard works on is left to that one, unless there is a result to
    reuse. What another process decides at the same moment is seen by ``prospects`` once this is
    committed: see decision 0009.

    Args:
        keys: By the ids of the claims' stage runs.
    """
    lock_recordings(session, claims)
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
    return {claim.stage_run_id for claim in noted}


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
    artifacts = _artifacts(session, runs)
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
