"""How claimed StageRuns end: several at once in one transaction, each guarded by its fence.

A claim that was lost meanwhile costs only itself. The letters are those of the diagram in
``docs/architecture.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.orm import Session

from common import garbage
from common.db import DbNow, new_id
from common.domain import Outcome, RunState, Stage
from common.errors import Outage, SoundmillError, TransientError
from common.release import release_downstream
from common.runs import Claim, Reusable, lock_recordings
from common.settings import Settings
from common.tables import Artifact, Attempt, Recording, StageRun

MAX_BACKOFF_S = 60.0
DETAIL_LENGTH = 2_000


class GivenBackFor(StrEnum):
    """Why a claimed run was given back: a reason of an attempt, but no failure of the run."""

    SAME_WORK_ELSEWHERE = "same_work_elsewhere"
    WORKER_STOPPING = "worker_stopping"
    SHARD_OUT_OF_TIME = "shard_out_of_time"  # others of its shard took the time, or may have


@dataclass(frozen=True)
class Measures:
    """What one attempt measured. Keys of ``phases`` are download, decode, infer, encode, upload."""

    phases: dict[str, float] = field(default_factory=dict)
    audio_s: float | None = None
    batch_size: int | None = None
    device: str | None = None
    peak_memory_bytes: int | None = None
    device_memory_bytes: int | None = None
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
            "device_memory_bytes": self.device_memory_bytes,
            "model_digest": self.model_digest,
        }


@dataclass(frozen=True)
class Succeeded:
    """The artifacts are stored under ``key`` and are about to be recorded (d)."""

    claim: Claim
    key: str
    found: Reusable
    measures: Measures
    reused: bool = False
    took_s: float = 0.0  # from its start until it ended
    ago_s: float = 0.0  # since it ended


@dataclass(frozen=True)
class Failed:
    """An error: back to ready when a retry can help (f), else failed (g)."""

    claim: Claim
    error: SoundmillError
    measures: Measures = Measures()
    took_s: float = 0.0
    ago_s: float = 0.0


@dataclass(frozen=True)
class GivenBack:
    """Not begun or not finished: back to ready at no cost to it, after a pause (f)."""

    claim: Claim
    reason: GivenBackFor
    pause_s: float = 0.0
    shard_limit: int | None = None  # most runs its next shard may hold; None: as before
    measures: Measures = Measures()
    took_s: float | None = None  # since work on it began
    ago_s: float = 0.0


@dataclass(frozen=True)
class Dropped:
    """No longer this worker's. What it may have stored under ``key`` is perhaps nobody's."""

    claim: Claim
    key: str


End = Succeeded | Failed | GivenBack | Dropped


@dataclass(frozen=True)
class Ended:
    """What became of ends: the columns of the attempts they ended, and the runs that were lost."""

    attempts: tuple[dict[str, Any], ...] = ()
    stale: frozenset[str] = frozenset()


def end_runs(session: Session, ends: Sequence[End], settings: Settings) -> Ended:
    """Record how runs ended and release what waits for them.

    A stale end changes nothing: another attempt owns the run, or it was cancelled.
    """
    first: dict[str, End] = {}
    unused: set[str] = set()
    for end in ends:
        first.setdefault(end.claim.stage_run_id, end)
        if isinstance(end, Dropped):
            unused.add(end.key)
    claims = [end.claim for end in first.values()]
    lock_recordings(session, claims)
    rows = session.execute(
        select(StageRun.id, StageRun.fence)
        .where(StageRun.id.in_(first), StageRun.state == RunState.RUNNING.value)
        .with_for_update()
    )
    held = {run_id for run_id, fence in rows if fence == first[run_id].claim.fence}
    now = session.scalar(select(DbNow())) or 0.0
    well: list[Succeeded] = []
    over: set[str] = set()  # recordings with a run that has ended for good
    attempts: list[dict[str, Any]] = []
    for run_id, end in first.items():
        match end:
            case Succeeded() if run_id in held:
                well.append(end)
                attempts.append(_success(end, now))
                over.add(end.claim.recording_id)
            case Succeeded(reused=False):
                unused.add(end.key)
            case Failed() if run_id in held:
                if not _fail(session, end, now, settings):
                    over.add(end.claim.recording_id)
                attempts.append(_failure(end, now))
            case GivenBack() if run_id in held:
                _give_back(session, end, now)
                attempts.append(_return(end, now))
    _succeed(session, well, now)
    _end_attempts(session, attempts)
    decoded = [end for end in well if end.claim.stage is Stage.SEGMENT]
    release_downstream(
        session, over, {end.claim.recording_id: end.found.audio.duration_s for end in decoded}
    )
    garbage.discard(session, unused)
    return Ended(tuple(attempts), frozenset(set(first) - held))


def _succeed(session: Session, ends: Sequence[Succeeded], now: float) -> None:
    if not ends:
        return
    connection = session.connection()
    connection.execute(
        update(StageRun.__table__)  # type: ignore[arg-type]
        .where(StageRun.id == bindparam("run"))
        .values(
            state=RunState.SUCCEEDED.value,
            lease_expires_at=None,
            idempotency_key=bindparam("key"),
            result=bindparam("found"),
            audio_s=bindparam("length_s"),
            finished_at=now,
            error_code=None,
            error_detail=None,
        ),
        [
            {
                "run": end.claim.stage_run_id,
                "key": end.key,
                "found": end.found.result,
                "length_s": end.found.audio.duration_s,
            }
            for end in ends
        ],
    )
    artifacts = [
        {
            "id": new_id(),
            "stage_run_id": end.claim.stage_run_id,
            "recording_id": end.claim.recording_id,
            "kind": artifact.kind.value,
            "object_key": artifact.object_key,
            "media_type": artifact.media_type,
            "size_bytes": artifact.size_bytes,
            "sha256": artifact.sha256,
            "created_at": now,
        }
        for end in ends
        for artifact in end.found.artifacts
    ]
    if artifacts:
        connection.execute(insert(Artifact.__table__), artifacts)  # type: ignore[arg-type]
    decoded = [end for end in ends if end.claim.stage is Stage.SEGMENT]
    if decoded:
        _record_audio(session, decoded)


def _fail(session: Session, end: Failed, now: float, settings: Settings) -> bool:
    """Record a failure; return whether the run is tried again."""
    claim, error = end.claim, end.error
    failures = claim.failures + 1
    limit = settings.max_outage_attempts if isinstance(error, Outage) else settings.max_attempts
    again = isinstance(error, TransientError) and failures < limit
    detail = str(error)[:DETAIL_LENGTH]
    if again:
        next_at = now + min(MAX_BACKOFF_S, settings.retry_backoff_s * 2.0 ** (failures - 1))
        change: dict[str, Any] = {
            "state": RunState.READY.value,
            "next_attempt_at": next_at,
            "ready_at": next_at,
            "shard_id": None,
        }
    else:
        change = {"state": RunState.FAILED.value, "finished_at": now}
    _leave(session, claim, failures=failures, error_code=error.code, error_detail=detail, **change)
    return again


def _give_back(session: Session, end: GivenBack, now: float) -> None:
    next_at = now + end.pause_s
    change: dict[str, Any] = {
        "state": RunState.READY.value,
        "shard_id": None,
        "next_attempt_at": next_at,
        "ready_at": next_at,
    }
    if end.shard_limit is not None:
        change["shard_limit"] = end.shard_limit
    _leave(session, end.claim, **change)


def _leave(session: Session, claim: Claim, **change: Any) -> None:
    session.execute(
        update(StageRun)
        .where(StageRun.id == claim.stage_run_id)
        .values(lease_expires_at=None, **change)
        .execution_options(synchronize_session=False)
    )


def _success(end: Succeeded, now: float) -> dict[str, Any]:
    outcome = Outcome.REUSED if end.reused else Outcome.SUCCEEDED
    return _attempt(end, outcome, end.measures, now)


def _failure(end: Failed, now: float) -> dict[str, Any]:
    transient = isinstance(end.error, TransientError)
    outcome = Outcome.TRANSIENT if transient else Outcome.PERMANENT
    detail = str(end.error)[:DETAIL_LENGTH]
    return _attempt(end, outcome, end.measures, now, end.error.code, detail)


def _return(end: GivenBack, now: float) -> dict[str, Any]:
    return _attempt(end, Outcome.TRANSIENT, end.measures, now, end.reason.value)


def _attempt(
    end: Succeeded | Failed | GivenBack,
    outcome: Outcome,
    measures: Measures,
    now: float,
    error_code: str | None = None,
    error_detail: str | None = None,
) -> dict[str, Any]:
    """Return the columns of an attempt's row that its end fills, and what finds the row."""
    finished_at = now - end.ago_s
    return {
        "run": end.claim.stage_run_id,
        "fence": end.claim.fence,
        "outcome": outcome.value,
        "started_at": None if end.took_s is None else finished_at - end.took_s,
        "finished_at": finished_at,
        "error_code": error_code,
        "error_detail": error_detail,
        **measures.columns(),
    }


def _end_attempts(session: Session, attempts: Sequence[dict[str, Any]]) -> None:
    if not attempts:
        return
    changed = [name for name in attempts[0] if name not in ("run", "fence")]
    session.connection().execute(
        update(Attempt.__table__)  # type: ignore[arg-type]
        .where(Attempt.stage_run_id == bindparam("run"), Attempt.number == bindparam("fence"))
        .values({name: bindparam(f"new_{name}") for name in changed}),
        [
            {
                "run": attempt["run"],
                "fence": attempt["fence"],
                **{f"new_{name}": attempt[name] for name in changed},
            }
            for attempt in attempts
        ],
    )


def _record_audio(session: Session, ends: Sequence[Succeeded]) -> None:
    """Note what decoding found."""
    session.connection().execute(
        update(Recording.__table__)  # type: ignore[arg-type]
        .where(Recording.id == bindparam("recording"))
        .values(
            duration_s=bindparam("length_s"),
            sample_rate=bindparam("rate"),
            channels=bindparam("number"),
        ),
        [
            {
                "recording": end.claim.recording_id,
                "length_s": end.found.audio.duration_s,
                "rate": end.found.audio.sample_rate,
                "number": end.found.audio.channels,
            }
            for end in ends
        ],
    )
