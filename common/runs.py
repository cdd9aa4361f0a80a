"""What a worker may do to the StageRuns of a shard: claim them, keep them.

Every change is guarded by the state it starts from and, once claimed, by the fence: an attempt
that lost its lease changes nothing. How runs share results is in ``common.sharing``, how they end
in ``common.ends``; the letters are those of the diagram in ``docs/architecture.md``.

Whoever waits for several rows of runs holds their recordings' rows, in the order of their ids;
others pass over rows that are held. So nobody waits in a circle.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import exists, insert, select, update
from sqlalchemy.orm import Session

from common import traces
from common.db import DbNow, new_id
from common.domain import ENDED_STATES, STAGE_NEEDS, ArtifactKind, RunState, Stage
from common.stage_io import AudioFacts
from common.tables import Artifact, Attempt, Job, Recording, StageRun


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
    shard_id: str | None = None
    traceparent: str | None = None  # of the request that brought the recording
    queue_wait_s: float | None = None  # since it could be worked on, until it was claimed

    @property
    def ids(self) -> dict[str, str | int | None]:
        """Return what every log line about it holds."""
        return {
            "shard_id": self.shard_id,
            "trace_id": traces.trace_id_of(self.traceparent),
            "job_id": self.job_id,
            "recording_id": self.recording_id,
            "stage_run_id": self.stage_run_id,
            "attempt": self.fence,
        }


@dataclass(frozen=True)
class Reusable:
    """An earlier result under the same idempotency key."""

    artifacts: tuple[StoredArtifact, ...]
    result: dict[str, Any]
    audio: AudioFacts


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
    waits = {
        run.id: None if run.ready_at is None else max(0.0, now - run.ready_at) for run in claimed
    }
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
                "queue_wait_s": waits[run.id],
            }
            for run in claimed
        ],
    )
    return _claims(session, waits)


def return_shard(session: Session, shard_id: str, pause_s: float = 0.0) -> int:
    """Move what of a shard nobody has claimed back to ready (e); return how many runs.

    It is dispatched again after a pause, in another shard.
    """
    dispatched = StageRun.state == RunState.DISPATCHED.value
    found = session.scalars(
        select(StageRun.id)
        .where(StageRun.shard_id == shard_id, dispatched)
        .with_for_update(skip_locked=True)
    ).all()
    session.execute(
        update(StageRun)
        .where(StageRun.id.in_(found), dispatched)
        .values(state=RunState.READY.value, shard_id=None, next_attempt_at=DbNow() + pause_s)
        .execution_options(synchronize_session=False)
    )
    return len(found)


def halved(n_together: int) -> int:
    """Return how many runs a shard may hold after one of so many did harm, nobody knows which."""
    return max(1, n_together // 2)


def _claims(session: Session, waits: Mapping[str, float | None]) -> list[Claim]:
    rows = session.execute(
        select(
            StageRun.id,
            StageRun.fence,
            StageRun.stage,
            StageRun.job_id,
            StageRun.recording_id,
            StageRun.failures,
            StageRun.idempotency_key,
            StageRun.shard_id,
            Recording.name,
            Recording.object_key,
            Recording.sha256,
            Recording.params,
            Recording.traceparent,
        )
        .join(Recording, Recording.id == StageRun.recording_id)
        .where(StageRun.id.in_(waits))
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
            shard_id=run.shard_id,
            traceparent=run.traceparent,
            queue_wait_s=waits[run.id],
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
    for run_id, found in artifacts_of(session, list(recording_of)).items():
        artifacts.setdefault(recording_of[run_id], []).extend(found)
    return keys, artifacts


def artifacts_of(session: Session, runs: Collection[str]) -> dict[str, list[StoredArtifact]]:
    """Return the artifacts of stage runs, by their ids."""
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
