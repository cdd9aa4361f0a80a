"""Prometheus: what the metrics of every process have in common.

Labels never hold an id or a name that a user chose, so that the number of series stays bounded.
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

NAMESPACE = "soundmill"

REQUEST_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120, 600)


@dataclass(frozen=True)
class Exposition:
    """One page of metrics as Prometheus reads it."""

    body: bytes
    media_type: str


def new_registry() -> CollectorRegistry:
    """Return a registry that already tells memory, CPU time and Python of this process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def expose(registry: CollectorRegistry) -> Exposition:
    """Return the metrics of a registry as text."""
    return Exposition(generate_latest(registry), CONTENT_TYPE_LATEST)
