"""Prometheus: what the metrics of every process have in common.

Each process registers its own in ``REGISTRY`` (the gateway in one per application). The processes
of a Celery worker share theirs by files: where ``PROMETHEUS_MULTIPROC_DIR`` is set, what children
counted is exposed by their parent, and outlives them (``common.shared_metrics``).

Labels never hold an id or a name that a user chose, so that the number of series stays bounded.
The names, with their units and labels, are listed in ``docs/metrics.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

NAMESPACE = "soundmill"
MULTIPROC_DIR = "PROMETHEUS_MULTIPROC_DIR"

REQUEST_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120, 600)
WORK_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 21600)

# One more series for each counter, which nobody looks at.
disable_created_metrics()

REGISTRY = CollectorRegistry()

STORE_SECONDS = Histogram(
    "store_seconds",
    "Time that an operation of the object store took, without waiting for who sends or reads.",
    ["operation"],
    namespace=NAMESPACE,
    registry=REGISTRY,
    buckets=REQUEST_BUCKETS_S,
)
STORE_ERRORS = Counter(
    "store_errors",
    "Operations of the object store that failed, by the code of the error.",
    ["operation", "reason"],
    namespace=NAMESPACE,
    registry=REGISTRY,
)
DATABASE_ERRORS = Counter(
    "database_errors",
    "Transactions and queries that the database refused or did not answer.",
    ["reason"],
    namespace=NAMESPACE,
    registry=REGISTRY,
)
BROKER_ERRORS = Counter(
    "broker_errors",
    "Times that Redis did not answer or refused.",
    ["reason"],
    namespace=NAMESPACE,
    registry=REGISTRY,
)
BUILD_INFO = Gauge(
    "build_info",
    "Always 1: which version of which service this is.",
    ["service", "version"],
    namespace=NAMESPACE,
    registry=REGISTRY,
    multiprocess_mode="livemax",
)
DATABASE_REASONS = ("OperationalError", "IntegrityError", "DatabaseError")  # SQLAlchemy's words
BROKER_REASONS = ("ConnectionError", "TimeoutError", "OperationalError", "ResponseError")


@dataclass(frozen=True)
class Exposition:
    """One page of metrics as Prometheus reads it."""

    body: bytes
    media_type: str


def start_counting(service: str) -> None:
    """Tell what runs here, and make counters of errors visible before the first error."""
    BUILD_INFO.labels(service, version("soundmill")).set(1)
    for reason in DATABASE_REASONS:
        DATABASE_ERRORS.labels(reason)
    for reason in BROKER_REASONS:
        BROKER_ERRORS.labels(reason)


def count_broker_error(error: Exception) -> None:
    """Count that Redis did not answer or refused. Called where such an error is caught."""
    BROKER_ERRORS.labels(type(error).__name__).inc()


def new_registry() -> CollectorRegistry:
    """Return a registry that already tells memory, CPU time and Python of this process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def expose(*registries: CollectorRegistry) -> Exposition:
    """Return the metrics of registries, which have no name in common, as text."""
    body = b"".join(generate_latest(registry) for registry in registries)
    return Exposition(body, CONTENT_TYPE_LATEST)
