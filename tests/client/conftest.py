"""The running gateway of ``tests.gateway``, for the command and the typed client to talk to."""

from __future__ import annotations

import pytest

from tests.gateway.conftest import gateway, gateway_settings, gateway_with_keys

__all__ = ["gateway", "gateway_settings", "gateway_with_keys"]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing wait for long where nothing will come."""
    monkeypatch.setattr("client.api.tries.FIRST_PAUSE_S", 0.001)
