"""Artifacts over HTTP: ranges, entity tags, streaming from the store (RFC 9110)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http import HTTPStatus

from anyio import CancelScope, to_thread
from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from common.storage import ObjectStore
from services.gateway.problems import Problem

RANGE = re.compile(r"bytes=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*")


@dataclass(frozen=True)
class Stretch:
    """Bytes ``start`` to ``start + length`` of an object."""

    start: int
    length: int


def parse_range(header: str | None, size_bytes: int) -> Stretch | None:
    """Return the stretch that a Range header asks for; None to send everything.

    Everything is sent, too, for several ranges at once and for what is no range at all, as the
    standard allows.

    Raises:
        Problem: the range lies outside the object.
    """
    match = RANGE.fullmatch(header or "")
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        start = max(0, size_bytes - int(last))
        end = size_bytes
    else:
        start = int(first)
        end = size_bytes if last == "" else min(size_bytes, int(last) + 1)
        if last != "" and int(last) < start:
            return None
    if start >= end:
        raise Problem(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            "range_not_satisfiable",
            f"The range lies outside the {size_bytes} bytes.",
            {"Content-Range": f"bytes */{size_bytes}", "Accept-Ranges": "bytes"},
        )
    return Stretch(start, end - start)


def matches(header: str | None, etag: str) -> bool:
    """Return whether an If-None-Match header names ``etag`` (weak comparison)."""
    if header is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or etag in tags


def answer(
    request: Request,
    store: ObjectStore,
    key: str,
    *,
    size_bytes: int,
    etag: str,
    media_type: str,
    disposition: str,
) -> Response:
    """Return the response for an object: 200, 206 or 304.

    Args:
        etag: With its quotes, as it stands in the header.

    Raises:
        Problem: the range lies outside the object.
    """
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "X-Content-Type-Options": "nosniff",
    }
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    headers["Content-Disposition"] = disposition
    stretch = None
    if request.headers.get("if-range", etag) == etag:
        stretch = parse_range(request.headers.get("range"), size_bytes)
    status = HTTPStatus.OK
    if stretch is None:
        stretch = Stretch(0, size_bytes)
    else:
        status = HTTPStatus.PARTIAL_CONTENT
        last = stretch.start + stretch.length - 1
        headers["Content-Range"] = f"bytes {stretch.start}-{last}/{size_bytes}"
    headers["Content-Length"] = str(stretch.length)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    opened = store.open(key, stretch.start, stretch.length)
    return ObjectResponse(opened, status, headers, media_type)


class ObjectResponse(Response):
    """Streams a stretch of an object, opened before the first byte is sent.

    An error of the store while opening becomes a problem document; one in the middle cuts the
    connection, so that the receiver sees that the content is not whole.
    """

    def __init__(
        self,
        opened: AbstractContextManager[Iterator[bytes]],
        status: HTTPStatus,
        headers: dict[str, str],
        media_type: str,
    ) -> None:
        self.status_code = status.value
        self.media_type = media_type
        self.background = None
        self.init_headers(headers)
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        blocks = await to_thread.run_sync(self._opened.__enter__)
        try:
            await self._send(Request(scope, receive), blocks, send)
        finally:
            with CancelScope(shield=True):
                await to_thread.run_sync(self._opened.__exit__, None, None, None)

    async def _send(self, request: Request, blocks: Iterator[bytes], send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        while block := await to_thread.run_sync(next, blocks, b""):
            await send({"type": "http.response.body", "body": block, "more_body": True})
            if await request.is_disconnected():
                return
        await send({"type": "http.response.body", "body": b""})
