"""The whole of Soundmill, embedded, as a user runs it: real processes, queues and models."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from client.home import Home, StackState
from client.stack import choose_port

STOP_TIMEOUT_S = 60.0
TERMINAL = {"succeeded", "failed", "quarantined", "skipped", "cancelled"}


@dataclass(frozen=True)
class Stack:
    """A running stack and short ways to use it and to look behind it."""

    home: Home
    state: StackState
    http: httpx.Client

    def submit(self, paths: list[Path], **job: Any) -> str:
        """Submit files as one closed job; return its id."""
        answer = self.http.post("/v1/jobs", json={"name": "test", **job}).raise_for_status()
        job_id: str = answer.json()["id"]
        for path in paths:
            with path.open("rb") as body:
                self.http.post(
                    f"/v1/jobs/{job_id}/recordings", params={"name": path.name}, content=body
                ).raise_for_status()
        self.http.post(f"/v1/jobs/{job_id}/close").raise_for_status()
        return job_id

    def job(self, job_id: str) -> dict[str, Any]:
        """Return the job as the API tells it."""
        found: dict[str, Any] = self.http.get(f"/v1/jobs/{job_id}").raise_for_status().json()
        return found

    def wait(self, job_id: str, timeout_s: float = 300.0) -> dict[str, Any]:
        """Return the job once it has completed."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            job = self.job(job_id)
            if job["state"] == "completed":
                return job
            time.sleep(0.2)
        pytest.fail(f"not completed after {timeout_s} s: {self.job(job_id)}")

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Read from the database, past the API."""
        with closing(sqlite3.connect(self.home.folder / "soundmill.db", timeout=60)) as connection:
            return connection.execute(sql, values).fetchall()

    def until(self, condition: Callable[[], Any], timeout_s: float = 300.0) -> Any:
        """Return the first true value of ``condition``."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if value := condition():
                return value
            time.sleep(0.02)
        pytest.fail(f"never happened within {timeout_s} s")


def kill_tree(pid: int) -> None:
    """Kill a process and its children with SIGKILL, as a power cut would."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        family = [*process.children(recursive=True), process]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()


def stop(home: Home) -> None:
    """Stop the supervisor of a home and everything it started."""
    state = home.read_state()
    if state is None:
        return
    supervisor = psutil.Process(state.pid)
    os.kill(state.pid, signal.SIGTERM)
    os.kill(state.pid, signal.SIGTERM)  # twice: do not wait for work in progress
    try:
        supervisor.wait(STOP_TIMEOUT_S)
    except psutil.TimeoutExpired:
        kill_tree(state.pid)
        raise


def start(home: Home) -> StackState:
    """Start a stack as a user would, on a port of its own."""
    port = str(choose_port("127.0.0.1", 0))
    command = ["up", "--detach", "--home", str(home.folder), "--port", port]
    subprocess.run(
        [sys.executable, "-m", "client.cli", *command], check=True, stdout=subprocess.DEVNULL
    )
    state = home.read_state()
    assert state is not None
    return state


@pytest.fixture(scope="module")
def stack_settings() -> dict[str, str]:
    """Settings of the stack; modules override this fixture."""
    return {}


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, stack_settings: dict[str, str]
) -> Iterator[Stack]:
    """A stack in a home of its own, one per module."""
    home = Home.at(tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stack_settings.items():
            patch.setenv(f"SOUNDMILL_{name.upper()}", value)
        state = start(home)
    try:
        with httpx.Client(base_url=state.url, timeout=60, trust_env=False) as http:
            yield Stack(home, state, http)
    finally:
        stop(home)
