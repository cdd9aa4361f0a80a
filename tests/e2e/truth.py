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
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
import redis
from prometheus_client.parser import text_string_to_metric_families

from common.domain import Priority, Stage, queue_name
from tests.e2e.conftest import Stack
from tests.e2e.watched_run import Told

Labels = frozenset[tuple[str, str]]
Values = Mapping[Labels, float]
Oracle = Callable[["Truth"], Values]
Page = Mapping[tuple[str, Labels], float]  # value of each sample by name and labels
Pages = Mapping[tuple[str, str], Page]  # by service and address


@dataclass(frozen=True)
class Truth:
    """A run that is over, between two moments at which nothing was counted. Seconds since 1970."""

    stack: Stack
    told: Told
    since: float
    until: float
    bounds: Callable[[str], Sequence[float]]  # upper ones of a histogram's buckets
    targets: Mapping[str, Sequence[str]]  # addresses of processes by service
    pages: Sequence[Pages]  # of metrics, one after the other: at both ends and before each restart

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

    def increases(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """Yield by how much samples grew, by labels, as the processes themselves tell it."""
        for process, last in self.pages[-1].items():
            for sample, labels in last:
                if sample != name:
                    continue
                told = [page.get(process, {}).get((sample, labels), 0.0) for page in self.pages]
                grown = sum(b - a if b >= a else b for a, b in pairwise(told))
                yield {"job": process[0], **dict(labels)}, grown

    def samples(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """Yield samples by labels, as the processes themselves told them at the end."""
        for process, page in self.pages[-1].items():
            for (sample, labels), value in page.items():
                if sample == name:
                    yield {"job": process[0], **dict(labels)}, value

    def queue_length(self, stage: Stage, priority: Priority) -> int:
        """Return how many messages wait in a queue of Redis."""
        with self._redis() as client:
            return int(client.llen(queue_name(stage, priority)))

    @cached_property
    def redis(self) -> dict[str, Any]:
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
    slack: Callable[[Truth], float] = lambda truth: 0.0  # on top of what every query may be off
    quiet: str = ""  # why all values are 0
    absent: str = ""  # why there are no values


def near(oracle: Oracle, slack: float) -> Expected:
    """Values that change while they are looked at, by an absolute slack at most."""
    return Expected(oracle, lambda truth: slack)


def near_events(oracle: Oracle, events: float, times: float = 1.0) -> Expected:
    """Rates of what never stops: at both ends of the run some events are counted or not."""
    return Expected(oracle, lambda truth: events * times / truth.window_s)


def quiet(why: str, slack: float = 0.0) -> Expected:
    """Values that are all 0, and why that is right."""
    return Expected(lambda truth: {}, lambda truth: slack, quiet=why)


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


def quantile(q: float, histogram: str, query: str, *names: str) -> Oracle:
    """A quantile as Prometheus estimates it from buckets, of the values that a query returns."""

    def rows(truth: Truth) -> Iterator[tuple[Any, ...]]:
        yield from truth.rows(query)

    return quantile_of(q, histogram, rows, *names)


def quantile_of(
    q: float, histogram: str, rows: Callable[[Truth], Iterable[Sequence[Any]]], *names: str
) -> Oracle:
    """A quantile as Prometheus estimates it from buckets, of values from anywhere."""

    def estimated(truth: Truth) -> Values:
        bounds = truth.bounds(histogram)
        counts: dict[Labels, list[float]] = {}
        for *labels, value in rows(truth):
            key = frozenset(zip(names, map(str, labels), strict=True))
            found = counts.setdefault(key, [0.0] * len(bounds))
            found[bisect_left(bounds, value)] += 1.0
        return {key: interpolated(q, bounds, found) for key, found in counts.items()}

    return estimated


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


def page_rate(sample: str, *names: str) -> Oracle:
    """How much a counter grew per second, as the processes themselves tell it."""

    def found(truth: Truth) -> Values:
        grown = truth.increases(sample)
        return labelled(names, ((*(of[name] for name in names), n) for of, n in grown))

    return per_second(found)


def page_quantile(q: float, histogram: str, *names: str) -> Oracle:
    """A quantile of a histogram, as the processes themselves tell it."""

    def found(truth: Truth) -> Values:
        bounds = truth.bounds(histogram)
        cumulated: dict[Labels, list[float]] = {}
        for of, number in truth.increases(f"{histogram}_bucket"):
            key = frozenset((name, of[name]) for name in names)
            sums = cumulated.setdefault(key, [0.0] * len(bounds))
            sums[bounds.index(float(of["le"]))] += number
        counts = {
            key: [b - a for a, b in pairwise([0.0, *sums])] for key, sums in cumulated.items()
        }
        return {key: interpolated(q, bounds, n) for key, n in counts.items() if sum(n)}

    return found


def read_page(address: str) -> Page:
    """Return all samples of a process as it tells them now."""
    text = httpx.get(f"http://{address}/metrics", timeout=60, trust_env=False).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def each(names: str, values: Callable[[Truth], Iterator[tuple[Any, ...]]]) -> Oracle:
    """An oracle from rows of labels and values; ``names`` of labels are separated by blanks."""
    return lambda truth: labelled(names.split(), values(truth))
