"""What was found, as metrics: read when Prometheus asks, from the answers that are kept."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from common.checks.base import Status
from common.checks.checker import Checker
from common.metrics import NAMESPACE


class CheckMetrics:
    """A collector of ``prometheus_client``: register it once per process."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker

    def describe(self) -> list[Metric]:
        """Return nothing: the names are not needed before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield readiness, clocks and disks. A clock or disk that is not known is absent."""
        report = self._checker.report()
        ready = _gauge(
            "ready", "1 where a check found nothing that does not work, else 0.", "check"
        )
        for check in report.checks:
            ready.add_metric([check.name], float(check.status is not Status.FAILED))
        skew = _gauge(
            "clock_skew_seconds", "How far this machine's clock is ahead of another's.", "of"
        )
        for clock in report.clocks:
            skew.add_metric([clock.of], clock.ahead_s)
        free = _gauge("disk_free_bytes", "Room that is left on the disk of a folder.", "place")
        total = _gauge("disk_bytes", "Room on the disk of a folder.", "place")
        for disk in report.disks:
            free.add_metric([disk.place], disk.free_bytes)
            total.add_metric([disk.place], disk.total_bytes)
        yield from (ready, skew, free, total)


def _gauge(name: str, meaning: str, label: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{NAMESPACE}_{name}", meaning, labels=[label])
