"""Recordings: add one, list and look at them."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from anyio import to_thread
from fastapi import Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from common import logs
from common.domain import RunState, Stage
from common.names import CustomId, Labels
from services.gateway import queries
from services.gateway.access import Caller, Reader, Submitter
from services.gateway.bodies import Body
from services.gateway.context import Around, Cursor, FilterText, Limit, Surroundings, new_router
from services.gateway.idempotency import Idempotent
from services.gateway.problems import too_large
from services.gateway.queries import RecordingFilter
from services.gateway.schemas import RecordingDetail, RecordingFacts, RecordingPage
from services.gateway.service import Described
from services.gateway.uploads import Taker

SHA256 = r"^[0-9A-Fa-f]{64}$"

LABELS: TypeAdapter[dict[str, str]] = TypeAdapter(Labels)
PARAMS: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])

T = TypeVar("T")

router = new_router()


@router.post(
    "/jobs/{job_id}/recordings",
    status_code=HTTPStatus.CREATED,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        }
    },
)
async def post_recording(
    request: Request,
    response: Response,
    around: Around,
    caller: Submitter,
    once: Idempotent,
    job_id: str,
    name: str,
    custom_id: Annotated[CustomId | None, Query()] = None,
    labels: Annotated[str | None, Query(description="JSON: an object of texts.")] = None,
    params: Annotated[
        str | None, Query(description="JSON: changes to the job's parameters.")
    ] = None,
    x_content_sha256: Annotated[str | None, Header(pattern=SHA256)] = None,
) -> RecordingFacts:
    """Add the body, as it is, to an open job. Work on it begins at once."""
    limit = around.settings.max_upload_bytes
    body = Body(request, around.receiver)
    if int(request.headers.get("content-length", "0")) > limit:
        raise too_large(limit)
    taker = Taker(
        caller, once, around.settings, around.sessions, around.store, around.metrics, around.wording
    )
    described = Described(
        custom_id, _from_json(LABELS, "labels", labels), _from_json(PARAMS, "params", params)
    )

    def take(body: Body) -> str:
        return once.make(
            partial(taker.take_recording, body, job_id, name, x_content_sha256, described)
        )

    recording_id = await around.receiver.run(body, take)
    logs.bind_on(recording_id=recording_id)
    around.metrics.upload_bytes.inc(body.size_bytes)
    response.headers["Location"] = f"/v1/recordings/{recording_id}"
    return await to_thread.run_sync(_facts, around, caller, recording_id)


@router.get("/jobs/{job_id}/recordings")
def list_recordings(
    around: Around,
    caller: Reader,
    job_id: str,
    state: RunState | None = None,
    stage: Stage | None = None,
    error_code: FilterText = None,
    custom_id: FilterText = None,
    name: FilterText = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> RecordingPage:
    """List a job's recordings in order: all, or those that fit.

    ``state`` and ``error_code`` are those of any stage, or of ``stage``; ``name`` is how it begins.
    """
    wanted = RecordingFilter(state, stage, error_code, custom_id, name)
    with around.readers() as session:
        return queries.list_recordings(session, caller, job_id, wanted, cursor, limit)


@router.get("/recordings/{recording_id}")
def get_recording(around: Around, caller: Reader, recording_id: str) -> RecordingDetail:
    """Tell everything about a recording: stage runs, attempts with measurements, artifacts."""
    with around.readers() as session:
        return queries.get_recording(session, caller, recording_id)


def _from_json(kind: TypeAdapter[T], name: str, text: str | None) -> T | None:
    try:
        return None if text is None else kind.validate_json(text)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        located = [{**fault, "loc": ("query", name, *fault["loc"])} for fault in faults]
        raise RequestValidationError(located) from error


def _facts(around: Surroundings, caller: Caller, recording_id: str) -> RecordingFacts:
    with around.readers() as session:
        return queries.get_recording_facts(session, caller, recording_id)
