"""What happened, from everywhere but the metrics: the tables, the log, the processes, the disk.

An oracle is a function of ``Truth`` that returns values by labels. The small words here put oracles
together; which one a panel has is in ``tests.e2e.panels``.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
import redis
from prometheus_client.parser import text_string_to_metric_families

from common.domain import Priority, Stage, queue_name
from tests.e2e.conftest import Stack
from tests.e2e.shipped import INTERVAL_S
from tests.e2e.watched_run import Told
from tests.prometheus_server import PrometheusServer

Labels = frozenset[tuple[str, str]]
Values = Mapping[Labels, float]
Oracle = Callable[["Truth"], Values]


@dataclass(frozen=True, eq=False)
class Truth:
    """A run that is over, between two moments at which nothing was counted. Seconds since 1970."""

    stack: Stack
    told: Told
    since: float
    until: float
    targets: Mapping[str, Sequence[str]]  # addresses of processes by service
    server: PrometheusServer  # for what was scraped, as it was: nothing is worked out by it

    @property
    def window_s(self) -> float:
        return self.until - self.since

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Read from the database; ``{during}`` is what a time of the run is."""
        within = f"BETWEEN {self.since!r} AND {self.until!r}"
        return self.stack.rows(sql.replace("{during}", within))

    def log(self, service: str, event: str) -> list[dict[str, Any]]:
        """Return the lines of a process's log that tell of an event during the run."""
        found = []
        with self.stack.home.log(service).open() as file:
            for line in file:
                if line.startswith("{") and (entry := json.loads(line))["event"] == event:
                    at = datetime.fromisoformat(entry["timestamp"]).timestamp()
                    if self.since < at < self.until:
                        found.append(entry)
        return found

    def bounds(self, histogram: str) -> list[float]:
        """Return the upper bounds of a histogram's buckets, in order."""
        series = self.server.samples(f"{histogram}_bucket", "10s", self.until)
        return sorted({float(found.labels["le"]) for found in series})

    @property
    def answered(self) -> list[int]:
        """How deliveries to the webhook were answered in the run."""
        return [status for at, status in self.told.deliveries if self.since < at < self.until]

    @property
    def deleted(self) -> list[str]:
        """Jobs that were deleted in the run."""
        return [job_id for at, job_id in self.told.deleted if self.since < at < self.until]

    def ready(self, address: str) -> dict[str, str]:
        """Return what a process answers when it is asked whether it is ready, by check."""
        answer = httpx.get(f"http://{address}/ready", timeout=60, trust_env=False)
        found: dict[str, str] = answer.json()["checks"]
        return found

    def increases(self, name: str) -> Iterator[tuple[Mapping[str, str], float]]:
        """Yield by how much each series of a counter grew, by labels, added up sample by sample."""
        window = f"{round(self.window_s * 1000)}ms"
        for series in self.server.samples(name, window, self.until):
            values = [value for _, value in series.points]
            yield series.labels, sum(b - a if b >= a else b for a, b in pairwise(values))

    def page_values(self, name: str) -> Iterator[tuple[Mapping[str, str], float]]:
        """Yield samples by labels, as the processes themselves tell them now."""
        for addresses in self.targets.values():
            for address in addresses:
                text = httpx.get(f"http://{address}/metrics", timeout=60, trust_env=False).text
                for family in text_string_to_metric_families(text):
                    for sample in family.samples:
                        if sample.name == name:
                            yield sample.labels, sample.value

    def queue_length(self, stage: Stage, priority: Priority) -> int:
        """Return how many messages wait in a queue of Redis."""
        with self._redis() as client:
            return int(client.llen(queue_name(stage, priority)))

    @cached_property
    def redis_info(self) -> dict[str, Any]:
        """What Redis tells about itself."""
        with self._redis() as client:
            found: dict[str, Any] = client.info()
        return found

    def _redis(self) -> redis.Redis:
        folder = self.stack.state.socket_dir or self.stack.home.broker
        return redis.Redis(unix_socket_path=str(Path(folder) / "redis.sock"))

    def process(self, name: str) -> psutil.Process:
        """Return a process of the stack, by the name it has there."""
        state = self.stack.home.read_state()
        assert state is not None
        return psutil.Process(state.processes[name])


@dataclass(frozen=True)
class Expected:
    """What a query must return, and how far off it may be."""

    oracle: Oracle
    slack: Callable[[Truth, Labels], float] = lambda truth, labels: 0.0  # besides the tolerance
    quiet: str = ""  # why all values may be 0
    absent: str = ""  # why there are no values
    most: int | None = None  # only so many values come out


def near(oracle: Oracle, slack: float) -> Expected:
    """Values that change while they are looked at, by an absolute slack at most."""
    return Expected(oracle, lambda truth, labels: slack)


def near_events(oracle: Oracle, events: float) -> Expected:
    """Rates of what never stops: at both ends of the run some events are counted or not."""
    return Expected(oracle, lambda truth, labels: events / truth.window_s)


def quiet(why: str, slack: float = 0.0) -> Expected:
    """Values that are all 0, and why that is right."""
    return Expected(lambda truth: {}, lambda truth, labels: slack, quiet=why)


