"""Recordings and results as the gateway reads them from the database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from common.domain import ArtifactKind, RunState, Stage
from common.errors import NotFound
from common.params import parse_params
from common.tables import Artifact, Attempt, Job, Recording, StageRun
from services.gateway import cursors
from services.gateway.access import Caller
from services.gateway.schemas import (
    ArtifactOut,
    AttemptOut,
    RecordingDetail,
    RecordingFacts,
    RecordingOut,
    RecordingPage,
    RunBrief,
    RunOut,
)
from services.gateway.walks import recordings_with_runs

PIPELINE = list(Stage)
AT_FAULT = (RunState.FAILED, RunState.QUARANTINED, RunState.SKIPPED, RunState.CANCELLED)


@dataclass(frozen=True)
class StoredResult:
    """An artifact and the name of the recording it belongs to."""

    recording_name: str
    artifact: Artifact


@dataclass(frozen=True)
class RecordingFilter:
    """Which recordings to list. None lets all through."""

    state: RunState | None = None  # of any stage, or of ``stage``
    stage: Stage | None = None
    error_code: str | None = None  # of any stage, or of ``stage``
    custom_id: str | None = None
    name: str | None = None  # how it begins, letter by letter


def list_recordings(
    session: Session,
    caller: Caller,
    job_id: str,
    wanted: RecordingFilter,
    cursor: str | None,
    limit: int,
) -> RecordingPage:
    """Return a page of a job's recordings in order.

    Raises:
        NotFound: no such job.
        Problem: the cursor was not made here.
    """
    caller.job(session, job_id)
    after = -1 if cursor is None else cursors.decode_position(cursor)
    query = select(Recording).where(Recording.job_id == job_id, Recording.position > after)
    if wanted.custom_id is not None:
        query = query.where(Recording.custom_id == wanted.custom_id)
    if wanted.name is not None:
        # Not LIKE, which does not tell letter case apart in SQLite.
        start = func.substr(Recording.name, 1, len(wanted.name))
        query = query.where(start == wanted.name)
    if (wanted.state, wanted.stage, wanted.error_code) != (None, None, None):
        query = _with_runs(query, job_id, wanted, after, limit + 1)
    found = session.scalars(query.order_by(Recording.position).limit(limit + 1)).all()
    page = found[:limit]
    runs_of = _runs_of(session, page)
    artifacts_of = _artifacts_of(session, page, runs_of)
    return RecordingPage(
        recordings=[
            RecordingOut(
                **_facts(recording),
                runs=[RunBrief.model_validate(run) for run in runs_of[recording.id]],
                artifacts=artifacts_of[recording.id],
            )
            for recording in page
        ],
        next_cursor=cursors.encode(str(page[-1].position)) if len(found) > limit else None,
    )


def get_recording(session: Session, caller: Caller, recording_id: str) -> RecordingDetail:
    """Return a recording with its stage runs, their attempts and its artifacts. Raises NotFound."""
    recording = caller.recording(session, recording_id)
    job = session.get_one(Job, recording.job_id)
    params = parse_params(recording.params or job.params)
    runs = _runs_of(session, [recording])[recording_id]
    attempts: dict[str, list[AttemptOut]] = defaultdict(list)
    for attempt in session.scalars(
        select(Attempt)
        .where(Attempt.stage_run_id.in_([run.id for run in runs]))
        .order_by(Attempt.number)
    ):
        attempts[attempt.stage_run_id].append(AttemptOut.model_validate(attempt))
    return RecordingDetail(
        **_facts(recording),
        runs=[
            RunOut.model_validate(
                {
                    **{
                        name: getattr(run, name)
                        for name in RunOut.model_fields
                        if hasattr(run, name)
                    },
                    "parameters": params.of(Stage(run.stage)).model_dump(mode="json"),
                    "attempts": attempts[run.id],
                }
            )
            for run in runs
        ],
        artifacts=_artifacts_of(session, [recording], {recording_id: runs})[recording_id],
    )


def get_recording_facts(session: Session, caller: Caller, recording_id: str) -> RecordingFacts:
    """Return what is known about a recording itself. Raises NotFound."""
    return RecordingFacts.model_validate(caller.recording(session, recording_id))


def get_result(
    session: Session, caller: Caller, recording_id: str, kind: ArtifactKind
) -> StoredResult:
    """Return an artifact of a recording. Raises NotFound."""
    recording = caller.recording(session, recording_id)
    artifact = session.scalar(
        select(Artifact).where(Artifact.recording_id == recording_id, Artifact.kind == kind.value)
    )
    if artifact is None:
        raise NotFound(f"recording {recording_id} has no {kind} (yet)")
    return StoredResult(recording.name, artifact)


def _with_runs(
    query: Select[Recording], job_id: str, wanted: RecordingFilter, after: int, limit: int
) -> Select[Recording]:
    """Keep recordings with a run as wanted, by a walk along an index of runs where that suffices.

    The walk takes the first ``limit`` recordings, so whatever else is wanted must not come after.
    """
    possible = RunState if wanted.error_code is None else AT_FAULT
    states = [wanted.state] if wanted.state else list(possible)
    stages = [wanted.stage] if wanted.stage else PIPELINE
    if wanted.custom_id is None and wanted.name is None:
        walk = recordings_with_runs(job_id, states, after, limit, stages, wanted.error_code)
        found = walk.subquery()
        return query.join(found, found.c.recording_id == Recording.id)
    runs = select(StageRun.id).where(
        StageRun.recording_id == Recording.id,
        StageRun.stage.in_([stage.value for stage in stages]),
        StageRun.state.in_([state.value for state in states]),
    )
    if wanted.error_code is not None:
        runs = runs.where(StageRun.error_code == wanted.error_code)
    return query.where(runs.exists())


def _facts(recording: Recording) -> dict[str, Any]:
    return RecordingFacts.model_validate(recording).model_dump()


def _runs_of(session: Session, recordings: Sequence[Recording]) -> dict[str, list[StageRun]]:
    """Return the stage runs of each recording in pipeline order."""
    found: dict[str, list[StageRun]] = {recording.id: [] for recording in recordings}
    for run in session.scalars(select(StageRun).where(StageRun.recording_id.in_(found))):
        found[run.recording_id].append(run)
    for runs in found.values():
        runs.sort(key=lambda run: PIPELINE.index(Stage(run.stage)))
    return found


def _artifacts_of(
    session: Session, recordings: Sequence[Recording], runs_of: dict[str, list[StageRun]]
) -> dict[str, list[ArtifactOut]]:
    stages = {run.id: Stage(run.stage) for runs in runs_of.values() for run in runs}
    found: dict[str, list[ArtifactOut]] = {recording.id: [] for recording in recordings}
    for artifact in session.scalars(
        select(Artifact).where(Artifact.recording_id.in_(found)).order_by(Artifact.kind)
    ):
        found[artifact.recording_id].append(
            ArtifactOut(
                kind=ArtifactKind(artifact.kind),
                stage=stages[artifact.stage_run_id],
                media_type=artifact.media_type,
                size_bytes=artifact.size_bytes,
                sha256=artifact.sha256,
                href=f"/v1/recordings/{artifact.recording_id}/artifacts/{artifact.kind}",
            )
        )
    return found
