"""Sources: archives, manifests, prefixes and lists of addresses that hold a job's recordings."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Header, Path, Query, Request, Response

from common import logs
from common.names import CleanName
from services.gateway.access import Caller, Reader, Submitter
from services.gateway.bodies import Body
from services.gateway.context import Around, Cursor, Limit, Surroundings, new_router
from services.gateway.idempotency import Idempotent
from services.gateway.json_bodies import MEDIA_TYPE as JSON
from services.gateway.json_bodies import described, media_type_of, read_model
from services.gateway.problems import Problem, too_large
from services.gateway.source_schemas import SourceOut, SourcePage, SourceRequest
from services.gateway.source_service import Sources

SHA256 = r"^[0-9A-Fa-f]{64}$"
MAX_JSON_BYTES = 32 << 20
ARCHIVES = (
    "application/zip",
    "application/x-zip-compressed",
    "application/x-tar",
    "application/gzip",
    "application/x-gzip",
    "application/zstd",
    "application/octet-stream",
)
MANIFESTS = ("application/x-ndjson", "application/jsonl", "text/csv")
ID = Annotated[str, Path(max_length=64)]

router = new_router()


def submitted(around: Around, caller: Submitter) -> Sources:
    """Return the sources of somebody who may add some."""
    return _sources(around, caller)


def seen(around: Around, caller: Reader) -> Sources:
    """Return the sources of somebody who may look at them."""
    return _sources(around, caller)


Submitted = Annotated[Sources, Depends(submitted)]
Seen = Annotated[Sources, Depends(seen)]


def _bodies() -> dict[str, object]:
    """Return what OpenAPI says of the bodies that are taken."""
    extra = described(SourceRequest)
    for media_type in (*ARCHIVES, *MANIFESTS):
        extra["requestBody"]["content"][media_type] = {
            "schema": {"type": "string", "format": "binary"}
        }
    return extra


@router.post("/jobs/{job_id}/sources", status_code=HTTPStatus.CREATED, openapi_extra=_bodies())
async def post_source(
    request: Request,
    response: Response,
    around: Around,
    sources: Submitted,
    once: Idempotent,
    job_id: ID,
    name: Annotated[CleanName | None, Query()] = None,
    all_files: Annotated[
        bool, Query(description="Take entries without the name of an audio file as well.")
    ] = False,
    x_content_sha256: Annotated[str | None, Header(pattern=SHA256)] = None,
) -> SourceOut:
    """Add something that holds many recordings to an open job.

    The body is an archive or a manifest as it is (`name`, `all_files` and `X-Content-SHA256` belong
    to it), or JSON that says where the recordings are. It is read entry by entry, beginning soon:
    an entry that cannot become a recording becomes a rejection and the rest goes on.
    """
    media_type = media_type_of(request.headers.get("content-type", ""))
    if int(request.headers.get("content-length", "0")) > around.settings.max_upload_bytes:
        raise too_large(around.settings.max_upload_bytes)

    def take(body: Body) -> str:
        if media_type == JSON:
            wanted = read_model(body, SourceRequest, MAX_JSON_BYTES)
            return sources.take_request(wanted, once, job_id)
        if media_type in MANIFESTS:
            return sources.take_manifest(
                body, once, job_id=job_id, name=name or "manifest", sha256=x_content_sha256
            )
        return sources.take_archive(
            body,
            once,
            job_id=job_id,
            name=name or "archive",
            all_files=all_files,
            sha256=x_content_sha256,
        )

    def make(body: Body) -> SourceOut:
        return sources.get(job_id, once.make(partial(take, body)))

    if media_type not in (JSON, *ARCHIVES, *MANIFESTS):
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            f"Send {JSON}, an archive ({', '.join(ARCHIVES)}) or a manifest"
            f" ({', '.join(MANIFESTS)}).",
        )
    body = Body(request, around.receiver)
    source = await around.receiver.run(body, make)
    logs.bind_on(source_id=source.id)
    if media_type != JSON:
        around.metrics.upload_bytes.inc(body.size_bytes)
    response.headers["Location"] = f"/v1/jobs/{job_id}/sources/{source.id}"
    return source


@router.get("/jobs/{job_id}/sources")
def list_sources(
    sources: Seen, job_id: ID, cursor: Cursor = None, limit: Limit = 100
) -> SourcePage:
    """List a job's sources, oldest first."""
    return sources.list(job_id, cursor, limit)


@router.get("/jobs/{job_id}/sources/{source_id}")
def get_source(sources: Seen, job_id: ID, source_id: ID) -> SourceOut:
    """Tell how far a source is read, or why it could not be."""
    return sources.get(job_id, source_id)


def _sources(around: Surroundings, caller: Caller) -> Sources:
    return Sources(caller, around.settings, around.sessions, around.readers, around.store)
