"""Server-sent events of a job."""

from __future__ import annotations

from services.gateway.context import new_router

router = new_router()
