"""A dispatcher and workers as processes, around the database, store and Redis of one test."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from client.stack import worker_arguments
from common.domain import Priority, Stage, queue_name
from common.metrics import MULTIPROC_DIR
from common.settings import Settings
from tests.servers import Process, free_port

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120.0
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass
class Worker:
    """One worker: its parent, as a process."""

    name: str
    process: Process
    port: int
    log: Path

    @property
    def child(self) -> psutil.Process:
        """The child that works, once there is one."""
        return until(lambda: psutil.Process(self.process.pid).children())[0]

    def page(self, path: str = "/metrics") -> httpx.Response:
        """Ask its monitor, once it answers."""
        return until(lambda: self._page(path))

    def _page(self, path: str) -> httpx.Response | None:
        assert psutil.Process(self.process.pid).is_running(), self.log.read_text()
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=30, trust_env=False)
        except httpx.ConnectError:
            return None

    def samples(self) -> Samples:
        """Return what its monitor tells, by name and labels."""
        page = self.page()
        assert page.status_code == 200, page.text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(page.text)
            for sample in family.samples
        }

    def ask_to_stop(self) -> None:
        os.kill(self.process.pid, signal.SIGTERM)

    def stop(self) -> None:
        """Ask it to stop and wait until it has, in good order."""
        self.ask_to_stop()
        assert self.process.wait() == 0, self.log.read_text()


@dataclass
class Fleet:
    """Starts processes; those that still run are killed in the end."""

    settings: Settings
    folder: Path
    started: list[Process] = field(default_factory=list)

    def dispatcher(self) -> Process:
        return self._start("dispatcher", ["-m", "services.dispatcher"], {})

    def paced(self, name: str, *stages: Stage, **settings: Any) -> Worker:
        """Start a worker that does as ``tests.pipeline.paced`` says.

        Args:
            stages: What it does; all when none is named.
            settings: Beside those of the fleet; ``metrics_folder`` "" for none.
        """
        arguments = worker_arguments(Stage.SEGMENT, name)
        queues = [queue_name(s, p) for p in Priority for s in stages or Stage]
        arguments[arguments.index("-A") + 1] = "tests.pipeline.paced:app"
        arguments[arguments.index("--queues") + 1] = ",".join(queues)
        return self._worker(name, arguments, settings)

    def real(self, name: str, stage: Stage, **settings: Any) -> Worker:
        """Start a real worker."""
        return self._worker(name, worker_arguments(stage, name), settings)

    def _worker(self, name: str, arguments: list[str], settings: dict[str, Any]) -> Worker:
        port = free_port()
        folder = settings.pop("metrics_folder", str(self.folder / f"metrics-{name}"))
        own = {MULTIPROC_DIR: folder} if folder else {}
        process = self._start(name, arguments, own, metrics_port=port, **settings)
        return Worker(name, process, port, self.folder / f"{name}.log")

    def _start(
        self, name: str, arguments: list[str], own: dict[str, str], **settings: Any
    ) -> Process:
        values = {**self.settings.model_dump(exclude_unset=True), **settings}
        environment = {
            **os.environ,
            **{f"SOUNDMILL_{k.upper()}": _text(value) for k, value in values.items()},
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "REMAP_SIGTERM": "SIGQUIT",
            **own,
        }
        command = [sys.executable, *arguments]
        process = Process(command, self.folder / f"{name}.log", env=environment)
        self.started.append(process)
        return process


@contextmanager
def fleet(settings: Settings, folder: Path) -> Iterator[Fleet]:
    """Give a fleet, and end it."""
    here = Fleet(settings, folder)
    try:
        yield here
    finally:
        for process in here.started:
            process.kill()


def until(condition: Callable[[], Any], says: Callable[[], Any] = lambda: "") -> Any:
    """Return the first true value of ``condition``."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    pytest.fail(f"never happened: {says()}")


def _text(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
