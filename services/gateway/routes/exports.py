"""Results of a whole job, streamed: tables, labels, a ZIP of artifacts."""

from __future__ import annotations

from services.gateway.context import new_router

router = new_router()
