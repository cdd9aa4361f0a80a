"""The routes: what comes in is checked here, the work is done elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as CheckTimeout
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Annotated

import redis
from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import RedirectResponse
from prometheus_client import CollectorRegistry
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from common import results
from common.db import Job
from common.domain import ArtifactKind, JobState, RunState, Stage
from common.errors import SoundmillError
from common.metrics import expose
from common.settings import Settings
from common.storage import ObjectStore
from services.gateway import downloads, queries, service
from services.gateway.bodies import Body, Receiver
from services.gateway.names import ascii_name, content_disposition, download_name
from services.gateway.observe import HttpMetrics
from services.gateway.problems import MEDIA_TYPE as PROBLEM_TYPE
from services.gateway.problems import Problem
from services.gateway.schemas import (
    Health,
    JobOut,
    JobPage,
    JobRequest,
    ProblemOut,
    Ready,
    RecordingDetail,
    RecordingFacts,
    RecordingPage,
    RetryOut,
)
from services.gateway.uploads import Taker, too_large

CHECK_TIMEOUT_S = 3.0
PRESIGNED_FOR_S = 900
FORM = "multipart/form-data"
SHA256 = r"^[0-9A-Fa-f]{64}$"


@dataclass(frozen=True)
class Surroundings:
    """The outside world of the gateway."""

    settings: Settings
    sessions: sessionmaker[Session]
    readers: sessionmaker[Session]
    store: ObjectStore
    redis: redis.Redis
    registry: CollectorRegistry
    metrics: HttpMetrics
    receiver: Receiver = field(default_factory=Receiver)
    checks: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 6, "check"))

    @property
    def taker(self) -> Taker:
        return Taker(self.settings, self.sessions, self.store)


def surroundings(request: Request) -> Surroundings:
    """Return what ``create_app`` put into the application."""
    around: Surroundings = request.app.state.surroundings
    return around


Around = Annotated[Surroundings, Depends(surroundings)]
Limit = Annotated[int, Query(ge=1, le=500)]
Cursor = Annotated[str | None, Query(max_length=200)]

problem = {"model": ProblemOut, "content": {PROBLEM_TYPE: {}}, "description": "A problem."}
v1 = APIRouter(prefix="/v1", responses={"default": problem})
operations = APIRouter()


@v1.post(
    "/jobs",
    status_code=HTTPStatus.CREATED,
    response_model=JobOut,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": JobRequest.model_json_schema()},
                FORM: {
                    "schema": {
                        "type": "object",
                        "required": ["file"],
                        "properties": {
                            "file": {
                                "type": "array",
                                "items": {"type": "string", "format": "binary"},
                            },
                            "name": {"type": "string"},
                            "priority": {"type": "string"},
                            "stages": {"type": "string"},
                            "params": {"type": "string"},
                        },
                    }
                },
            },
        }
    },
)
async def post_job(request: Request, response: Response, around: Around) -> JobOut:
    """Create an open job (JSON), or a whole job with its recordings (form)."""
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    body = Body(request, around.receiver)
    if media_type == FORM:
        take: Callable[[Body], str] = partial(around.taker.take_form, content_type=content_type)
    elif media_type == "application/json":
        take = around.taker.take_job
    else:
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            f"Send application/json or {FORM}.",
        )
    job_id = await around.receiver.run(body, take)
    if media_type == FORM:
        around.metrics.upload_bytes.inc(body.size_bytes)
    response.headers["Location"] = f"/v1/jobs/{job_id}"
    return await to_thread.run_sync(get_job, around, job_id)


@v1.post("/jobs/{job_id}/recordings", status_code=HTTPStatus.CREATED)
async def post_recording(
    request: Request,
    response: Response,
    around: Around,
    job_id: str,
    name: str,
    x_content_sha256: Annotated[str | None, Header(pattern=SHA256)] = None,
) -> RecordingFacts:
    """Add the body, as it is, to an open job. Work on it begins at once."""
    limit = around.settings.max_upload_bytes
    body = Body(request, around.receiver)
    if int(request.headers.get("content-length", "0")) > limit:
        raise too_large(limit)
    take = partial(around.taker.take_recording, job_id=job_id, name=name, sha256=x_content_sha256)
    recording_id = await around.receiver.run(body, take)
    around.metrics.upload_bytes.inc(body.size_bytes)
    response.headers["Location"] = f"/v1/recordings/{recording_id}"
    return await to_thread.run_sync(_facts, around, recording_id)


@v1.post("/jobs/{job_id}/close")
def close_job(around: Around, job_id: str) -> JobOut:
    """Let the job take no more recordings. It completes when all of them have ended."""
    service.close_job(around.sessions, job_id)
    return get_job(around, job_id)


@v1.post("/jobs/{job_id}/cancel")
def cancel_job(around: Around, job_id: str) -> JobOut:
    """Cancel what has not ended yet. Results that are there stay."""
    service.cancel_job(around.sessions, job_id)
    return get_job(around, job_id)


@v1.post("/jobs/{job_id}/retry")
def retry_job(around: Around, job_id: str) -> RetryOut:
    """Put stage runs that failed, were quarantined or skipped back to work."""
    retried = service.retry_job(around.sessions, job_id)
    return RetryOut(job=get_job(around, job_id), retried=retried)


@v1.get("/jobs")
def list_jobs(
    around: Around, state: JobState | None = None, cursor: Cursor = None, limit: Limit = 50
) -> JobPage:
    """List jobs, newest first."""
    with around.readers() as session:
        return queries.list_jobs(session, state, cursor, limit)


@v1.get("/jobs/{job_id}")
def get_job(around: Around, job_id: str) -> JobOut:
    """Tell how far a job is."""
    with around.readers() as session:
        return queries.get_job(session, job_id)


@v1.get("/jobs/{job_id}/recordings")
def list_recordings(
    around: Around,
    job_id: str,
    state: RunState | None = None,
    stage: Stage | None = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> RecordingPage:
    """List a job's recordings in order: all, or those with a stage run in a state."""
    with around.readers() as session:
        return queries.list_recordings(session, job_id, state, stage, cursor, limit)


