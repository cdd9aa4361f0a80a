"""What a worker may do to a StageRun: claim it, keep it, end it. One transaction each.

Every change is guarded by the state it starts from and, once claimed, by the fence: an attempt
that lost its lease changes nothing. The letters are those of the diagram in
``docs/architecture.md``; what the dispatcher does is in ``services.dispatcher``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from common.db import Artifact, Attempt, DbNow, Job, Recording, StageRun, new_id
from common.domain import STAGE_NEEDS, ArtifactKind, Outcome, RunState, Stage
from common.errors import Outage, SoundmillError, StaleFence, TransientError
from common.settings import Settings
from common.stage_io import AudioFacts

MAX_BACKOFF_S = 60.0
DETAIL_LENGTH = 2_000


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


@dataclass(frozen=True)
class StoredArtifact:
    """An artifact that lies in the object store and is about to be recorded."""

    kind: ArtifactKind
    object_key: str
    media_type: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Measures:
    """What one attempt measured. Keys of ``phases`` are download, decode, infer, encode, upload."""

    phases: dict[str, float] = field(default_factory=dict)
    audio_s: float | None = None
    batch_size: int | None = None
    device: str | None = None
    peak_memory_bytes: int | None = None
    model_digest: str | None = None

    def columns(self) -> dict[str, Any]:
        """Return the columns of the attempt's row."""
        named = ("download", "decode", "infer", "encode", "upload")
        return {
            **{f"{name}_s": self.phases.get(name) for name in named},
            "audio_s": self.audio_s,
            "batch_size": self.batch_size,
            "device": self.device,
            "peak_memory_bytes": self.peak_memory_bytes,
            "model_digest": self.model_digest,
        }


@dataclass(frozen=True)
class Reusable:
    """An earlier result under the same idempotency key."""

    artifacts: tuple[StoredArtifact, ...]
    result: dict[str, Any]
    audio: AudioFacts


def claim(session: Session, shard_id: str, worker: str, lease_s: float) -> list[Claim]:
    """Claim every StageRun of a shard that is still dispatched in it (c).

    Returns nothing when the message is stale: delivered twice, or its runs were taken back.
    """
    now = session.scalar(select(DbNow())) or 0.0
    claimed = session.execute(
        update(StageRun)
        .where(StageRun.shard_id == shard_id, StageRun.state == RunState.DISPATCHED.value)
        .values(
            state=RunState.RUNNING.value,
            fence=StageRun.fence + 1,
            worker=worker,
            lease_expires_at=now + lease_s,
        )
        .returning(StageRun.id, StageRun.fence, StageRun.ready_at)
        .execution_options(synchronize_session=False)
    ).all()
    session.add_all(
        Attempt(
            stage_run_id=run.id,
            number=run.fence,
            worker=worker,
            shard_id=shard_id,
            claimed_at=now,
            queue_wait_s=None if run.ready_at is None else max(0.0, now - run.ready_at),
        )
        for run in claimed
    )
    rows = session.execute(
        select(StageRun, Recording, Job.params)
        .join(Recording, Recording.id == StageRun.recording_id)
        .join(Job, Job.id == StageRun.job_id)
        .where(StageRun.id.in_([run.id for run in claimed]))
        .order_by(StageRun.job_id, StageRun.position)
    ).all()
    return [
        Claim(
            stage_run_id=run.id,
            fence=run.fence,
            stage=Stage(run.stage),
            job_id=run.job_id,
            recording_id=run.recording_id,
            name=recording.name,
            object_key=recording.object_key,
            sha256=recording.sha256,
            params=recording.params or job_params,
            failures=run.failures,
        )
        for run, recording, job_params in rows
    ]


def renew(session: Session, claims: Iterable[Claim], lease_s: float) -> set[str]:
    """Extend the leases of claims still held; return the ids of those."""
    held = [and_(StageRun.id == c.stage_run_id, StageRun.fence == c.fence) for c in claims]
    if not held:
        return set()
    renewed = session.scalars(
        update(StageRun)
        .where(StageRun.state == RunState.RUNNING.value, or_(*held))
        .values(lease_expires_at=DbNow() + lease_s)
        .returning(StageRun.id)
        .execution_options(synchronize_session=False)
    )
    return set(renewed)


