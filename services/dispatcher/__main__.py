"""Runs the dispatcher until SIGTERM or SIGINT: ``python -m services.dispatcher``.

Three threads: the dispatcher's own turn, the deliveries to webhooks, the sweeper. When one of them
fails in a way that nobody foresaw, the process ends, and whoever watches it starts a new one.
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
from common.settings import get_settings
from services.dispatcher.loop import Dispatcher
from services.dispatcher.sweeper import Sweeper
from services.dispatcher.webhooks import Deliverer

log = logs.get_logger(__name__)


class Part(Protocol):
    """What runs in a thread until ``stop`` is set."""

    def run(self, stop: threading.Event) -> None: ...


def main() -> None:
    """Dispatch. Exits with 1 when a part of it fails."""
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
    log.info("dispatcher started")
    with (
        closing(Dispatcher(settings)) as dispatcher,
        closing(Deliverer(settings)) as deliverer,
        closing(Sweeper(settings)) as sweeper,
    ):
        others = [
            threading.Thread(
                target=copy_context().run,  # so that its log lines name the service too
                args=(run, part),
                name=type(part).__name__.lower(),
            )
            for part in (deliverer, sweeper)
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
