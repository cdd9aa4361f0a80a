"""What surrounds the one task of a worker: logs, metrics, readiness, and how the worker stops.

Celery runs a parent, which takes messages, and one child, which works. The parent serves the
monitor and tells what both have counted; asked to stop (SIGTERM), it lets the child finish what it
is working on or give it back (``common.keeper``), and is gone as soon as the child is.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import psutil
from celery import Celery, bootsteps, signals
from celery.worker import state
from prometheus_client import CollectorRegistry

from common import logs, metrics, stage_metrics, traces
from common.checks.observe import CheckMetrics
from common.checks.start import checker_of, readiness, require
from common.domain import STAGE_OF, Stage
from common.draining import Drain
from common.metrics import MULTIPROC_DIR
from common.monitor import Monitor
from common.settings import Settings
from common.shared_metrics import SharedMetrics, make_room, shared_metrics

log = logs.get_logger(__name__)

CLEAN_UP_S = 5.0  # after the grace, until a child that does not end is killed
ROOM_AGAIN_S = 1.0


def attend(app: Celery, settings: Settings, service: str, *stages: Stage) -> Drain:
    """Register with Celery what a worker needs around its task; nothing happens yet.

    Args:
        stages: What the worker does, where its name does not tell.

    Returns: what tells the task whether the worker is to stop.
    """
    parent = _Parent(settings, service, stages or (STAGE_OF[service],))
    handlers: dict[Any, Callable[..., None]] = {
        signals.setup_logging: parent.configure_logs,
        signals.celeryd_init: parent.begin_counting,
        signals.celeryd_after_setup: parent.open,
        signals.worker_ready: parent.watch,
        signals.worker_shutting_down: parent.drain_children,
        signals.worker_process_init: begin_child,
        signals.worker_process_shutdown: end_child,
    }
    for celery_signal, handler in handlers.items():
        celery_signal.connect(handler, weak=False)

    class TakeCharge(bootsteps.StartStopStep):  # type: ignore[misc]
        """Comes after Celery has set up its own ways to stop, and before the first message."""

        requires = ("celery.worker.components:Pool",)

        def start(self, _worker: Any) -> None:
            signal.signal(signal.SIGTERM, parent.stop)

    app.steps["worker"].add(TakeCharge)
    return parent.drain


def begin_child(**_: Any) -> None:
    """Make room for what this child will count; without it, it begins nothing."""
    while True:
        try:
            return make_room()
        except OSError as error:
            log.error("no room for metrics: waiting for it", detail=error.strerror)
            time.sleep(ROOM_AGAIN_S)


def end_child(**_: Any) -> None:
    """Send the spans that wait."""
    traces.shutdown()


class _Parent:
    """The parent process of a worker, as Celery's signals see it."""

    def __init__(self, settings: Settings, service: str, stages: tuple[Stage, ...]) -> None:
        self.settings = settings
        self.service = service
        self.stages = stages
        self.stage = "+".join(stages)  # as a label of what all of them share
        self.drain = Drain()
        self.shared: SharedMetrics | None = None

    def configure_logs(self, **_: Any) -> None:
        logs.configure(self.settings, self.service)
        traces.configure(self.service, forks=True)

    def begin_counting(self, **_: Any) -> None:
        """Empty the folder of metrics before anything is counted."""
        signal.signal(signal.SIGTERM, leave)  # a container's first process heeds nothing by itself
        logs.configure(self.settings, self.service)  # Celery asks for it only after its warnings
        self.shared = shared_metrics()
        if self.shared is not None:
            try:
                self.shared.wipe()
                make_room()
            except OSError as error:
                sys.exit(f"{MULTIPROC_DIR}={self.shared.folder}: {error.strerror}")
        metrics.start_counting(self.service)
        stage_metrics.start(self.stages)

    def open(self, **_: Any) -> None:
        """Serve the monitor, and wait for what the worker cannot do without."""
        if self.shared is None:
            log.warning(f"{MULTIPROC_DIR} is not set: what the worker's child counts is not shown")
        checker = checker_of(self.settings, self.service)
        registry = CollectorRegistry()
        registry.register(stage_metrics.ProcessMemory(self.stage))
        registry.register(CheckMetrics(checker))
        if self.shared is not None:
            registry.register(self.shared)
        registries = [registry] if self.shared is not None else [registry, metrics.REGISTRY]

        def checks() -> Mapping[str, str]:
            return readiness(checker.report(), self.service)

        Monitor(self.settings, lambda: metrics.expose(*registries), checks=checks).start()
        require(self.settings, self.service)

    def watch(self, sender: Any, **_: Any) -> None:
        """Hear of children that end. ``sender``: the consumer, connected."""
        pool = sender.pool._pool  # billiard's; it is given its callbacks at each connection
        tidy_up = pool.on_process_down

        def on_process_down(child: Any) -> None:
            tidy_up(child)
            self._note_end(child)

        pool.on_process_down = on_process_down

    def drain_children(self, **_: Any) -> None:
        """Have the child give back its work in time, then end it; asked again, at once."""
        if self.drain.asked:
            self.drain.ask(0.0)
            return
        grace_s = self.settings.drain_grace_s
        self.drain.ask(grace_s)
        last_resort = threading.Timer(grace_s + CLEAN_UP_S, kill_children)
        last_resort.daemon = True
        last_resort.start()

    def stop(self, _signal: int, _frame: FrameType | None) -> None:
        """Stop as Celery does when it is warm, whatever ``REMAP_SIGTERM`` makes of the signal.

        Its soft shutdown sleeps out its time while the child is long done, and then kills it.
        """
        self.drain_children()
        state.should_stop = os.EX_OK

    def _note_end(self, child: Any) -> None:
        if self.shared is not None:
            try:
                self.shared.absorb(child.pid)
            except OSError as error:  # its files stay, and are read as they are
                log.error("no room for metrics", pid=child.pid, detail=error.strerror)
        expected = child.exitcode == os.EX_OK or getattr(child, "_controlled_termination", False)
        if not expected and not self.drain.is_over:
            reason = ending(child.exitcode)
            log.error("child ended unexpectedly", pid=child.pid, reason=reason)
            stage_metrics.WORKER_DEATHS.labels(self.stage, reason).inc()


def leave(_signal: int, _frame: FrameType | None) -> None:
    """End a worker that has not begun."""
    sys.exit(os.EX_OK)


def ending(exitcode: int | None) -> str:
    """Return how a child ended: the name of a signal, or its exit code."""
    if exitcode is not None and exitcode < 0:
        try:
            return signal.Signals(-exitcode).name
        except ValueError:  # a real-time signal
            return f"signal {-exitcode}"
    return f"exit code {exitcode}"


def kill_children() -> None:
    """Kill what does not end. Its runs were given back when the grace was over."""
    for child in psutil.Process().children():
        child.kill()