def absent(why: str) -> Expected:
    """No values at all, and why that is right."""
    return Expected(lambda truth: {}, absent=why)


def labelled(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> dict[Labels, float]:
    """Return rows of labels and a value, at the end, by labels; those of the same are added up."""
    found: dict[Labels, float] = {}
    for *labels, value in rows:
        key = frozenset(zip(names, map(str, labels), strict=True))
        found[key] = found.get(key, 0.0) + (value or 0.0)
    return found


def sql(query: str, *names: str) -> Oracle:
    """An oracle that asks the database: columns of labels, then one of values."""
    return lambda truth: labelled(names, truth.rows(query))


def per_second(oracle: Oracle, times: float = 1.0) -> Oracle:
    """What happened in the window, per second."""
    return lambda truth: {
        key: value * times / truth.window_s for key, value in oracle(truth).items()
    }


def per_minute(oracle: Oracle) -> Oracle:
    """What happened in the window, per minute."""
    return per_second(oracle, 60.0)


def total(oracle: Oracle) -> Oracle:
    """The sum over all labels."""
    return lambda truth: {frozenset(): sum(oracle(truth).values())}


def scaled(oracle: Oracle, times: float) -> Oracle:
    """The same in another unit."""
    return lambda truth: {key: value * times for key, value in oracle(truth).items()}


def ratio(above: Oracle, below: Oracle) -> Oracle:
    """One over the other, for the labels of ``below``."""

    def divided(truth: Truth) -> Values:
        upper, lower = above(truth), below(truth)
        return {key: upper.get(key, 0.0) / value for key, value in lower.items() if value}

    return divided


def quantile(q: float, histogram: str, query: str, *names: str) -> Expected:
    """A quantile as Prometheus estimates it from buckets, of the values that a query returns."""
    return quantile_of(q, histogram, lambda truth: truth.rows(query), *names)


def quantile_of(
    q: float, histogram: str, rows: Callable[[Truth], Iterable[Sequence[Any]]], *names: str
) -> Expected:
    """A quantile as Prometheus estimates it from buckets, of values from anywhere."""

    def counts(truth: Truth) -> dict[Labels, list[float]]:
        bounds = truth.bounds(histogram)
        found: dict[Labels, list[float]] = {}
        for *labels, value in rows(truth):
            key = frozenset(zip(names, map(str, labels), strict=True))
            found.setdefault(key, [0.0] * len(bounds))[bisect_left(bounds, value)] += 1.0
        return found

    return _estimated(q, histogram, counts)


def raw_quantile(q: float, histogram: str, *names: str) -> Expected:
    """A quantile of a histogram, from what was scraped."""

    def counts(truth: Truth) -> dict[Labels, list[float]]:
        bounds = truth.bounds(histogram)
        found: dict[Labels, list[float]] = {}
        for of, number in truth.increases(f"{histogram}_bucket"):
            key = frozenset((name, of[name]) for name in names)
            found.setdefault(key, [0.0] * len(bounds))[bounds.index(float(of["le"]))] += number
        alone = {key: [b - a for a, b in pairwise([0.0, *sums])] for key, sums in found.items()}
        return {key: numbers for key, numbers in alone.items() if any(numbers)}

    return _estimated(q, histogram, counts)


def _estimated(
    q: float, histogram: str, counts: Callable[[Truth], dict[Labels, list[float]]]
) -> Expected:
    """A quantile from counts. Its rank is as inexact as the counts, each for itself, may be."""

    counted = cache(counts)

    def at(truth: Truth, rank: float) -> Values:
        bounds = truth.bounds(histogram)
        return {key: interpolated(rank, bounds, found) for key, found in counted(truth).items()}

    def slack(truth: Truth, labels: Labels) -> float:
        error = INTERVAL_S / truth.window_s
        low, high = at(truth, q * (1.0 - error)), at(truth, min(1.0, q * (1.0 + error)))
        return high.get(labels, 0.0) - low.get(labels, 0.0)

    return Expected(lambda truth: at(truth, q), slack)


def interpolated(q: float, bounds: Sequence[float], counts: Sequence[float]) -> float:
    """Return a quantile by linear interpolation within the bucket that holds it.

    Args:
        bounds: Upper bounds in order, the last one infinite. In that last bucket Prometheus
            answers with the bound below it.
        counts: Of values in each bucket alone.
    """
    rank, below = q * sum(counts), 0.0
    for (lower, upper), within in zip(pairwise([0.0, *bounds]), counts, strict=True):
        if within and below + within >= rank:
            share = (rank - below) / within
            return lower if math.isinf(upper) else lower + (upper - lower) * share
        below += within
    raise ValueError("no values")


def raw_rate(counter: str, *names: str) -> Oracle:
    """How much a counter grew per second, from what was scraped."""

    def found(truth: Truth) -> Values:
        grown = truth.increases(counter)
        return labelled(names, ((*(of[name] for name in names), n) for of, n in grown))

    return per_second(found)


def each(names: str, values: Callable[[Truth], Iterator[tuple[Any, ...]]]) -> Oracle:
    """An oracle from rows of labels and values; ``names`` of labels are separated by blanks."""
    return lambda truth: labelled(names.split(), values(truth))