@v1.get("/recordings/{recording_id}")
def get_recording(around: Around, recording_id: str) -> RecordingDetail:
    """Tell everything about a recording: stage runs, attempts with measurements, artifacts."""
    with around.readers() as session:
        return queries.get_recording(session, recording_id)


@v1.head(
    "/recordings/{recording_id}/artifacts/{kind}",
    response_class=Response,
    include_in_schema=False,
)
@v1.get("/recordings/{recording_id}/artifacts/{kind}", response_class=Response)
def get_artifact(
    request: Request, around: Around, recording_id: str, kind: ArtifactKind, redirect: bool = False
) -> Response:
    """Download an artifact: whole, a range of it, or (``redirect``) from the store itself."""
    found = _result(around, recording_id, kind)
    artifact = found.artifact
    suffix = artifact.object_key.rpartition(".")[2]
    name = download_name(found.recording_name, f"{kind}.{suffix}")
    if redirect:
        url = around.store.presigned_get(artifact.object_key, PRESIGNED_FOR_S, ascii_name(name))
        if url is not None:
            return RedirectResponse(url, HTTPStatus.TEMPORARY_REDIRECT)
    return downloads.answer(
        request,
        around.store,
        artifact.object_key,
        size_bytes=artifact.size_bytes,
        etag=f'"{artifact.sha256}"',
        media_type=artifact.media_type,
        disposition=content_disposition(name),
    )


@v1.get("/recordings/{recording_id}/events.json", response_class=Response)
def get_events_json(around: Around, recording_id: str) -> Response:
    """Return events and tags as JSON."""
    return _events(around, recording_id, results.events_json, "json", "application/json")


@v1.get("/recordings/{recording_id}/events.csv", response_class=Response)
def get_events_csv(around: Around, recording_id: str) -> Response:
    """Return events as CSV."""
    return _events(around, recording_id, results.events_csv, "csv", "text/csv; charset=utf-8")


@v1.get("/recordings/{recording_id}/events.txt", response_class=Response)
def get_events_txt(around: Around, recording_id: str) -> Response:
    """Return events as a label track of Audacity."""
    return _events(
        around, recording_id, results.audacity_labels, "txt", "text/plain; charset=utf-8"
    )


@v1.get("/recordings/{recording_id}/manifest", response_class=Response)
def get_manifest(around: Around, recording_id: str) -> Response:
    """Tell where the results come from: input hash, model digests, parameters, versions."""
    detail = get_recording(around, recording_id)
    name = download_name(detail.name, "manifest.json")
    return Response(
        results.manifest(detail.model_dump(mode="json")),
        media_type="application/json",
        headers={"Content-Disposition": content_disposition(name)},
    )


@operations.get("/health")
def health() -> Health:
    """Tell that the process answers."""
    return Health()


@operations.get("/ready", responses={503: problem})
def ready(around: Around) -> Ready:
    """Tell whether database, Redis and object store answer; 503 says which does not."""
    checks = {"database": _check_database, "redis": _check_redis, "store": _check_store}
    waiting = {name: around.checks.submit(check, around) for name, check in checks.items()}
    found = {}
    for name, check in waiting.items():
        try:
            found[name] = check.result(CHECK_TIMEOUT_S)
        except CheckTimeout:
            check.cancel()
            found[name] = f"no answer within {CHECK_TIMEOUT_S:.0f} s"
        except SoundmillError as error:
            found[name] = str(error)
        except Exception as error:  # whatever a driver raises: its kind says enough
            found[name] = type(error).__name__
    failed = [name for name, outcome in found.items() if outcome != "ok"]
    if failed:
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "not_ready",
            f"Not usable: {', '.join(failed)}.",
            checks=found,
        )
    return Ready(status="ready", checks=found)


@operations.get("/metrics", response_class=Response)
def metrics(around: Around) -> Response:
    """Return the metrics as Prometheus reads them."""
    page = expose(around.registry)
    return Response(page.body, media_type=page.media_type)


def _facts(around: Surroundings, recording_id: str) -> RecordingFacts:
    with around.readers() as session:
        return queries.get_recording_facts(session, recording_id)


def _result(around: Surroundings, recording_id: str, kind: ArtifactKind) -> queries.StoredResult:
    with around.readers() as session:
        return queries.get_result(session, recording_id, kind)


def _events(
    around: Surroundings,
    recording_id: str,
    render: Callable[[results.Events], str],
    suffix: str,
    media_type: str,
) -> Response:
    found = _result(around, recording_id, ArtifactKind.EVENTS)
    with around.store.open(found.artifact.object_key) as blocks:
        text = render(results.parse_events(b"".join(blocks)))
    name = download_name(found.recording_name, f"events.{suffix}")
    return Response(
        text,
        media_type=media_type,
        headers={"Content-Disposition": content_disposition(name)},
    )


def _check_database(around: Surroundings) -> str:
    with around.readers() as session:
        session.scalar(select(Job.id).limit(1))
    return "ok"


def _check_redis(around: Surroundings) -> str:
    around.redis.ping()
    return "ok"


def _check_store(around: Surroundings) -> str:
    around.store.check()
    return "ok"
