"""Jobs: make, change, look at."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Annotated

from anyio import to_thread
from fastapi import Request, Response
from pydantic import AwareDatetime, BeforeValidator

from common import logs
from common.domain import JobState, Priority
from services.gateway import changes, job_queries, service
from services.gateway.access import Caller, Reader, Submitter
from services.gateway.bodies import Body
from services.gateway.context import (
    Around,
    Cursor,
    FilterText,
    Limit,
    Surroundings,
    new_router,
)
from services.gateway.idempotency import Idempotent
from services.gateway.job_queries import JobFilter
from services.gateway.job_schemas import (
    JobChange,
    JobOut,
    JobPage,
    JobRequest,
    RejectionPage,
    RetryOut,
)
from services.gateway.json_bodies import described, read_model
from services.gateway.problems import Problem
from services.gateway.uploads import MAX_JSON_BYTES, Taker

FORM = "multipart/form-data"
NUMBER = re.compile(r"[+-]?[\d.]+")


def _no_number(text: object) -> object:
    """Refuse what pydantic would take for seconds since 1970."""
    if isinstance(text, str) and NUMBER.fullmatch(text):
        raise ValueError("not a date and time as ISO 8601 has it")
    return text


Moment = Annotated[AwareDatetime | None, BeforeValidator(_no_number)]

router = new_router()


@router.post(
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
async def post_job(
    request: Request, response: Response, around: Around, caller: Submitter, once: Idempotent
) -> JobOut:
    """Create an open job (JSON), or a whole job with its recordings (form)."""
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    body = Body(request, around.receiver)
    taker = Taker(
        caller, once, around.settings, around.sessions, around.store, around.metrics, around.wording
    )
    if media_type == FORM:
        take: Callable[[Body], str] = partial(taker.take_form, content_type=content_type)
    elif media_type == "application/json":
        take = taker.take_job
    else:
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            f"Send application/json or {FORM}.",
        )
    job_id = await around.receiver.run(body, lambda body: once.make(partial(take, body)))
    logs.bind_on(job_id=job_id)
    if media_type == FORM:
        around.metrics.upload_bytes.inc(body.size_bytes)
    response.headers["Location"] = f"/v1/jobs/{job_id}"
    return await to_thread.run_sync(_job, around, caller, job_id)


@router.post("/jobs/{job_id}/close")
def close_job(around: Around, caller: Submitter, job_id: str) -> JobOut:
    """Let the job take no more recordings. It completes when all of them have ended."""
    service.close_job(around.sessions, caller, job_id)
    return _job(around, caller, job_id)


@router.post("/jobs/{job_id}/cancel")
def cancel_job(around: Around, caller: Submitter, job_id: str) -> JobOut:
    """Cancel what has not ended yet. Results that are there stay."""
    changes.cancel_job(around.sessions, caller, job_id)
    return _job(around, caller, job_id)


@router.post("/jobs/{job_id}/retry")
def retry_job(around: Around, caller: Submitter, job_id: str) -> RetryOut:
    """Put stage runs that failed, were quarantined or skipped back to work."""
    retried = changes.retry_job(around.sessions, caller, job_id)
    job = _job(around, caller, job_id)
    return RetryOut(job=job, retried=retried.runs, entries=retried.entries, sources=retried.sources)


@router.post("/jobs/{job_id}/pause")
def pause_job(around: Around, caller: Submitter, job_id: str) -> JobOut:
    """Give nothing more of the job to workers. What they hold is done to its end."""
    changes.pause_job(around.sessions, caller, job_id)
    return _job(around, caller, job_id)


@router.post("/jobs/{job_id}/resume")
def resume_job(around: Around, caller: Submitter, job_id: str) -> JobOut:
    """Go on with a paused job."""
    changes.resume_job(around.sessions, caller, job_id)
    return _job(around, caller, job_id)


@router.patch("/jobs/{job_id}", openapi_extra=described(JobChange))
async def change_job(request: Request, around: Around, caller: Submitter, job_id: str) -> JobOut:
    """Change the name, the priority, the deadline or the retention time."""

    def change(body: Body) -> JobOut:
        asked = read_model(body, JobChange, MAX_JSON_BYTES)
        service.change_job(around.sessions, caller, job_id, asked)
        return _job(around, caller, job_id)

    return await around.receiver.run(Body(request, around.receiver), change)


@router.delete("/jobs/{job_id}", status_code=HTTPStatus.ACCEPTED, response_class=Response)
def delete_job(around: Around, caller: Submitter, job_id: str) -> Response:
    """Delete the job with all it holds. It is gone at once; what it held goes soon after."""
    changes.delete_job(around.sessions, caller, job_id)
    return Response(status_code=HTTPStatus.ACCEPTED)


@router.get("/jobs")
def list_jobs(
    around: Around,
    caller: Reader,
    state: JobState | None = None,
    name: FilterText = None,
    priority: Priority | None = None,
    created_after: Moment = None,
    created_before: Moment = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> JobPage:
    """List jobs, newest first: all, or those that fit. ``name`` is a part of the name."""
    wanted = JobFilter(state, name, priority, created_after, created_before)
    with around.readers() as session:
        return job_queries.list_jobs(session, caller, wanted, cursor, limit)


@router.get("/jobs/{job_id}")
def get_job(around: Around, caller: Reader, job_id: str) -> JobOut:
    """Tell how far a job is."""
    return _job(around, caller, job_id)


@router.get("/jobs/{job_id}/rejections")
def list_rejections(
    around: Around,
    caller: Reader,
    job_id: str,
    error_code: FilterText = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> RejectionPage:
    """List the entries of a job's sources that did not become recordings, and why."""
    with around.readers() as session:
        return job_queries.list_rejections(session, caller, job_id, error_code, cursor, limit)


def _job(around: Surroundings, caller: Caller, job_id: str) -> JobOut:
    with around.readers() as session:
        return job_queries.get_job(session, caller, job_id)
