"""Keeps what a job's metrics were for ten times as long as it took to sum them up.

However often they are asked for, they cost the database a small part of the time, and at most
``AT_ONCE`` are summed up at the same time; others wait for their turn.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from anyio import CapacityLimiter

from services.gateway.metric_schemas import JobMetricsOut

AT_ONCE = 2
MOST_KEPT = 200  # jobs
KEPT_FOR = 10.0  # times what it took


@dataclass(frozen=True)
class _Kept:
    metrics: JobMetricsOut
    until: float  # on this process's monotonic clock


@dataclass
class Measured:
    """The metrics of jobs that were asked for lately. Safe to use from several threads."""

    limiter: CapacityLimiter = field(default_factory=partial(CapacityLimiter, AT_ONCE))
    _kept: OrderedDict[str, _Kept] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def known(self, job_id: str) -> JobMetricsOut | None:
        """Return what was found for a job, if that is still good."""
        with self._lock:
            kept = self._kept.get(job_id)
        return None if kept is None or kept.until < time.monotonic() else kept.metrics

    def find(self, job_id: str, look: Callable[[], JobMetricsOut]) -> JobMetricsOut:
        """Return what is known of a job, or what ``look`` finds and keep that for a while.

        Run it within ``limiter``.
        """
        known = self.known(job_id)  # by somebody for whom we waited
        if known is not None:
            return known
        started = time.monotonic()
        found = look()
        now = time.monotonic()
        with self._lock:
            self._kept[job_id] = _Kept(found, now + KEPT_FOR * (now - started))
            self._kept.move_to_end(job_id)
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return found
