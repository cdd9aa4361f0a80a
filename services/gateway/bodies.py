"""Request bodies as streams that a thread may read: raw, or multipart/form-data part by part.

Storing is blocking work and runs in a thread; the bytes arrive in the event loop. ``Body.read``
bridges the two one chunk at a time, so that a body is never whole in memory or on disk here and a
slow store slows the sender down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

from anyio import CancelScope, CapacityLimiter, from_thread, move_on_after, to_thread
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from services.gateway.problems import Problem, invalid

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

STALLED_AFTER_S = 60.0
MAX_DRAIN_BYTES = 64 << 20
MAX_DRAIN_S = 5.0
MAX_UPLOADS_AT_ONCE = 64
READ_BYTES = 1 << 16
MAX_FIELD_BYTES = 1 << 16
MAX_EPILOGUE_READS = 16

T = TypeVar("T")


class Receiver:
    """Runs the storing of bodies in threads of its own, so that slow senders block no one else."""

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(MAX_UPLOADS_AT_ONCE)
        self._waiting: set[CancelScope] = set()
        self._closing = False

    async def run(self, body: Body, store: Callable[[Body], T]) -> T:
        """Return ``store(body)``, called in a thread; on an error, take in the rest first."""
        try:
            return await to_thread.run_sync(partial(store, body), limiter=self._limiter)
        except ClientDisconnect:
            raise
        except Exception:
            await body.drain()
            raise

    def close(self) -> None:
        """Take in nothing more: bodies that are not whole by now never will be."""
        self._closing = True
        for scope in self._waiting:
            scope.cancel()

    async def wait_for(self, chunks: AsyncIterator[bytes]) -> bytes:
        """Return the next bytes that arrive; ``b""`` at the end.

        Raises:
            Problem: nothing arrived for too long, or the process is about to end.
        """
        if not self._closing:
            with move_on_after(STALLED_AFTER_S) as scope:
                self._waiting.add(scope)
                try:
                    while (chunk := await anext(chunks, None)) is not None:
                        if chunk:
                            return chunk
                    return b""
                finally:
                    self._waiting.discard(scope)
        headers = {"Connection": "close"}
        if self._closing:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            raise Problem(status, "shutting_down", "This process is about to end.", headers)
        detail = f"Nothing arrived for {STALLED_AFTER_S:.0f} s."
        raise Problem(HTTPStatus.REQUEST_TIMEOUT, "upload_stalled", detail, headers)


class Body:
    """The body of a request, read in order from one thread.

    Raises, from ``read``:
        ClientDisconnect: the sender went away before the end.
        Problem: see ``Receiver.wait_for``.
    """

    def __init__(self, request: Request, receiver: Receiver) -> None:
        self.size_bytes = 0  # that have arrived
        self._receiver = receiver
        self._chunks = request.stream()
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        """Return at least one byte and at most ``size``; ``b""`` at the end."""
        if not self._rest:
            self._rest = from_thread.run(self._receiver.wait_for, self._chunks)
            self.size_bytes += len(self._rest)
        block, self._rest = self._rest[:size], self._rest[size:]
        return block

    async def drain(self) -> None:
        """Take in a bounded part of what was not read.

        A sender that is cut off in the middle rarely looks at the answer that was sent to it.
        """
        drained = 0
        with suppress(Problem, ClientDisconnect), move_on_after(MAX_DRAIN_S):
            while drained < MAX_DRAIN_BYTES:
                chunk = await self._receiver.wait_for(self._chunks)
                if not chunk:
                    return
                drained += len(chunk)


@dataclass
class Part:
    """One part of a form. Its content must be read before the next part is asked for."""

    name: str
    filename: str | None
    media_type: str
    read: Callable[[int], bytes]

    def text(self) -> str:
        """Return the content of a plain field.

        Raises:
            Problem: too long, or not UTF-8.
        """
        content = b""
        while block := self.read(READ_BYTES):
            content += block
            if len(content) > MAX_FIELD_BYTES:
                raise invalid("request_invalid", f"Field {self.name} is too long.")
        return _decode(content)


class Form:
    """A multipart/form-data body, part by part (RFC 7578)."""

    def __init__(self, body: Body, content_type: str) -> None:
        _, options = parse_options_header(content_type)
        if not options.get(b"boundary"):
            raise _malformed("the boundary is missing")
        self._body = body
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._found: deque[Part | bytes | None] = deque()  # a part, its data, None at its end
        self._ended = False
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._headers.clear,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }
        try:
            self._parser = MultipartParser(options[b"boundary"], callbacks)
        except FormParserError as error:
            raise _malformed(str(error)) from error

    def parts(self) -> Iterator[Part]:
        """Yield the parts in order.

        Raises:
            Problem: the body is no form, or ends in the middle of one.
        """
        while self._fill():
            part = self._found.popleft()
            if isinstance(part, Part):  # else what the caller left unread
                yield part
        for _ in range(MAX_EPILOGUE_READS):
            if not self._body.read(READ_BYTES):
                return
        raise _malformed("too much follows the last part")

    def _read(self, size: int) -> bytes:
        """Return the next bytes of the current part, at most ``size``; ``b""`` at its end."""
        piece = self._found[0] if self._fill() else None
        if not isinstance(piece, bytes):
            return b""
        self._found.popleft()
        if len(piece) > size:
            self._found.appendleft(piece[size:])
        return piece[:size]

    def _fill(self) -> bool:
        """Parse until something is found; return False after the last part."""
        while not self._found and not self._ended:
            chunk = self._body.read(READ_BYTES)
            if not chunk:
                raise _malformed("the body ends in the middle")
            try:
                self._parser.write(chunk)
            except FormParserError as error:
                raise _malformed(str(error)) from error
        return bool(self._found)

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _on_headers_finished(self) -> None:
        disposition, options = parse_options_header(self._headers.get(b"content-disposition"))
        if disposition != b"form-data" or b"name" not in options:
            raise _malformed("a part has no name")
        filename = options.get(b"filename")
        self._found.append(
            Part(
                name=_decode(options[b"name"]),
                filename=None if filename is None else _decode(filename),
                media_type=_decode(self._headers.get(b"content-type", b"")),
                read=self._read,
            )
        )

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if start < end:
            self._found.append(data[start:end])

    def _on_part_end(self) -> None:
        self._found.append(None)

    def _on_end(self) -> None:
        self._ended = True


def _malformed(why: str) -> Problem:
    return Problem(HTTPStatus.BAD_REQUEST, "form_malformed", f"Not a valid form: {why}.")


def _decode(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise _malformed("text that is not UTF-8") from error
