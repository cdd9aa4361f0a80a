"""What the ingester tells Prometheus: each counter is raised after the commit of what it counts."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Counter

from common.domain import SourceKind
from common.metrics import NAMESPACE, REGISTRY

RECORDED, REJECTED = "recorded", "rejected"
OUTCOMES = ("done", "failed", "postponed", "given_back", "cancelled", "lost", "dropped")

SOURCES_READ = Counter(
    "sources_read",
    "Passes over sources, by how they ended.",
    ["kind", "outcome"],
    namespace=NAMESPACE,
    registry=REGISTRY,
)
SOURCE_ENTRIES = Counter(
    "source_entries",
    "Entries of sources that became recordings or rejections; in dry runs those that would.",
    ["kind", "outcome", "reason"],
    namespace=NAMESPACE,
    registry=REGISTRY,
)
INGEST_BYTES = Counter(
    "ingest_bytes",
    "Bytes of entries that became recordings, without dry runs.",
    ["kind"],
    namespace=NAMESPACE,
    registry=REGISTRY,
)


def start_counting() -> None:
    """Make the counters visible at 0. Reasons of rejections appear with their first."""
    for kind in SourceKind:
        for outcome in OUTCOMES:
            SOURCES_READ.labels(kind.value, outcome)
        SOURCE_ENTRIES.labels(kind.value, RECORDED, "")
        INGEST_BYTES.labels(kind.value)


def note_entries(
    kind: SourceKind, recordings: int, size_bytes: int, rejected: Mapping[str, int]
) -> None:
    """Count entries that were recorded.

    Args:
        rejected: Rejections by their code.
    """
    SOURCE_ENTRIES.labels(kind.value, RECORDED, "").inc(recordings)
    INGEST_BYTES.labels(kind.value).inc(size_bytes)
    for code, number in rejected.items():
        SOURCE_ENTRIES.labels(kind.value, REJECTED, code).inc(number)
