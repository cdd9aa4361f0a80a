"""Runs the ingester until SIGTERM or SIGINT: ``python -m services.ingester``.

Another thread serves ``/metrics``, ``/health`` and ``/ready``.
"""

from __future__ import annotations

import signal
import threading
from contextlib import closing
from types import FrameType

from common import logs, traces
from common.checks.observe import CheckMetrics
from common.checks.start import checker_of, readiness, require
from common.metrics import REGISTRY, expose, new_registry, start_counting
from common.monitor import Monitor
from common.settings import get_settings
from services.ingester import observe
from services.ingester.loop import Ingester


def main() -> None:
    """Read sources. Exits with a sentence when it must not: see ``common.checks.start``."""
    settings = get_settings()
    logs.configure(settings, "ingester")
    log = logs.get_logger(__name__)
    stop = threading.Event()

    def ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    start_counting("ingester")
    observe.start_counting()
    process = new_registry()
    checker = checker_of(settings, "ingester")
    process.register(CheckMetrics(checker))
    log.info("ingester started")
    traces.configure("ingester")
    with (
        closing(Ingester(settings)) as ingester,
        Monitor(
            settings,
            lambda: expose(process, REGISTRY),
            ingester.pulse.why_not,
            lambda: readiness(checker.report(), "ingester"),
        ),
    ):
        require(settings, "ingester", stop, beat=ingester.pulse.beat)
        ingester.run(stop)
    traces.shutdown()
    log.info("ingester stopped")


if __name__ == "__main__":
    main()
