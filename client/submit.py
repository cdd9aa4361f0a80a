"""Sends recordings, archives and manifests to an open job, several at once.

Each is sent under an idempotency key made of the job and the file, so that it may be sent again
after a broken line and is added once. A large file goes in parts (``client.multipart``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from threading import Event

from client.api import Gateway
from client.api import Source as AddedSource
from client.errors import GatewayUnreachable, Problem
from client.inputs import Bundle, Inputs
from client.journal import Journal
from client.multipart import LARGE_BYTES, Way, send_large
from client.parallel import in_parallel
from client.sources import Source, Unreadable
from client.submission import NotSent, Submission

THREADS = 8
URLS_AT_ONCE = 1_000
FATAL = {
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.CONFLICT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
}
"""Answers that hold for what follows as well: the job is gone or takes no more."""


@dataclass(frozen=True)
class Sent:
    """What became of one thing: ``reason`` says why it was not sent."""

    name: str
    reason: str = ""


@dataclass(frozen=True)
class Sender:
    """Sends to one job. ``journal`` is told what has arrived; ``tick`` is called often."""

    gateway: Gateway
    job_id: str
    submission: Submission
    tick: Callable[[], None]
    journal: Journal | None = None

    def send_inputs(self, inputs: Inputs) -> None:
        """Send everything. Raises what ``send_files`` raises."""
        job_id = self.job_id
        for start in range(0, len(inputs.urls), URLS_AT_ONCE):
            items = [{"url": url} for url in inputs.urls[start : start + URLS_AT_ONCE]]
            self._add(f"urls-{start}", partial(self.gateway.add_urls, job_id, items))
        for number, url in enumerate(inputs.prefixes):
            self._add(f"prefix-{number}", partial(self.gateway.add_prefix, job_id, url))
        for bundle in inputs.bundles:
            self._note(self._attempt(bundle.source, partial(self._send_bundle, bundle)))
        self.send_files(inputs.files)

    def send_files(self, sources: Iterable[Source]) -> None:
        """Send recordings, small ones several at once, then large ones in parts.

        A recording that cannot be read here, or that the gateway refuses, is noted and left out.

        Raises:
            Problem: the gateway takes no more recordings at all.
            GatewayUnreachable: it does not answer.
        """
        large: list[Source] = []
        stop = Event()

        def small() -> Iterator[Callable[[], Sent]]:
            for source in sources:
                if source.entry is None and source.size_bytes() >= LARGE_BYTES:
                    large.append(source)
                else:
                    yield partial(self._attempt, source, partial(self._send_small, source, stop))

        for sent in in_parallel(small(), THREADS, self.tick, stop):
            self._note(sent)
        for source in large:
            self._note(self._attempt(source, partial(self._send_large, source)))

    def _add(self, identity: str, add: Callable[..., AddedSource]) -> None:
        if self.journal is None or identity not in self.journal.arrived:
            add(idempotency_key=self._key(identity))
            self._note_arrived(identity)

    def _attempt(self, source: Source, send: Callable[[str], None]) -> Sent:
        """Send one thing, unless it has arrived before, and say what became of it."""
        try:
            identity = source.identity()
            if self.journal is None or identity not in self.journal.arrived:
                send(identity)
            else:
                self.submission.count(source.size_bytes())
        except Unreadable as error:
            return Sent(source.name, str(error))
        except Problem as problem:
            if problem.status in FATAL:
                raise
            return Sent(source.name, str(problem))
        except GatewayUnreachable as error:
            self.gateway.job(self.job_id)  # raises when it is not this one thing
            return Sent(source.name, str(error))
        self._note_arrived(identity)
        return Sent(source.name)

    def _note(self, sent: Sent) -> None:
        if sent.reason:
            self.submission.not_sent.append(NotSent(sent.name, sent.reason))
        else:
            self.submission.sent += 1
        self.tick()

    def _note_arrived(self, identity: str) -> None:
        if self.journal is not None:
            self.journal.note_arrived(identity)

    def _send_small(self, source: Source, stop: Event, identity: str) -> None:
        blocks = self.submission.counted(source.blocks, stop)
        key = self._key(identity)
        self.gateway.upload(self.job_id, source.name, blocks, idempotency_key=key)

    def _send_large(self, source: Source, identity: str) -> None:
        upload_id = self._in_parts(source, identity)
        key = self._key(identity)
        self.gateway.add_upload(self.job_id, upload_id, "recording", idempotency_key=key)

    def _send_bundle(self, bundle: Bundle, identity: str) -> None:
        source, key = bundle.source, self._key(identity)
        if source.size_bytes() >= LARGE_BYTES:
            upload_id = self._in_parts(source, identity)
            self.gateway.add_upload(self.job_id, upload_id, bundle.use, idempotency_key=key)
        else:
            blocks = self.submission.counted(source.blocks)
            self.gateway.send_source(
                self.job_id, source.name, blocks, bundle.media_type, idempotency_key=key
            )

    def _in_parts(self, source: Source, identity: str) -> str:
        known, noted = None, None
        if self.journal is not None:
            known = self.journal.uploads.get(identity)
            noted = partial(self.journal.note_upload, identity)
        way = Way(self.gateway, self.submission, self.tick)
        return send_large(way, source, self._key(f"{identity}-parts"), known, noted)

    def _key(self, identity: str) -> str:
        return f"{self.job_id}-{identity}"
