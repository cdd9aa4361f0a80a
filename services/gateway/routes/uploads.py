"""Multipart uploads: large files in parts, resumable."""

from __future__ import annotations

from services.gateway.context import new_router

router = new_router()
