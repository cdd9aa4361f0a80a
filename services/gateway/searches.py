"""Searches take their turns: of a kind so many at work, so many that wait, and no more.

A request that waits costs next to nothing, one at work a thread and some tens of megabytes, one by
example a scratch folder too. Who goes away gives the place back: at once while waiting, at the next
recording while at work.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import TypeVar

from anyio import CancelScope, CapacityLimiter, to_thread
from fastapi import Request
from starlette.requests import ClientDisconnect

from common import logs
from services.gateway.problems import Problem

log = logs.get_logger(__name__)

AT_WORK = 2  # threads for searches of a kind
MOST_AT_ONCE = 16  # at work or waiting
MOST_PER_OWNER = 8
RETRY_AFTER_S = 2
MOST_TOLD = 1_000  # damaged files that are remembered

T = TypeVar("T")


class Searches:
    """The searches of this process, and the damaged files that they met."""

    def __init__(self) -> None:
        self.by_example = Turns()
        self.by_words = Turns()
        self.damage = DamageLog()


class Turns:
    """Whose turn it is among searches of one kind."""

    def __init__(self) -> None:
        self._threads = CapacityLimiter(AT_WORK)
        self._owners: Counter[str | None] = Counter()

    async def run(self, request: Request, owner: str | None, search: Callable[[], T]) -> T:
        """Return ``search()``, called in a thread when its turn comes.

        While it runs, ``anyio.from_thread.check_cancelled`` ends it if the client has gone.

        Raises:
            Problem: too many searches already.
            ClientDisconnect: nobody is there any more to be answered.
        """
        with self._place(owner), CancelScope() as scope:
            watcher = asyncio.create_task(_cancel_when_gone(request, scope))
            try:
                return await to_thread.run_sync(search, limiter=self._threads)
            finally:
                watcher.cancel()
        raise ClientDisconnect

    @contextmanager
    def _place(self, owner: str | None) -> Iterator[None]:
        if self._owners.total() >= MOST_AT_ONCE or self._owners[owner] >= MOST_PER_OWNER:
            raise Problem(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too_many_searches",
                f"A key has at most {MOST_PER_OWNER} searches of this kind at once, all together"
                f" {MOST_AT_ONCE}.",
                {"Retry-After": str(RETRY_AFTER_S)},
            )
        self._owners[owner] += 1
        try:
            yield
        finally:
            self._owners[owner] -= 1
            self._owners += Counter()  # forgets those who have none


class DamageLog:
    """Tells of each damaged file once, however many searches meet it. For several threads."""

    def __init__(self) -> None:
        self._told: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def tell(self, key: str, why: str) -> None:
        """Log that the object of this key cannot be used, unless that was logged before."""
        with self._lock:
            known = key in self._told
            self._told[key] = None
            self._told.move_to_end(key)
            while len(self._told) > MOST_TOLD:
                self._told.popitem(last=False)
        if not known:
            log.warning("stored result left out of a search", key=key, detail=why)


async def _cancel_when_gone(request: Request, scope: CancelScope) -> None:
    with suppress(asyncio.CancelledError):
        while (await request.receive())["type"] != "http.disconnect":
            pass
        scope.cancel()
