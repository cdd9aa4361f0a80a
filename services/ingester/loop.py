"""The ingester's turn, again and again: claim sources, keep their leases, read them on.

Each source is read by threads of its own, so that one with slow addresses holds up no other. The
last place is kept for interactive jobs, so that a few bytes need not wait for an archive.
"""

from __future__ import annotations

import os
import socket
import threading
import time

from sqlalchemy.exc import OperationalError

from common import logs
from common.db import make_engine, make_readers, make_sessions
from common.monitor import Pulse
from common.settings import Settings
from common.storage import open_store
from services.ingester import claims
from services.ingester.locators import Locators
from services.ingester.reading import Reading

log = logs.get_logger(__name__)

IDLE_PAUSE_S = 0.2
OUTAGE_PAUSE_S = 2.0
TURN_WITHIN_S = 300.0  # a turn that takes longer hangs: SQLite alone makes writers wait for 60 s
SOURCES_AT_ONCE = 4


class Ingester:
    """Owns the connections, the threads and the leases."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine = make_engine(settings)
        self.sessions = make_sessions(self.engine)
        self.readers = make_readers(self.engine)
        self.store = open_store(settings)
        self.locators = Locators(settings)
        self.worker = f"{socket.gethostname()}:{os.getpid()}"
        self._readings: dict[threading.Thread, Reading] = {}
        self._renewed_at = time.monotonic()
        self.pulse = Pulse("the ingester", TURN_WITHIN_S)

    def close(self) -> None:
        """Stop reading and close every connection."""
        for reading in self._readings.values():
            reading.hold.halted.set()
        for thread in self._readings:
            thread.join()
        self.locators.close()
        self.engine.dispose()

    def run(self, stop: threading.Event) -> None:
        """Take turns until ``stop`` is set."""
        while not stop.is_set():
            self.pulse.beat()
            pause_s = IDLE_PAUSE_S
            try:
                self.turn()
            except OperationalError as error:
                log.warning("the database does not answer", detail=str(error.orig))
                pause_s = OUTAGE_PAUSE_S
            stop.wait(pause_s)

    def turn(self) -> None:
        """Renew leases when it is time, start reading what waits."""
        self._readings = {t: reading for t, reading in self._readings.items() if t.is_alive()}
        if time.monotonic() - self._renewed_at > self.settings.ingest_lease_s / 4:
            self._renew()
        while self._start_one():
            pass

    def _renew(self) -> None:
        holds = [reading.hold for reading in self._readings.values()]
        if holds:
            with self.sessions.begin() as session:
                wanted = claims.renew(session, holds, self.settings.ingest_lease_s)
            for hold in holds:
                if hold.source_id not in wanted:
                    hold.halted.set()
        self._renewed_at = time.monotonic()

    def _start_one(self) -> bool:
        free = SOURCES_AT_ONCE - len(self._readings)
        if free == 0:
            return False
        with self.readers() as session:
            if not claims.is_due(session, interactive_only=free == 1):
                return False
        with self.sessions.begin() as session:
            hold = claims.claim(session, self.worker, self.settings, interactive_only=free == 1)
        if hold is None:
            return False
        reading = Reading(self.settings, self.sessions, self.store, self.locators, hold)
        thread = threading.Thread(target=reading.run, name=f"source {hold.source_id}")
        self._readings[thread] = reading
        thread.start()
        return True
