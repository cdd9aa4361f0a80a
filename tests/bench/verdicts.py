"""Holds what the archive bench measured against what it must be."""

from __future__ import annotations

from typing import Any

MOST_GROWTH = 1.5  # of the cost per file, from the smallest run to the largest
MOST_RSS_MB = {"gateway": 500.0, "dispatcher": 500.0, "ingester": 500.0}
MOST_REDIS_MB = 50.0
MOST_POLL_P99_MS = 50.0


def compare(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one line per figure: what it is, its bound, and whether it holds."""
    verdicts: list[dict[str, Any]] = []

    def judge(where: str, what: str, figure: float | None, bound: float) -> None:
        holds = figure is not None and figure <= bound
        verdicts.append(
            {"run": where, "what": what, "figure": figure, "at_most": bound, "holds": holds}
        )

    for stack, way in sorted({(run["stack"], run["way"]) for run in runs}):
        same = [run for run in runs if (run["stack"], run["way"]) == (stack, way)]
        same.sort(key=lambda run: run["recordings"])
        smallest, largest = same[0], same[-1]
        where = f"{stack} {way} {largest['recordings']}"
        if largest["recordings"] > smallest["recordings"]:
            for cost in ("submission_ms_per_file", "completion_ms_per_file"):
                judge(where, f"growth of {cost}", ratio(largest[cost], smallest[cost]), MOST_GROWTH)
        for name, bound in MOST_RSS_MB.items():
            judge(where, f"peak memory of {name}, MB", largest["peak_rss_mb"].get(name), bound)
        judge(where, "peak memory of Redis, MB", largest["redis_used_mb"], MOST_REDIS_MB)
        judge(where, "polling p99, ms", largest["poll_ms"]["p99"], MOST_POLL_P99_MS)
        verdicts.append({"run": where, "what": "exact counts", "holds": largest["exact"]})
    return verdicts


def ratio(large: float | None, small: float | None) -> float | None:
    return None if large is None or not small else round(large / small, 3)
