"""Whether a process may start: not where going on would do harm in silence.

Tables that are missing or older than the code, servers that refuse our password or key, a Redis
that throws messages away: the process says so in one sentence and ends with an exit code of its
own. A server that does not answer may come later: it is waited for, and the log says so.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NoReturn

from common import logs
from common.checks.base import Check, Report, Status
from common.checks.checker import ALL_PARTS, Checker
from common.settings import Settings

log = logs.get_logger(__name__)

START_TIMEOUT_S = 5.0
AGAIN_S = 1.0
SAY_AGAIN_TURNS = 30


@dataclass(frozen=True)
class Needs:
    """What a service leans on.

    Args:
        parts: What is looked at.
        awaits: Checks that must get well before it goes to work, where that can come by itself.
        starts_without: Checks that do not keep it from starting, whatever they find.
        ready_without: Checks that are told but do not make it unready.
    """

    parts: tuple[str, ...] = ALL_PARTS
    awaits: frozenset[str] = frozenset({"database", "redis", "store"})
    starts_without: frozenset[str] = frozenset()
    ready_without: frozenset[str] = frozenset()


WORKER = Needs()  # without the store it would fail what it takes; of all four workers
NEEDS = {
    # It answers while others are away, and says so. Redis holds its rate limits, no messages.
    "gateway": Needs(
        awaits=frozenset(),
        starts_without=frozenset({"redis", "redis_policy"}),
        ready_without=frozenset({"redis_policy"}),
    ),
    "dispatcher": Needs(awaits=frozenset({"database", "redis"})),
    "ingester": Needs(parts=("database", "store", "disk")),
}


def needs_of(service: str) -> Needs:
    """Return what a service leans on."""
    return NEEDS.get(service, WORKER)


def checker_of(settings: Settings, service: str) -> Checker:
    """Return what looks at all that a service leans on."""
    return Checker(settings, needs_of(service).parts)


def readiness(report: Report, service: str) -> dict[str, str]:
    """Return one line for each check; ``common.monitor.is_well`` tells the good ones."""
    without = needs_of(service).ready_without
    return {
        check.name: replace(check, status=Status.WARNING).text
        if check.name in without and check.status is Status.FAILED
        else check.text
        for check in report.checks
    }


def require(
    settings: Settings,
    service: str,
    stop: threading.Event | None = None,
    *,
    beat: Callable[[], None] | None = None,
    await_database: bool = False,
) -> None:
    """Return when a service may go to work.

    Exits with a sentence on standard error when it must not. Also names the process to PostgreSQL,
    so that ``soundmill doctor`` sees it there: call it before anything connects.

    Args:
        stop: Ends the waiting; the caller finds it set.
        beat: Called now and then while it waits.
        await_database: Wait for the database also where the service would not.
    """
    os.environ.setdefault("PGAPPNAME", f"soundmill-{service}")
    needs = needs_of(service)
    awaits = needs.awaits | ({"database"} if await_database else set())
    stop = stop or threading.Event()
    checker = Checker(settings, needs.parts, timeout_s=START_TIMEOUT_S)
    said: list[str] = []
    turn = 0
    while True:
        report = checker.report()
        for check in report.checks:
            if check.exit_code is not None and check.name not in needs.starts_without:
                refuse(service, check)
        missing = [c for c in report.checks if c.passes and c.name in awaits]
        tell(report, said, bool(missing))
        if not missing or stop.wait(AGAIN_S):
            return
        if beat is not None:
            beat()
        turn += 1
        if turn % SAY_AGAIN_TURNS == 0:
            said.clear()


def refuse(service: str, check: Check) -> NoReturn:
    """End this process with the sentence and the code of a check."""
    print(f"soundmill {service}: will not start: {sentence(check)}", file=sys.stderr, flush=True)
    sys.exit(check.exit_code)


def sentence(check: Check) -> str:
    """Return what is wrong, and what to do."""
    name = {"redis_policy": "redis"}.get(check.name, check.name)
    return f"{name}: {check.detail}. {check.advice}".strip()


def tell(report: Report, said: list[str], waits: bool) -> None:
    """Log what is not well, each once."""
    for check in report.checks:
        if check.status is Status.OK or f"{check.name} {check.detail}" in said:
            continue
        said.append(f"{check.name} {check.detail}")
        log.warning(
            "not well at the start",
            check=check.name,
            status=check.status.value,
            detail=check.detail,
            advice=check.advice,
            waits=waits and check.passes,
        )
