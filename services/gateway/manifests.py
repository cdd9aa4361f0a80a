"""Where results come from: hash of the input, digests of the models, parameters, versions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from common.domain import Outcome, Stage
from common.formats.tables import iso_time
from common.params import parse_params
from common.tables import Artifact, Attempt, Job, Recording, StageRun

MANIFEST_VERSION = 1
PIPELINE = list(Stage)
DONE = (Outcome.SUCCEEDED.value, Outcome.REUSED.value)
FACTS = (
    "id",
    "job_id",
    "custom_id",
    "name",
    "labels",
    "sha256",
    "size_bytes",
    "duration_s",
    "sample_rate",
    "channels",
)


def manifests(
    session: Session, job: Job, recordings: Sequence[Recording]
) -> Iterator[dict[str, Any]]:
    """Yield the manifest of each of a job's ``recordings``, in their order."""
    runs: dict[str, list[StageRun]] = {recording.id: [] for recording in recordings}
    for run in session.scalars(select(StageRun).where(StageRun.recording_id.in_(runs))):
        runs[run.recording_id].append(run)
    ids = [run.id for found in runs.values() for run in found]
    attempts = _last_done(session, ids)
    artifacts: dict[str, list[Artifact]] = {run_id: [] for run_id in ids}
    for artifact in session.scalars(
        select(Artifact).where(Artifact.recording_id.in_(runs)).order_by(Artifact.kind)
    ):
        artifacts[artifact.stage_run_id].append(artifact)
    software = version("soundmill")
    job_params = parse_params(job.params)
    for recording in recordings:
        params = job_params if recording.params is None else parse_params(recording.params)
        stages = sorted(runs[recording.id], key=lambda run: PIPELINE.index(Stage(run.stage)))
        yield {
            "version": MANIFEST_VERSION,
            "soundmill": software,
            "recording": {name: getattr(recording, name) for name in FACTS},
            "stages": [
                {
                    **_stage(run, attempts.get(run.id)),
                    "parameters": params.of(Stage(run.stage)).model_dump(mode="json"),
                    "artifacts": [_artifact(artifact) for artifact in artifacts[run.id]],
                }
                for run in stages
            ],
        }


def _last_done(session: Session, run_ids: list[str]) -> dict[str, Attempt]:
    """Return the newest attempt of each run that led to its result."""
    query = select(Attempt).where(Attempt.stage_run_id.in_(run_ids), Attempt.outcome.in_(DONE))
    return {
        attempt.stage_run_id: attempt
        for attempt in session.scalars(query.order_by(Attempt.stage_run_id, Attempt.number))
    }


def _stage(run: StageRun, last: Attempt | None) -> dict[str, Any]:
    error = None
    if run.error_code is not None:
        error = {"code": run.error_code, "detail": run.error_detail}
    return {
        "stage": run.stage,
        "state": run.state,
        "finished_at": None if run.finished_at is None else iso_time(run.finished_at),
        "idempotency_key": run.idempotency_key,
        "model_digest": last and last.model_digest,
        "device": last and last.device,
        "result": run.result and {k: v for k, v in run.result.items() if k != "found"},
        "error": error,
    }


def _artifact(artifact: Artifact) -> dict[str, Any]:
    return {
        "kind": artifact.kind,
        "media_type": artifact.media_type,
        "size_bytes": artifact.size_bytes,
        "sha256": artifact.sha256,
    }