def start(session: Session, claim: Claim) -> None:
    """Note that the attempt's own work begins now.

    Raises:
        StaleFence: the claim was lost while it waited its turn in the shard.
    """
    run = session.get(StageRun, claim.stage_run_id)
    if run is None or run.fence != claim.fence or run.state != RunState.RUNNING.value:
        raise StaleFence(f"stage run {claim.stage_run_id} is no longer held under {claim.fence}")
    _update_attempt(session, claim, started_at=DbNow())


def find_reusable(session: Session, key: str) -> Reusable | None:
    """Return the artifacts of an earlier StageRun with the same idempotency key, if any."""
    row = session.execute(
        select(StageRun, Recording)
        .join(Recording, Recording.id == StageRun.recording_id)
        .where(StageRun.idempotency_key == key, StageRun.state == RunState.SUCCEEDED.value)
        .limit(1)
    ).one_or_none()
    if row is None:
        return None
    run, recording = row
    if recording.duration_s is None or recording.sample_rate is None or recording.channels is None:
        return None
    artifacts = session.scalars(select(Artifact).where(Artifact.stage_run_id == run.id))
    return Reusable(
        artifacts=tuple(
            StoredArtifact(
                kind=ArtifactKind(a.kind),
                object_key=a.object_key,
                media_type=a.media_type,
                size_bytes=a.size_bytes,
                sha256=a.sha256,
            )
            for a in artifacts
        ),
        result=run.result or {},
        audio=AudioFacts(recording.duration_s, recording.sample_rate, recording.channels),
    )


def upstream_keys(session: Session, claim: Claim) -> list[str]:
    """Return the idempotency keys of the runs this one builds on, in pipeline order."""
    needs = [stage.value for stage in STAGE_NEEDS[claim.stage]]
    found = session.execute(
        select(StageRun.stage, StageRun.idempotency_key).where(
            StageRun.recording_id == claim.recording_id, StageRun.stage.in_(needs)
        )
    ).all()
    by_stage = {stage: key or "" for stage, key in found}
    return [by_stage[stage] for stage in needs]


def upstream_artifacts(session: Session, claim: Claim) -> list[StoredArtifact]:
    """Return the artifacts of the runs this one builds on."""
    needs = [stage.value for stage in STAGE_NEEDS[claim.stage]]
    found = session.scalars(
        select(Artifact)
        .join(StageRun, StageRun.id == Artifact.stage_run_id)
        .where(StageRun.recording_id == claim.recording_id, StageRun.stage.in_(needs))
    )
    return [
        StoredArtifact(ArtifactKind(a.kind), a.object_key, a.media_type, a.size_bytes, a.sha256)
        for a in found
    ]


def succeed(
    session: Session,
    claim: Claim,
    *,
    key: str,
    artifacts: Sequence[StoredArtifact],
    result: dict[str, Any],
    audio: AudioFacts,
    measures: Measures,
    outcome: Outcome = Outcome.SUCCEEDED,
) -> None:
    """Record the end of a run whose artifacts are stored, and release what waits for it (d, a).

    Raises:
        StaleFence: another attempt owns the run, or it was cancelled; nothing is changed.
    """
    _lock_recording(session, claim.recording_id)
    _leave_running(
        session,
        claim,
        state=RunState.SUCCEEDED.value,
        idempotency_key=key,
        result=result,
        finished_at=DbNow(),
        error_code=None,
        error_detail=None,
    )
    session.add_all(
        Artifact(
            id=new_id(),
            stage_run_id=claim.stage_run_id,
            recording_id=claim.recording_id,
            kind=artifact.kind.value,
            object_key=artifact.object_key,
            media_type=artifact.media_type,
            size_bytes=artifact.size_bytes,
            sha256=artifact.sha256,
        )
        for artifact in artifacts
    )
    _update_attempt(
        session, claim, outcome=outcome.value, finished_at=DbNow(), **measures.columns()
    )
    if claim.stage is Stage.SEGMENT:
        _record_audio(session, claim.recording_id, audio)
    release_downstream(session, claim.recording_id)


