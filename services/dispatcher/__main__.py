"""Runs the dispatcher until SIGTERM or SIGINT: ``python -m services.dispatcher``."""

from __future__ import annotations

import signal
import threading
from contextlib import closing
from types import FrameType

from common import logs
from common.settings import get_settings
from services.dispatcher.loop import Dispatcher


def main() -> None:
    settings = get_settings()
    logs.configure(settings, "dispatcher")
    log = logs.get_logger(__name__)
    stop = threading.Event()

    def ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    log.info("dispatcher started")
    with closing(Dispatcher(settings)) as dispatcher:
        dispatcher.run(stop)
    log.info("dispatcher stopped")


if __name__ == "__main__":
    main()
