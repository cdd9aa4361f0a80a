"""The ingester's turn, again and again: claim a source, read it on."""

from __future__ import annotations

import threading

from common.db import make_engine, make_sessions
from common.settings import Settings
from common.storage import open_store

IDLE_PAUSE_S = 0.5


class Ingester:
    """Owns the connections."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine = make_engine(settings)
        self.sessions = make_sessions(self.engine)
        self.store = open_store(settings)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def run(self, stop: threading.Event) -> None:
        """Take turns until ``stop`` is set."""
        while not stop.is_set():
            stop.wait(IDLE_PAUSE_S)
