"""Webhooks: who is told what happens to jobs."""

from __future__ import annotations

from services.gateway.context import new_router

router = new_router()
