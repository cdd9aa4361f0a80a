"""Runs the ingester until SIGTERM or SIGINT: ``python -m services.ingester``."""

from __future__ import annotations

import signal
import threading
from contextlib import closing
from types import FrameType

from common import logs, traces
from common.settings import get_settings
from services.ingester.loop import Ingester


def main() -> None:
    settings = get_settings()
    logs.configure(settings, "ingester")
    log = logs.get_logger(__name__)
    stop = threading.Event()

    def ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    log.info("ingester started")
    traces.configure("ingester")
    with closing(Ingester(settings)) as ingester:
        ingester.run(stop)
    traces.shutdown()
    log.info("ingester stopped")


if __name__ == "__main__":
    main()
