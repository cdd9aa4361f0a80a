"""What the gateway reads from the database, as it goes over the wire."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from common.db import Artifact, Attempt, Job, Recording, StageRun
from common.domain import ArtifactKind, JobState, RunState, Stage
from common.errors import NotFound
from common.params import parse_params
from services.gateway import cursors
from services.gateway.access import Caller
from services.gateway.schemas import (
    ArtifactOut,
    AttemptOut,
    JobOut,
    JobPage,
    RecordingDetail,
    RecordingFacts,
    RecordingOut,
    RecordingPage,
    RunBrief,
    RunOut,
)
from services.gateway.walks import recordings_with_runs

PIPELINE = list(Stage)


@dataclass(frozen=True)
class StoredResult:
    """An artifact and the name of the recording it belongs to."""

    recording_name: str
    artifact: Artifact


def get_job(session: Session, caller: Caller, job_id: str) -> JobOut:
    """Return a job. Raises NotFound."""
    return _job_out(caller.job(session, job_id))


def list_jobs(
    session: Session, caller: Caller, state: JobState | None, cursor: str | None, limit: int
) -> JobPage:
    """Return a page of jobs, newest first."""
    mine = (caller.owns(Job.owner), Job.deleted_at.is_(None))
    query = select(Job).where(*mine).order_by(Job.id.desc()).limit(limit + 1)
    if state is not None:
        query = query.where(Job.state == state.value)
    if cursor is not None:
        query = query.where(Job.id < cursors.decode(cursor))
    jobs = session.scalars(query).all()
    more = len(jobs) > limit
    return JobPage(
        jobs=[_job_out(job) for job in jobs[:limit]],
        next_cursor=cursors.encode(jobs[limit - 1].id) if more else None,
    )


def list_recordings(
    session: Session,
    caller: Caller,
    job_id: str,
    state: RunState | None,
    stage: Stage | None,
    cursor: str | None,
    limit: int,
) -> RecordingPage:
    """Return a page of a job's recordings: all, or those with a run in ``state`` (of ``stage``).

    Raises:
        NotFound: no such job.
        Problem: the cursor was not made here.
    """
    caller.job(session, job_id)
    after = -1 if cursor is None else cursors.decode_position(cursor)
    query = select(Recording).where(Recording.job_id == job_id, Recording.position > after)
    if state is not None or stage is not None:
        states = [state] if state else list(RunState)
        stages = [stage] if stage else PIPELINE
        walk = recordings_with_runs(job_id, states, after, limit + 1, stages).subquery()
        query = query.join(walk, walk.c.recording_id == Recording.id)
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


def _job_out(job: Job) -> JobOut:
    remaining_s = job.audio_s_total - job.audio_s_done
    ended = job.state in (JobState.COMPLETED, JobState.CANCELLED)
    eta_s = None
    if not ended and job.counted_at is not None:
        if remaining_s <= 0.0:
            eta_s = 0.0
        elif job.rate:
            eta_s = remaining_s / job.rate
    out = {name: getattr(job, name) for name in JobOut.model_fields if name != "eta_s"}
    return JobOut.model_validate({**out, "eta_s": eta_s})


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
