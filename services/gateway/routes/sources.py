"""Sources: archives, manifests, prefixes and lists of URLs that hold a job's recordings."""

from __future__ import annotations

from services.gateway.context import new_router

router = new_router()
