"""What the census tells Prometheus, read back from a scrape."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from common.metrics import expose
from services.dispatcher.census import Census

OF_DATABASE = {
    "stage_runs",
    "backlog_audio_seconds",
    "oldest_ready_age_seconds",
    "failed_runs",
    "jobs",
    "jobs_paused",
    "jobs_late",
    "sources",
    "webhook_deliveries_pending",
    "database_bytes",
}
OF_REDIS = {"queue_messages", "redis_memory_bytes", "redis_max_memory_bytes"}


@dataclass
class Told:
    """A scrape: values by name and labels."""

    values: dict[str, dict[tuple[str, ...], float]]

    @property
    def names(self) -> set[str]:
        return set(self.values)

    def of(self, name: str, *labels: str) -> float:
        return self.values[name][tuple(sorted(labels))]

    def above_zero(self, name: str) -> dict[tuple[str, ...], float]:
        return {labels: value for labels, value in self.values[name].items() if value}


def tell(census: Census) -> Told:
    """Scrape a census that has counted."""
    registry = CollectorRegistry()
    registry.register(census)
    values: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(expose(registry).body.decode()):
        for sample in family.samples:
            name = sample.name.removeprefix("soundmill_")
            values.setdefault(name, {})[tuple(sorted(sample.labels.values()))] = sample.value
    return Told(values)
