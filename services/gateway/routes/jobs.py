"""Jobs: make, change, look at."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from http import HTTPStatus

from anyio import to_thread
from fastapi import Request, Response

from common.domain import JobState
from services.gateway import changes, queries, service
from services.gateway.access import Caller, Reader, Submitter
from services.gateway.bodies import Body
from services.gateway.context import Around, Cursor, Limit, Surroundings, new_router
from services.gateway.problems import Problem
from services.gateway.schemas import JobOut, JobPage, JobRequest, RetryOut
from services.gateway.uploads import Taker

FORM = "multipart/form-data"

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
    request: Request, response: Response, around: Around, caller: Submitter
) -> JobOut:
    """Create an open job (JSON), or a whole job with its recordings (form)."""
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    body = Body(request, around.receiver)
    taker = Taker(caller, around.settings, around.sessions, around.store)
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
    job_id = await around.receiver.run(body, take)
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
    return RetryOut(job=_job(around, caller, job_id), retried=retried.runs)


@router.get("/jobs")
def list_jobs(
    around: Around,
    caller: Reader,
    state: JobState | None = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> JobPage:
    """List jobs, newest first."""
    with around.readers() as session:
        return queries.list_jobs(session, caller, state, cursor, limit)


@router.get("/jobs/{job_id}")
def get_job(around: Around, caller: Reader, job_id: str) -> JobOut:
    """Tell how far a job is."""
    return _job(around, caller, job_id)


def _job(around: Surroundings, caller: Caller, job_id: str) -> JobOut:
    with around.readers() as session:
        return queries.get_job(session, caller, job_id)
