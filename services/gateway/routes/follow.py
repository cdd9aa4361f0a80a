"""Server-sent events of a job."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import Header, Path, Response

from common.domain import JobEventKind
from services.gateway.access import Reader
from services.gateway.context import Around, new_router
from services.gateway.follow import MEDIA_TYPE, PROGRESS

LARGEST_ID = (1 << 63) - 1
EVENT = {  # as OpenAPI 3.2 describes the items of a stream
    "type": "object",
    "required": ["data", "event"],
    "properties": {
        "id": {"type": "string", "pattern": "^[0-9]+$"},
        "event": {"enum": [*JobEventKind, PROGRESS]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
EXAMPLE = """\
id: 17
event: job.closed
data: {"type":"job.closed","timestamp":"2026-11-20T16:00:00.000Z","data":{"name":"harbour 2026"}}

event: progress
data: {"state":"closed","recordings":200000,"audio_s_done":3600.0,"eta_s":86400.0}

"""

router = new_router()


@router.get(
    "/jobs/{job_id}/events",
    response_class=Response,
    responses={
        200: {
            "description": "The events of the job as they happen.",
            "content": {MEDIA_TYPE: {"itemSchema": EVENT, "example": EXAMPLE}},
        },
        204: {"description": "The job has ended, and the client knows all that happened."},
    },
)
async def follow_job(
    around: Around,
    caller: Reader,
    job_id: Annotated[str, Path(max_length=64)],
    last_event_id: Annotated[int | None, Header(ge=0, le=LARGEST_ID)] = None,
) -> Response:
    """Follow a job: what has happened and happens to it, and its counters whenever they change.

    Milestones have an `id`, and begin with the first, or the one after `Last-Event-ID`; `progress`
    has none. The stream ends when the job has ended, and now and then before: come back with
    `Last-Event-ID`, as an `EventSource` does by itself. 204 tells it to stop.
    """
    stream = await around.streams.open(caller, job_id, last_event_id)
    return Response(status_code=HTTPStatus.NO_CONTENT) if stream is None else stream
