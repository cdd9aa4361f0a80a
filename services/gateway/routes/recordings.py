"""Recordings: add one, list and look at them."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Annotated

from anyio import to_thread
from fastapi import Header, Request, Response

from common.domain import RunState, Stage
from services.gateway import queries
from services.gateway.access import Caller, Reader, Submitter
from services.gateway.bodies import Body
from services.gateway.context import Around, Cursor, Limit, Surroundings, new_router
from services.gateway.schemas import RecordingDetail, RecordingFacts, RecordingPage
from services.gateway.uploads import Taker, too_large

SHA256 = r"^[0-9A-Fa-f]{64}$"

router = new_router()


@router.post("/jobs/{job_id}/recordings", status_code=HTTPStatus.CREATED)
async def post_recording(
    request: Request,
    response: Response,
    around: Around,
    caller: Submitter,
    job_id: str,
    name: str,
    x_content_sha256: Annotated[str | None, Header(pattern=SHA256)] = None,
) -> RecordingFacts:
    """Add the body, as it is, to an open job. Work on it begins at once."""
    limit = around.settings.max_upload_bytes
    body = Body(request, around.receiver)
    if int(request.headers.get("content-length", "0")) > limit:
        raise too_large(limit)
    taker = Taker(caller, around.settings, around.sessions, around.store)
    take = partial(taker.take_recording, job_id=job_id, name=name, sha256=x_content_sha256)
    recording_id = await around.receiver.run(body, take)
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
    cursor: Cursor = None,
    limit: Limit = 100,
) -> RecordingPage:
    """List a job's recordings in order: all, or those with a stage run in a state."""
    with around.readers() as session:
        return queries.list_recordings(session, caller, job_id, state, stage, cursor, limit)


@router.get("/recordings/{recording_id}")
def get_recording(around: Around, caller: Reader, recording_id: str) -> RecordingDetail:
    """Tell everything about a recording: stage runs, attempts with measurements, artifacts."""
    with around.readers() as session:
        return queries.get_recording(session, caller, recording_id)


def _facts(around: Surroundings, caller: Caller, recording_id: str) -> RecordingFacts:
    with around.readers() as session:
        return queries.get_recording_facts(session, caller, recording_id)
