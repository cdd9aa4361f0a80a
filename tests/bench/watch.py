"""Watches a job and the processes behind it: polling latency, progress, memory, processor time."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from common.domain import TERMINAL_STATES
from tests.bench.rig import Rig

POLL_EVERY_S = 0.1
SAMPLE_EVERY_S = 1.0
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Progress:
    """How far a job was. ``runs_done`` counts stage runs, whatever became of them."""

    at_s: float  # since the watch began
    recordings: int  # and rejected entries
    runs_done: int
    state: str


@dataclass
class JobWatch:
    """Asks the gateway for a job again and again, as a user's page would, from a thread."""

    rig: Rig
    job_id: str
    latencies_s: list[float] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)  # about one per second
    job: dict[str, Any] = field(default_factory=dict)  # as last told
    error: httpx.HTTPError | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> JobWatch:
        self._began = time.perf_counter()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def elapsed_s(self) -> float:
        return time.perf_counter() - self._began

    def until(self, condition: Callable[[Progress], bool]) -> float | None:
        """Return when a condition was first seen to hold, in seconds since the watch began."""
        return next((seen.at_s for seen in list(self.progress) if condition(seen)), None)

    def _poll(self) -> None:
        options = {"base_url": self.rig.url, "timeout": 60.0, "headers": self.rig.headers}
        try:
            with httpx.Client(trust_env=False, **options) as http:
                while not self._stop.wait(POLL_EVERY_S):
                    asked = time.perf_counter()
                    answer = http.get(f"/v1/jobs/{self.job_id}")
                    self.latencies_s.append(time.perf_counter() - asked)
                    self.job = answer.raise_for_status().json()
                    self._note(progress_of(self.job, self.elapsed_s()))
        except httpx.HTTPError as error:
            self.error = error

    def _note(self, seen: Progress) -> None:
        last = self.progress[-1] if self.progress else Progress(-math.inf, -1, -1, "")
        moved = seen.recordings != last.recordings or seen.state != last.state
        if moved or seen.at_s - last.at_s >= SAMPLE_EVERY_S:
            self.progress.append(seen)


@dataclass
class ProcessWatch:
    """Samples the memory and the processor time of every process from a thread."""

    rig: Rig
    peak_rss: dict[str, int] = field(default_factory=dict)  # bytes, of a process and its children
    redis_bytes: int = 0
    _cpu: dict[str, dict[tuple[int, float], float]] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> ProcessWatch:
        self._sample()
        self._first = {name: dict(seen) for name, seen in self._cpu.items()}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def cpu_s(self) -> dict[str, float]:
        """Return the processor seconds that each process and its children used meanwhile."""
        return {
            name: sum(seen.values()) - sum(self._first.get(name, {}).values())
            for name, seen in self._cpu.items()
        }

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            self._sample()

    def _sample(self) -> None:
        for name, members in self.rig.families().items():
            resident = 0
            for member in members:
                try:
                    times = member.cpu_times()
                    resident += member.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
                which = (member.pid, member.create_time())
                self._cpu.setdefault(name, {})[which] = times.user + times.system
            self.peak_rss[name] = max(self.peak_rss.get(name, 0), resident)
        with self.rig.redis.client() as client:
            self.redis_bytes = max(self.redis_bytes, int(client.info("memory")["used_memory_peak"]))


def progress_of(job: dict[str, Any], at_s: float) -> Progress:
    """Return how far a job is, as the gateway tells it."""
    done = sum(
        number
        for states in job["counts"].values()
        for state, number in states.items()
        if state in TERMINAL_STATES
    )
    return Progress(at_s, job["recordings"] + job.get("rejected", 0), done, job["state"])


def percentile(values: list[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
