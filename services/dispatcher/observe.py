"""What the dispatcher has done, as counters: each is raised after the commit of what it counts.

What there is to do is counted from the database by ``census``.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Counter, Histogram

from common.domain import ENDED_STATES, Priority, Stage
from common.metrics import NAMESPACE, REGISTRY, WORK_BUCKETS_S
from common.settings import Settings
from services.dispatcher.shards import Shard

RUNS_BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64, 128, 256)
FILL_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
DELIVERED, RETRIED, FAILED = "delivered", "retried", "failed"
SWEPT_KINDS = ("retention", "job", "result", "upload", "multipart", "request")
DATABASE, BROKER = "database", "broker"


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    return Counter(name, meaning, labels, namespace=NAMESPACE, registry=REGISTRY)


SHARDS_PUBLISHED = _counter("shards_published", "Shards put on a queue.", "stage", "priority")
SHARD_RUNS = Histogram(
    "shard_runs",
    "Stage runs of a published shard.",
    ["stage"],
    namespace=NAMESPACE,
    registry=REGISTRY,
    buckets=RUNS_BUCKETS,
)
SHARD_FILL = Histogram(
    "shard_fill_ratio",
    "How full a published shard is: audio or runs over the most it may hold, whichever is larger.",
    ["stage"],
    namespace=NAMESPACE,
    registry=REGISTRY,
    buckets=FILL_BUCKETS,
)
LEASES_EXPIRED = _counter(
    "leases_expired", "Stage runs taken back because their worker stopped answering.", "stage"
)
MESSAGES_LOST = _counter(
    "messages_lost", "Stage runs taken back because their message was lost.", "stage"
)
QUARANTINED = _counter(
    "quarantined", "Stage runs given up because they killed their workers.", "stage"
)
TURN_SECONDS = Histogram(
    "turn_seconds",
    "Time of one turn of the dispatcher: recover, end, dispatch, count.",
    namespace=NAMESPACE,
    registry=REGISTRY,
    buckets=WORK_BUCKETS_S,
)
TURNS_FAILED = _counter("turns_failed", "Turns given up, by what did not answer.", "reason")
WEBHOOK_DELIVERIES = _counter(
    "webhook_deliveries", "Attempts to deliver an event to a webhook, by how they ended.", "outcome"
)
JOBS_ENDED = _counter("jobs_ended", "Jobs that ended, by the state they ended in.", "state")
SWEPT = _counter("swept", "Things removed because nobody wants them any more.", "kind")


def start_counting() -> None:
    """Make every counter visible at 0, so that its first increase is seen as one."""
    for stage in Stage:
        for priority in Priority:
            SHARDS_PUBLISHED.labels(stage.value, priority.value)
        for histogram in (SHARD_RUNS, SHARD_FILL):
            histogram.labels(stage.value)
        for counter in (LEASES_EXPIRED, MESSAGES_LOST, QUARANTINED):
            counter.labels(stage.value)
    for reason in (DATABASE, BROKER):
        TURNS_FAILED.labels(reason)
    for outcome in (DELIVERED, RETRIED, FAILED):
        WEBHOOK_DELIVERIES.labels(outcome)
    for state in ENDED_STATES:
        JOBS_ENDED.labels(state.value)
    for kind in SWEPT_KINDS:
        SWEPT.labels(kind)


def note_shard(shard: Shard, settings: Settings) -> None:
    """Count a shard that was published. A recording longer than a shard fills it."""
    runs = len(shard.stage_run_ids)
    fill = max(shard.audio_s / settings.shard_audio_s, runs / settings.shard_max_runs)
    SHARDS_PUBLISHED.labels(shard.stage.value, shard.priority.value).inc()
    SHARD_RUNS.labels(shard.stage.value).observe(runs)
    SHARD_FILL.labels(shard.stage.value).observe(min(1.0, fill))


def add(counter: Counter, by_label: Mapping[str, int]) -> None:
    """Raise a counter of one label for each of its values."""
    for label, number in by_label.items():
        counter.labels(label).inc(number)
