"""Server-sent events of jobs: one loop of this process looks for all who listen.

Milestones (``common.jobs.record_event``) have ids, and whoever comes back says which was the last;
``progress`` tells the newest counters and has none: it is a state, not something that happened. The
database is asked at a steady pace, however many listen; it is no slower to tell a hundred.

Source: HTML Living Standard, 9.2 Server-sent events.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from anyio import CapacityLimiter, move_on_after, to_thread
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker
from starlette.types import Receive, Scope, Send

from common import domain, logs, webhooks
from common.domain import ENDED_STATES
from common.errors import NotFound
from common.tables import JobEvent
from services.gateway import job_queries
from services.gateway.access import Caller
from services.gateway.problems import Problem

log = logs.get_logger(__name__)

LOOK_EVERY_S = 0.5
MOST_OF_THE_TIME = 0.25  # that goes into looking, when very many jobs are followed
OUTAGE_PAUSE_S = 2.0
HEARTBEAT_S = 15.0
RECONNECT_MS = 2_000
MOST_STREAMS = 500
MOST_PER_OWNER = 50
EVENTS_AT_ONCE = 500
MOST_WAITING = 2_000  # events for a client that does not read them: it is cut off
STREAM_S = 900.0  # then the client comes back, with a key that is still good
STUCK_S = 60.0  # on top of that, for a client that does not read
MEDIA_TYPE = "text/event-stream"
PROGRESS = "progress"
PROGRESS_FIELDS = {
    "state",
    "paused",
    "recordings",
    "rejected",
    "sources",
    "counts",
    "funnel",
    "audio_s_total",
    "audio_s_done",
    "audio_s_left",
    "rate",
    "eta_s",
    "on_track",
}
WATCHER = Caller(None, frozenset(domain.Scope))  # looks for those who have been let in


@dataclass(frozen=True)
class Look:
    """What one look at a job found. ``complete``: there is nothing newer, and never will be."""

    events: tuple[tuple[int, bytes], ...]  # ids and what is sent
    progress: bytes
    more: bool  # events to read at once
    complete: bool


class Listener:
    """One client that follows one job, and what it has yet to be sent."""

    def __init__(self, owner: str | None, job_id: str, cursor: int) -> None:
        self.owner = owner
        self.job_id = job_id
        self.cursor = cursor  # id of the newest event that it has or is about to get
        self.until = time.monotonic() + STREAM_S
        self.ended = False
        self._waiting: list[bytes] = []
        self._progress = b""
        self._told = b""
        self._wake = asyncio.Event()

    def offer(self, look: Look) -> None:
        """Take what is new in a look at the job."""
        new = [(number, block) for number, block in look.events if number > self.cursor]
        if new:
            self.cursor = new[-1][0]
            self._waiting += [block for _, block in new]
        self._progress = look.progress
        if look.complete or len(self._waiting) > MOST_WAITING:
            self.ended = True
        self._wake.set()

    def end(self) -> None:
        """Send nothing more than what waits."""
        self.ended = True
        self._wake.set()

    async def blocks(self) -> AsyncIterator[bytes]:
        """Yield what is to be sent until there is nothing more to come."""
        yield format_sse_event(retry=RECONNECT_MS)
        while True:
            try:
                await asyncio.wait_for(self._wake.wait(), HEARTBEAT_S)
            except TimeoutError:
                yield KEEPALIVE_COMMENT
            self._wake.clear()
            waiting, self._waiting = self._waiting, []
            for block in waiting:
                yield block
            if self._progress != self._told:
                self._told = self._progress
                yield self._told
            over = self.ended and not self._wake.is_set()  # nothing came while this was sent
            if over or time.monotonic() > self.until:
                return


class Streams:
    """Everybody who follows a job at this process."""

    def __init__(self, readers: sessionmaker[Session]) -> None:
        self._readers = readers
        self._listeners: dict[str, set[Listener]] = defaultdict(set)  # by job
        self._owners: Counter[str | None] = Counter()
        self._limiter = CapacityLimiter(1)  # a thread of its own: uploads may hold all others
        self._looking: asyncio.Task[None] | None = None
        self._joined = asyncio.Event()
        self._closed = False

    async def open(self, caller: Caller, job_id: str, last_id: int | None) -> Stream | None:
        """Return the response that follows a job; None when all of it has been told.

        Args:
            last_id: The newest event that the client has; None: it has none.

        Raises:
            NotFound: no such job.
            Problem: too many streams, or the process is about to end.
        """
        complete = await to_thread.run_sync(self._is_complete, caller, job_id, last_id)
        if complete:
            return None
        if self._closed:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            raise Problem(status, "shutting_down", "This process is about to end.")
        if self._owners.total() >= MOST_STREAMS or self._owners[caller.owner] >= MOST_PER_OWNER:
            raise Problem(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too_many_streams",
                f"A key follows at most {MOST_PER_OWNER} jobs at once, all together fewer than"
                f" {MOST_STREAMS}.",
                {"Retry-After": str(int(HEARTBEAT_S))},
            )
        listener = Listener(caller.owner, job_id, last_id or 0)
        self._listeners[job_id].add(listener)
        self._owners[caller.owner] += 1
        self._joined.set()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_often())
        return Stream(self, listener)

    def leave(self, listener: Listener) -> None:
        """Forget a client that is gone."""
        listeners = self._listeners[listener.job_id]
        listeners.discard(listener)
        if not listeners:
            del self._listeners[listener.job_id]
        self._owners[listener.owner] -= 1

    def close(self) -> None:
        """End every stream: the process is about to end, and clients come back to another."""
        self._closed = True
        for listener in self._all():
            listener.end()

    def _all(self) -> list[Listener]:
        return [listener for listeners in self._listeners.values() for listener in listeners]

    async def _look_often(self) -> None:
        """Look at every job that is followed, until none is."""
        while self._listeners:
            self._joined.clear()
            started = time.monotonic()
            cursors = {
                job_id: min(listener.cursor for listener in listeners)
                for job_id, listeners in self._listeners.items()
            }
            try:
                looks = await to_thread.run_sync(self._look, cursors, limiter=self._limiter)
            except Exception as error:  # an outage of the database, or a fault of ours
                log.warning("jobs not followed", exc_info=error)
                await asyncio.sleep(OUTAGE_PAUSE_S)
                continue
            for job_id, look in looks.items():
                for listener in self._listeners.get(job_id, ()):
                    if look is None:
                        listener.end()
                    else:
                        listener.offer(look)
            if any(look is not None and look.more for look in looks.values()):
                continue
            took_s = time.monotonic() - started
            pause_s = max(LOOK_EVERY_S, took_s * (1.0 / MOST_OF_THE_TIME - 1.0))
            with move_on_after(pause_s):
                await self._joined.wait()  # who has just come need not wait

    def _look(self, cursors: Mapping[str, int]) -> dict[str, Look | None]:
        """Look at jobs for events after their cursors; None for a job that is gone."""
        found: dict[str, Look | None] = {}
        with self._readers() as session:
            for job_id, cursor in cursors.items():
                try:
                    found[job_id] = _look_at(session, job_id, cursor)
                except NotFound:
                    found[job_id] = None
        return found

    def _is_complete(self, caller: Caller, job_id: str, last_id: int | None) -> bool:
        """Return whether a client has all there is and will be. Raises NotFound."""
        with self._readers() as session:
            caller.job(session, job_id)
            if last_id is None:
                return False
            look = _look_at(session, job_id, last_id)
        return look.complete and not look.events


class Stream(StreamingResponse):
    """The response that follows a job. Its listener is forgotten however it ends."""

    def __init__(self, streams: Streams, listener: Listener) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(listener.blocks(), headers=headers, media_type=MEDIA_TYPE)
        self._streams = streams
        self._listener = listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with move_on_after(STREAM_S + STUCK_S):
                await super().__call__(scope, receive, send)
        finally:
            self._streams.leave(self._listener)


def _look_at(session: Session, job_id: str, cursor: int) -> Look:
    """Look at one job. Raises NotFound.

    Its row is read before its events: when the row says that it has ended, the event that says so
    is among those found.
    """
    job = job_queries.get_job(session, WATCHER, job_id)
    events = session.scalars(
        select(JobEvent)
        .where(JobEvent.job_id == job_id, JobEvent.id > cursor)
        .order_by(JobEvent.id)
        .limit(EVENTS_AT_ONCE)
    ).all()
    more = len(events) == EVENTS_AT_ONCE
    progress = job.model_dump(mode="json", include=PROGRESS_FIELDS)
    return Look(
        events=tuple((event.id, _milestone(event)) for event in events),
        progress=format_sse_event(event=PROGRESS, data_str=_json(progress)),
        more=more,
        complete=job.state in ENDED_STATES and job.finished_at is not None and not more,
    )


def _milestone(event: JobEvent) -> bytes:
    message = webhooks.payload(event.kind, event.created_at, event.data)
    return format_sse_event(event=event.kind, data_str=_json(message), id=str(event.id))


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