def fail(
    session: Session, claim: Claim, error: SoundmillError, measures: Measures, settings: Settings
) -> None:
    """Record a failed attempt: back to ready when a retry can help (f), else failed (g).

    Raises:
        StaleFence: another attempt owns the run, or it was cancelled; nothing is changed.
    """
    _lock_recording(session, claim.recording_id)
    failures = claim.failures + 1
    limit = settings.max_outage_attempts if isinstance(error, Outage) else settings.max_attempts
    again = isinstance(error, TransientError) and failures < limit
    detail = str(error)[:DETAIL_LENGTH]
    if again:
        backoff_s = min(MAX_BACKOFF_S, settings.retry_backoff_s * 2.0 ** (failures - 1))
        change: dict[str, Any] = {
            "state": RunState.READY.value,
            "failures": failures,
            "next_attempt_at": DbNow() + backoff_s,
            "ready_at": DbNow() + backoff_s,
            "shard_id": None,
        }
    else:
        change = {
            "state": RunState.FAILED.value,
            "failures": failures,
            "finished_at": DbNow(),
        }
    _leave_running(session, claim, **change, error_code=error.code, error_detail=detail)
    _update_attempt(
        session,
        claim,
        outcome=(Outcome.TRANSIENT if isinstance(error, TransientError) else Outcome.PERMANENT),
        finished_at=DbNow(),
        error_code=error.code,
        error_detail=detail,
        **measures.columns(),
    )
    if not again:
        release_downstream(session, claim.recording_id)


def give_back(session: Session, claim: Claim, reason: str) -> None:
    """Return a claim that was never started to ready, at no cost to it.

    Raises:
        StaleFence: the claim is no longer held; nothing is changed.
    """
    _leave_running(session, claim, state=RunState.READY.value, shard_id=None)
    _update_attempt(
        session, claim, outcome=Outcome.TRANSIENT.value, finished_at=DbNow(), error_code=reason
    )


def release_downstream(session: Session, recording_id: str) -> None:
    """Make ready what now has all it needs, and skip what can never have it (a).

    The caller holds the recording's row, so two ends of one recording do not miss each other.
    """
    session.flush()
    rows = session.execute(
        select(StageRun.id, StageRun.stage, StageRun.state).where(
            StageRun.recording_id == recording_id
        )
    ).all()
    states = {Stage(row.stage): RunState(row.state) for row in rows}
    ids = {Stage(row.stage): row.id for row in rows}
    lost = {RunState.FAILED, RunState.QUARANTINED, RunState.SKIPPED, RunState.CANCELLED}
    for stage, needs in STAGE_NEEDS.items():  # in pipeline order, so that skips cascade
        if states.get(stage) is not RunState.BLOCKED:
            continue
        needed = {states[need] for need in needs}
        if needed <= {RunState.SUCCEEDED}:
            change: dict[str, Any] = {"state": RunState.READY.value, "ready_at": DbNow()}
        elif needed & lost:
            states[stage] = RunState.SKIPPED
            cause = next(need for need in needs if states[need] in lost)
            change = {
                "state": RunState.SKIPPED.value,
                "finished_at": DbNow(),
                "error_code": "upstream_failed",
                "error_detail": f"stage {cause.value} did not succeed",
            }
        else:
            continue
        session.execute(
            update(StageRun)
            .where(StageRun.id == ids[stage], StageRun.state == RunState.BLOCKED.value)
            .values(**change)
            .execution_options(synchronize_session=False)
        )


def _lock_recording(session: Session, recording_id: str) -> None:
    session.execute(select(Recording.id).where(Recording.id == recording_id).with_for_update())


def _leave_running(session: Session, claim: Claim, **change: Any) -> None:
    left = session.execute(
        update(StageRun)
        .where(
            StageRun.id == claim.stage_run_id,
            StageRun.fence == claim.fence,
            StageRun.state == RunState.RUNNING.value,
        )
        .values(lease_expires_at=None, **change)
        .returning(StageRun.id)
        .execution_options(synchronize_session=False)
    ).all()
    if not left:
        raise StaleFence(f"stage run {claim.stage_run_id} is no longer held under {claim.fence}")


def _update_attempt(session: Session, claim: Claim, **values: Any) -> None:
    session.execute(
        update(Attempt)
        .where(Attempt.stage_run_id == claim.stage_run_id, Attempt.number == claim.fence)
        .values(**values)
        .execution_options(synchronize_session=False)
    )


def _record_audio(session: Session, recording_id: str, audio: AudioFacts) -> None:
    session.execute(
        update(Recording)
        .where(Recording.id == recording_id)
        .values(duration_s=audio.duration_s, sample_rate=audio.sample_rate, channels=audio.channels)
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(StageRun)
        .where(StageRun.recording_id == recording_id)
        .values(audio_s=audio.duration_s)
        .execution_options(synchronize_session=False)
    )
