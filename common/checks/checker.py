"""Looks at everything side by side, and keeps the answer for a few seconds.

Each part is looked at in a thread of its own. One that does not answer in time counts as failed; it
is left to itself and not begun again before it has ended, so that a server that hangs costs one
thread and never a process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, wait

from common import forking
from common.checks import clock
from common.checks.base import Check, Found, Report, failed, unknown
from common.checks.broker import POLICY, REDIS, RedisLook
from common.checks.database import DATABASE, SCHEMA, DatabaseLook
from common.checks.disk import DISK, DiskLook
from common.checks.store import STORE, StoreLook
from common.settings import Settings

TIMEOUT_S = 2.5
DEEP_TIMEOUT_S = 15.0
FRESH_S = 5.0  # a probe every second costs a fifth of a look
FAILED_FRESH_S = 1.0  # what comes back is seen soon
NAMES = {
    "database": (DATABASE, SCHEMA),
    "redis": (REDIS, POLICY),
    "store": (STORE,),
    "disk": (DISK,),
}
ALL_PARTS = tuple(NAMES)

Look = Callable[[], Found]


class Checker:
    """Asks what a process leans on how it is.

    Args:
        parts: What is looked at, of ``ALL_PARTS``; the clocks of all of them are compared.
        deep: Also try out what a probe of readiness should not: write into the store.
        now: This machine's clock, seconds since 1970.
    """

    def __init__(
        self,
        settings: Settings,
        parts: Collection[str] = ALL_PARTS,
        *,
        deep: bool = False,
        timeout_s: float | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        looks: dict[str, Look] = {
            "database": DatabaseLook(settings, now),
            "redis": RedisLook(settings, now),
            "store": StoreLook(settings, deep, now),
            "disk": DiskLook(settings),
        }
        self._settings = settings
        self._looks = {part: looks[part] for part in ALL_PARTS if part in parts}
        self._timeout_s = timeout_s or (DEEP_TIMEOUT_S if deep else TIMEOUT_S)
        self._running: dict[str, Future[Found]] = {}
        self._lock = threading.Lock()
        self._report = Report(())
        self._good_until = float("-inf")

    def report(self) -> Report:
        """Return what was found, at most a few seconds ago."""
        with self._lock:
            if time.monotonic() >= self._good_until:
                self._report = self._examine()
                fresh_s = FRESH_S if self._report.is_well else FAILED_FRESH_S
                self._good_until = time.monotonic() + fresh_s
            return self._report

    def _examine(self) -> Report:
        for part, look in self._looks.items():
            if part not in self._running:
                self._running[part] = _begin(part, look)
        wait(self._running.values(), self._timeout_s)
        found = [self._take(part) for part in self._looks]
        checks = [check for one in found for check in one.checks]
        clocks = tuple(one.clock for one in found if one.clock is not None)
        checks.append(clock.judge(clocks, self._settings))
        order = [name for names in NAMES.values() for name in names]
        order.insert(order.index(DISK), clock.CLOCK)
        checks.sort(key=lambda check: order.index(check.name))
        return Report(tuple(checks), clocks, tuple(disk for one in found for disk in one.disks))

    def _take(self, part: str) -> Found:
        future = self._running[part]
        if not future.done():
            return _gone(part, f"no answer within {self._timeout_s:g} s")
        del self._running[part]
        error = future.exception()
        if error is not None:  # whatever a driver raises: its kind says enough
            return _gone(part, type(error).__name__)
        return future.result()


def run(
    settings: Settings,
    parts: Collection[str] = ALL_PARTS,
    *,
    deep: bool = False,
    now: Callable[[], float] = time.time,
) -> list[Check]:
    """Look once at everything; return what was found, one check for each name."""
    return list(Checker(settings, parts, deep=deep, now=now).report().checks)


def _begin(part: str, look: Look) -> Future[Found]:
    future: Future[Found] = Future()

    def work() -> None:
        try:
            future.set_result(look())
        except BaseException as error:
            future.set_exception(error)

    forking.start_thread(f"check {part}", work)
    return future


def _gone(part: str, why: str) -> Found:
    first, *others = NAMES[part]
    return Found((failed(first, why, passes=True), *(unknown(name, why) for name in others)))
