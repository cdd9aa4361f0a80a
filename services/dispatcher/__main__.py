"""Runs the dispatcher until SIGTERM or SIGINT: ``python -m services.dispatcher``.

Four threads: the dispatcher's own turn, the deliveries to webhooks, the sweeper, the census. When
one of them fails in a way that nobody foresaw, the process ends, and whoever watches it starts a
new one. Another thread serves ``/metrics``, ``/health`` and ``/ready``.
"""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import closing
from contextvars import copy_context
from types import FrameType
from typing import Protocol

from common import logs
from common.checks.observe import CheckMetrics
from common.checks.start import checker_of, readiness, require
from common.metrics import REGISTRY, expose, new_registry, start_counting
from common.monitor import Monitor
from common.settings import get_settings
from services.dispatcher import observe
from services.dispatcher.census import Census
from services.dispatcher.loop import Dispatcher
from services.dispatcher.sweeper import Sweeper
from services.dispatcher.webhooks import Deliverer

log = logs.get_logger(__name__)


class Part(Protocol):
    """What runs in a thread until ``stop`` is set."""

    def run(self, stop: threading.Event) -> None: ...


def main() -> None:
    """Dispatch. Exits with 1 when a part of it fails, or as ``common.checks.start`` says."""
    settings = get_settings()
    logs.configure(settings, "dispatcher")
    stop = threading.Event()
    failed = threading.Event()

    def ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    def run(part: Part) -> None:
        try:
            part.run(stop)
        except Exception as error:
            log.error("a part has failed", part=type(part).__name__, exc_info=error)
            failed.set()
            stop.set()

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    start_counting("dispatcher")
    observe.start_counting()
    process = new_registry()
    checker = checker_of(settings, "dispatcher")
    process.register(CheckMetrics(checker))
    log.info("dispatcher started")
    with (
        closing(Dispatcher(settings)) as dispatcher,
        closing(Deliverer(settings)) as deliverer,
        closing(Sweeper(settings)) as sweeper,
        closing(Census(settings)) as census,
        Monitor(
            settings,
            lambda: expose(process, REGISTRY),
            dispatcher.pulse.why_not,
            lambda: readiness(checker.report(), "dispatcher"),
        ),
    ):
        require(settings, "dispatcher", stop, beat=dispatcher.pulse.beat)
        REGISTRY.register(census)
        others = [
            threading.Thread(
                target=copy_context().run,  # so that its log lines name the service too
                args=(run, part),
                name=type(part).__name__.lower(),
            )
            for part in (deliverer, sweeper, census)
        ]
        for thread in others:
            thread.start()
        run(dispatcher)
        for thread in others:
            thread.join()
    log.info("dispatcher stopped")
    if failed.is_set():
        sys.exit(1)


if __name__ == "__main__":
    main()
