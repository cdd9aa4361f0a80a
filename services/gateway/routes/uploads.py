"""Uploads in parts: large files, resumable, straight into the object store where it offers that."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Annotated

from anyio import to_thread
from fastapi import Depends, Header, Path, Query, Request, Response

from services.gateway.access import Caller, Reader, Submitter
from services.gateway.bodies import Body
from services.gateway.context import Around, Surroundings, new_router
from services.gateway.idempotency import Idempotent
from services.gateway.json_bodies import described, read_model
from services.gateway.multipart import Uploads
from services.gateway.observe import MULTIPART
from services.gateway.problems import Problem
from services.gateway.source_schemas import (
    CompleteRequest,
    PartLinks,
    PartOut,
    UploadOut,
    UploadRequest,
)

SHA256 = r"^[0-9A-Fa-f]{64}$"
MAX_JSON_BYTES = 1 << 20
LINKS_AT_ONCE = 1_000
UploadId = Annotated[str, Path(max_length=64)]
PartNumber = Annotated[int, Query(ge=1, le=1 << 30)]

router = new_router()


def submitted(around: Around, caller: Submitter) -> Uploads:
    """Return the uploads of somebody who may change them."""
    return _uploads(around, caller)


def seen(around: Around, caller: Reader) -> Uploads:
    """Return the uploads of somebody who may look at them."""
    return _uploads(around, caller)


Submitted = Annotated[Uploads, Depends(submitted)]
Seen = Annotated[Uploads, Depends(seen)]


@router.post(
    "/uploads",
    status_code=HTTPStatus.CREATED,
    openapi_extra=described(UploadRequest),
)
async def post_upload(
    request: Request, response: Response, around: Around, uploads: Submitted, once: Idempotent
) -> UploadOut:
    """Begin an upload in parts. `parts` says how many there are, `part_bytes` how long each is."""

    def start(body: Body) -> UploadOut:
        wanted = read_model(body, UploadRequest, MAX_JSON_BYTES)
        return uploads.look(once.make(partial(uploads.start, wanted, once)))

    upload = await around.receiver.run(Body(request, around.receiver), start)
    response.headers["Location"] = f"/v1/uploads/{upload.id}"
    return upload


@router.get("/uploads/{upload_id}")
def get_upload(uploads: Seen, upload_id: UploadId) -> UploadOut:
    """Tell which parts have arrived."""
    return uploads.look(upload_id)


@router.get("/uploads/{upload_id}/parts")
def get_part_links(
    uploads: Submitted,
    upload_id: UploadId,
    first: Annotated[PartNumber, Query(alias="from")] = 1,
    last: Annotated[PartNumber | None, Query(alias="to")] = None,
) -> PartLinks:
    """Tell where to PUT parts `from` to `to`: at most 1,000 of them, by default 100."""
    most = first + (100 if last is None else LINKS_AT_ONCE) - 1
    return uploads.links(upload_id, first, most if last is None else min(last, most))


@router.put(
    "/uploads/{upload_id}/parts/{number}",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        }
    },
)
async def put_part(
    request: Request,
    around: Around,
    uploads: Submitted,
    upload_id: UploadId,
    number: Annotated[int, Path(ge=1, le=1 << 30)],
    x_content_sha256: Annotated[str | None, Header(pattern=SHA256)] = None,
) -> PartOut:
    """Take the body as one part, of exactly the size that part has. Sent again, it is replaced."""
    length = request.headers.get("content-length", "")
    body = Body(request, around.receiver)
    if not length or "transfer-encoding" in request.headers:
        raise Problem(
            HTTPStatus.LENGTH_REQUIRED, "length_required", "Send the part with a Content-Length."
        )
    take = partial(
        uploads.take_part,
        upload_id=upload_id,
        number=number,
        length=int(length),
        sha256=x_content_sha256,
    )
    part = await around.receiver.run(body, take)
    around.metrics.upload_bytes.inc(body.size_bytes)
    return part


@router.post(
    "/uploads/{upload_id}/complete",
    openapi_extra=described(CompleteRequest, required=False),
)
async def complete_upload(
    request: Request, around: Around, uploads: Submitted, upload_id: UploadId
) -> UploadOut:
    """Make one file of the parts, once all of them have arrived.

    Name the parts (`number`, `etag`) to have them compared with what has arrived; or send nothing.
    """

    def complete(body: Body) -> UploadOut:
        named = read_model(body, CompleteRequest, MAX_JSON_BYTES) if _has_body(request) else None
        if uploads.complete(upload_id, named or CompleteRequest()):
            around.metrics.recordings_stored.labels(MULTIPART).inc()
        return uploads.look(upload_id)

    return await around.receiver.run(Body(request, around.receiver), complete)


@router.delete("/uploads/{upload_id}", status_code=HTTPStatus.NO_CONTENT)
async def delete_upload(uploads: Submitted, upload_id: UploadId) -> None:
    """Give an upload up and remove what has arrived."""
    await to_thread.run_sync(uploads.abort, upload_id)


def _uploads(around: Surroundings, caller: Caller) -> Uploads:
    return Uploads(caller, around.settings, around.sessions, around.readers, around.store)


def _has_body(request: Request) -> bool:
    length = request.headers.get("content-length", "0")
    return "transfer-encoding" in request.headers or int(length) > 0
