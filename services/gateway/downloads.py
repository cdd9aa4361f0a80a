"""Files over HTTP: ranges and entity tags of stored ones (RFC 9110), streams of others."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from itertools import chain
from typing import Any, TypeVar

from anyio import CancelScope, CapacityLimiter, WouldBlock, fail_after, to_thread
from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from common.storage import ObjectStore
from services.gateway.names import content_disposition
from services.gateway.problems import Problem

T = TypeVar("T")

MAKING_THREADS = 4  # a block each in turn: the other requests need threads, too
MAX_MADE = 32
STALLED_AFTER_S = 300.0
RETRY_AFTER_S = 30

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
    return StreamedResponse(opened, status, headers, media_type)


@dataclass(frozen=True)
class Room:
    """How many files are made at once: each has a page of the database and a few objects open."""

    threads: CapacityLimiter = field(default_factory=partial(CapacityLimiter, MAKING_THREADS))
    files: CapacityLimiter = field(default_factory=partial(CapacityLimiter, MAX_MADE))

    @contextmanager
    def taken(self, by: object) -> Iterator[None]:
        """Hold the place of one file. Raises Problem when there is none."""
        try:
            self.files.acquire_on_behalf_of_nowait(by)
        except WouldBlock:
            raise Problem(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too_many_downloads",
                f"{MAX_MADE} tables and archives are being sent already.",
                {"Retry-After": str(RETRY_AFTER_S)},
            ) from None
        try:
            yield
        finally:
            self.files.release_on_behalf_of(by)


class StreamedResponse(Response):
    """Streams blocks of bytes whose source is opened before the first byte is sent.

    An error while opening becomes a problem document; one in the middle cuts the connection, so
    that the receiver sees that the content is not whole.
    """

    def __init__(
        self,
        opened: AbstractContextManager[Iterator[bytes]],
        status: HTTPStatus,
        headers: dict[str, str],
        media_type: str,
        threads: CapacityLimiter | None = None,
    ) -> None:
        self.status_code = status.value
        self.media_type = media_type
        self.background = None
        self.init_headers(headers)
        self._opened = opened
        self._threads = threads  # in which blocks are made

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        blocks = await self._run(self._opened.__enter__)
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
        while block := await self._run(next, blocks, b""):
            await self._send_block(block, send)
            if await request.is_disconnected():
                return
        await send({"type": "http.response.body", "body": b""})

    async def _send_block(self, block: bytes, send: Send) -> None:
        await send({"type": "http.response.body", "body": block, "more_body": True})

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        return await to_thread.run_sync(work, *args, limiter=self._threads)


class MadeResponse(StreamedResponse):
    """Streams a file that is made while it is sent. There is room for so many at once.

    Who takes nothing for minutes is cut off, so that the place is free for others.
    """

    def __init__(
        self, blocks: Iterator[bytes], headers: dict[str, str], media_type: str, room: Room
    ) -> None:
        super().__init__(_begun(blocks), HTTPStatus.OK, headers, media_type, room.threads)
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._room.taken(self):
            await super().__call__(scope, receive, send)

    async def _send_block(self, block: bytes, send: Send) -> None:
        with fail_after(STALLED_AFTER_S):
            await super()._send_block(block, send)


def made(blocks: Iterator[bytes], media_type: str, name: str, room: Room) -> MadeResponse:
    """Return the response for a file that is made while it is sent, of unknown size.

    Args:
        blocks: A generator; it is closed when the receiver goes away.
    """
    headers = {
        "Content-Disposition": content_disposition(name),
        "Cache-Control": "private, no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return MadeResponse(blocks, headers, media_type, room)


def documents(media_types: Iterable[str]) -> dict[int | str, dict[str, Any]]:
    """Return how OpenAPI is told of a file in one of several forms."""
    file = {"schema": {"type": "string", "format": "binary"}}
    content = {
        kind.partition(";")[0]: {} if kind.endswith("json") else file for kind in media_types
    }
    return {HTTPStatus.OK.value: {"description": "The file.", "content": content}}


@contextmanager
def _begun(blocks: Iterator[bytes]) -> Iterator[Iterator[bytes]]:
    """Make the first block at once, so that what fails early is told as a problem."""
    try:
        first = next(blocks, b"")
        yield chain([first], blocks)
    finally:
        if isinstance(blocks, Generator):
            blocks.close()
