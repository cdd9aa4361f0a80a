"""The runs of the archive bench: what is to be made, what was measured, kept in a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from common.domain import Stage
from tests.bench.rig import Kind
from tests.bench.verdicts import compare


class Way(StrEnum):
    """How the recordings are handed in."""

    MANIFEST = "manifest"  # a manifest of file:// or s3:// addresses
    ZIP = "zip"  # one ZIP
    UPLOADS = "uploads"  # one request each, one after the other


@dataclass(frozen=True)
class Plan:
    """One run to be made."""

    stack: Kind
    way: Way
    recordings: int

    def __str__(self) -> str:
        return f"{self.stack} {self.way} {self.recordings}"


@dataclass(frozen=True)
class Run:
    """What one run took. ``exact`` says whether every recording is there and done, once."""

    stack: str
    way: str
    recordings: int
    workers: int
    stages: list[str]
    ended: str  # how: completed, stalled or failed
    exact: bool
    submission_ms_per_file: float | None
    completion_ms_per_file: float | None
    half_seconds: list[float]  # the first half of the stage runs, the second half
    poll_ms: dict[str, float]
    polls: int
    peak_rss_mb: dict[str, float]
    redis_used_mb: float
    cpu_ms_per_file: dict[str, float]
    detail: str = ""


class Ledger:
    """The runs made so far, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: list[dict[str, Any]] = []
        self.current: dict[str, Any] | None = None
        if path.exists():
            self.runs = json.loads(path.read_text())["runs"]

    def has(self, plan: Plan, stages: list[Stage], workers: int) -> bool:
        wanted = (plan.stack, plan.way, plan.recordings, [s.value for s in stages], workers)
        return any(
            (r["stack"], r["way"], r["recordings"], r["stages"], r["workers"]) == wanted
            and r["ended"] == "completed"
            for r in self.runs
        )

    def add(self, run: Run) -> None:
        self.runs.append(asdict(run))
        self.current = None
        self._write()

    def note_progress(self, plan: Plan, seen: dict[str, Any], rss: dict[str, int]) -> None:
        self.current = {"plan": str(plan), **seen, "peak_rss": rss}
        self._write()

    def document(self) -> dict[str, Any]:
        """Return the runs and what they say."""
        return {"runs": self.runs, "verdicts": compare(self.runs), "in_progress": self.current}

    def estimate_s(self, plans: list[Plan]) -> float | None:
        """Return about how long plans will take, from the last such runs; None if unknown."""
        total_s = 0.0
        for plan in plans:
            costs = [
                run["completion_ms_per_file"]
                for run in self.runs
                if (run["stack"], run["way"]) == (plan.stack, plan.way)
                and run["completion_ms_per_file"] is not None
            ]
            if not costs:
                return None
            total_s += plan.recordings * costs[-1] / 1e3
        return total_s

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".tmp")
        beside.write_text(json.dumps(self.document(), indent=1))
        beside.replace(self.path)
