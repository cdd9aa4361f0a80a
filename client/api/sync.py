"""``Gateway``: sends the calls and waits for their answers, for programs with threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar, overload

import httpx

from client.api import job_calls, recording_calls, result_calls, source_calls, webhook_calls
from client.api.call import Call, Download, Export, Pages, R, Stream
from client.api.connection import Connection
from client.api.events import EventReader
from client.api.records import JobEvent
from client.api.tries import content_of, raise_problem

P = ParamSpec("P")
T = TypeVar("T")
W = TypeVar("W")


class Method(Generic[P, W, T]):
    """A method of ``Gateway``: what it sends comes from ``make``, ``do`` sends it."""

    def __init__(self, make: Callable[P, W], do: Callable[[Gateway, W], T]) -> None:
        self.make = make
        self._do = do

    @overload
    def __get__(self, gateway: None, owner: type[Gateway]) -> Self: ...
    @overload
    def __get__(self, gateway: Gateway, owner: type[Gateway]) -> Callable[P, T]: ...
    def __get__(self, gateway: Gateway | None, owner: type[Gateway]) -> Self | Callable[P, T]:
        if gateway is None:
            return self

        @wraps(self.make)
        def method(*args: P.args, **kwargs: P.kwargs) -> T:
            return self._do(gateway, self.make(*args, **kwargs))

        return method


def one(make: Callable[P, Call[T]]) -> Method[P, Call[T], T]:
    """Return the method for one request."""
    return Method(make, lambda gateway, call: gateway.send(call))


def many(make: Callable[P, Pages[R]]) -> Method[P, Pages[R], Iterator[R]]:
    """Return the method for a list."""
    return Method(make, lambda gateway, pages: gateway.each(pages))


class Gateway(Connection):
    """A connection to a gateway; any number of threads may use it at once.

    Every call raises ``Problem`` with the gateway's code when it refuses, ``GatewayUnreachable``
    when it does not answer.
    """

    def __init__(self, url: str, key: str | None = None, patience_s: float | None = None) -> None:
        super().__init__(url, key, patience_s)
        self._http = httpx.Client(**self.options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, call: Call[T]) -> T:
        """Send one request, again where that is right, and return its result."""
        tries = self.tries(call.repeatable)
        while True:
            content = None if call.content is None else iter(call.content())
            try:
                response = self._http.request(
                    call.method, call.path, content=content, **self.options_of(call)
                )
            except httpx.HTTPError as error:
                pause_s = self.pause_after(error, tries, call)
            else:
                again_s = tries.after_answer(response)
                if again_s is None:
                    raise_problem(response)
                    return call.read(content_of(response))
                pause_s = again_s
            time.sleep(pause_s)

    def each(self, pages: Pages[R]) -> Iterator[R]:
        """Yield the rows of a list, page after page."""
        page = self.send(pages.page(None))
        yield from page.items
        while page.next_cursor is not None:
            page = self.send(pages.page(page.next_cursor))
            yield from page.items

    def save(self, download: Download) -> None:
        """Write what comes to a file, from its beginning at each try."""
        tries = self.tries()
        while True:
            with self._answer(download.path, download.params) as response:
                try:
                    with download.target.open("wb") as file:
                        for block in response.iter_bytes():
                            file.write(block)
                    return
                except httpx.HTTPError as error:
                    pause_s = self.pause_after(error, tries)
            time.sleep(pause_s)

    def blocks(self, export: Export) -> Iterator[bytes]:
        """Yield the bytes as they come. Raises GatewayUnreachable when they break off."""
        with self._answer(export.path, export.params) as response:
            try:
                yield from response.iter_bytes()
            except httpx.HTTPError as error:
                raise self.broke_off() from error

    def follow(self, stream: Stream) -> Iterator[JobEvent]:
        """Yield events until the gateway ends the stream; goes on after a broken connection."""
        reader = EventReader(stream.after)
        tries = self.tries()
        while True:
            with self._answer(stream.path, {}, reader) as response:
                try:
                    for block in response.iter_bytes():
                        tries.begin_anew()
                        yield from reader.feed(block)
                    return
                except httpx.HTTPError as error:
                    pause_s = self.pause_after(error, tries)
            reader.begin_anew()
            time.sleep(pause_s)

    @contextmanager
    def _answer(
        self, path: str, params: Any, reader: EventReader | None = None
    ) -> Iterator[httpx.Response]:
        """Ask for a stream of bytes until an answer has begun that is one."""
        tries = self.tries()
        while True:
            request = self._http.build_request(
                "GET", path, params=params, **self.stream_options(path, reader)
            )
            try:
                response = self._http.send(request, stream=True, follow_redirects=True)
                again_s = tries.after_answer(response)
                if again_s is None and not response.is_success:
                    response.read()
            except httpx.HTTPError as error:
                time.sleep(self.pause_after(error, tries))
                continue
            try:
                if again_s is None:
                    raise_problem(response)
                    yield response
                    return
            finally:
                response.close()
            time.sleep(again_s)

    create_job = one(job_calls.create_job)
    job = one(job_calls.job)
    job_metrics = one(job_calls.job_metrics)
    jobs = many(job_calls.jobs)
    change_job = one(job_calls.change_job)
    close_job = one(job_calls.close_job)
    cancel_job = one(job_calls.cancel_job)
    pause_job = one(job_calls.pause_job)
    resume_job = one(job_calls.resume_job)
    retry_job = one(job_calls.retry_job)
    delete_job = one(job_calls.delete_job)

    upload = one(recording_calls.upload)
    recording = one(recording_calls.recording)
    recordings = many(recording_calls.recordings)
    rejections = many(recording_calls.rejections)

    add_urls = one(source_calls.add_urls)
    add_prefix = one(source_calls.add_prefix)
    add_upload = one(source_calls.add_upload)
    send_source = one(source_calls.send_source)
    source = one(source_calls.source)
    sources = many(source_calls.sources)
    create_upload = one(source_calls.create_upload)
    upload_state = one(source_calls.upload_state)
    part_addresses = one(source_calls.part_addresses)
    put_part = one(source_calls.put_part)
    complete_upload = one(source_calls.complete_upload)
    abort_upload = one(source_calls.abort_upload)

    download = Method(result_calls.download, save)
    export = Method(result_calls.export, blocks)
    search = one(result_calls.search)
    similar = one(result_calls.similar)
    text = one(result_calls.text)
    events = Method(result_calls.events, follow)

    create_webhook = one(webhook_calls.create_webhook)
    webhook = one(webhook_calls.webhook)
    webhooks = many(webhook_calls.webhooks)
    delete_webhook = one(webhook_calls.delete_webhook)
    test_webhook = one(webhook_calls.test_webhook)
    deliveries = many(webhook_calls.deliveries)
