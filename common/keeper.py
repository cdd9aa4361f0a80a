"""Holds on to the claims of a shard while a worker goes through them, from a thread of its own.

It renews leases, notices claims that were taken away, and records how runs ended in groups: many
tiny recordings cost few transactions, and a long one does not hold up what ended before it. Ends
that were not recorded when the process dies are found again under their idempotency keys or done
once more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import replace
from types import TracebackType
from typing import TypeVar

from sqlalchemy import update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from common import logs, runs
from common.db import Attempt, DbNow
from common.ends import Dropped, End, Failed, Succeeded, end_runs
from common.errors import StaleFence
from common.runs import Claim
from common.settings import Settings

log = logs.get_logger(__name__)

FLUSH_S = 0.5  # an end waits at most so long until it is recorded
LOOK_S = 1.0  # between looks whether the claims are still held
LEASE_RENEWALS = 3  # times a lease is renewed before it would expire
RETRY_PAUSES_S = (0.5, 1.0, 2.0, 4.0)  # before a transaction is tried again

Result = TypeVar("Result")


class Keeper:
    """The claims of one shard. Use it as a context: all ends are recorded when it is left."""

    def __init__(
        self,
        sessions: sessionmaker[Session],
        readers: sessionmaker[Session],
        settings: Settings,
        claims: Sequence[Claim],
    ) -> None:
        self._sessions = sessions
        self._readers = readers
        self._settings = settings
        self._waiting = {claim.stage_run_id: claim for claim in claims}
        self._lost: set[str] = set()
        self._current: tuple[Claim, float] | None = None
        self._noted: Claim | None = None  # whose start is recorded
        self._ends: list[tuple[End, float]] = []  # with the time they were handed in
        self._lock = threading.Lock()  # of the fields above, held for a moment
        self._flushing = threading.Lock()  # one group after the other
        self._done = threading.Event()
        self._thread = threading.Thread(
            target=copy_context().run,  # so that its log lines name the shard too
            args=(self._keep,),
            name="keeper",
            daemon=True,
        )

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        self.flush()

    def start(self, claim: Claim) -> None:
        """Note that work on a claim begins now.

        Raises:
            StaleFence: it was lost while it waited its turn in the shard.
        """
        self.check(claim)
        with self._lock:
            self._current = (claim, time.monotonic())

    def check(self, claim: Claim) -> None:
        """Return while a claim is held, as far as is known. Raises StaleFence."""
        if claim.stage_run_id in self._lost:
            raise StaleFence(
                f"stage run {claim.stage_run_id} is no longer held under {claim.fence}"
            )

    def end(self, end: End) -> None:
        """Hand in how a run ended. It is recorded soon, together with others."""
        now = time.monotonic()
        with self._lock:
            if self._current is not None and self._current[0] is end.claim:
                if isinstance(end, Succeeded | Failed):
                    end = replace(end, took_s=now - self._current[1])
                self._current = None
            self._ends.append((end, now))

    def flush(self) -> None:
        """Record what has ended so far, and the start of what is being worked on."""
        with self._flushing:
            with self._lock:
                ends, current = list(self._ends), self._current
            if current is not None and current[0] is self._noted:
                current = None
            if ends or current is not None:
                transact(self._sessions, lambda session: self._record(session, ends, current))
            with self._lock:
                del self._ends[: len(ends)]
                for end, _ in ends:
                    self._waiting.pop(end.claim.stage_run_id, None)
                if current is not None:
                    self._noted = current[0]

    def _record(
        self,
        session: Session,
        ends: Sequence[tuple[End, float]],
        current: tuple[Claim, float] | None,
    ) -> None:
        now = time.monotonic()
        aged = [
            replace(end, ago_s=now - at) if isinstance(end, Succeeded | Failed) else end
            for end, at in ends
        ]
        stale = end_runs(session, aged, self._settings) if aged else set()
        for end in aged:
            if end.claim.stage_run_id in stale and not isinstance(end, Dropped):
                log.warning("end discarded", **end.claim.ids)
        if current is not None:
            claim, started = current
            session.execute(
                update(Attempt)
                .where(Attempt.stage_run_id == claim.stage_run_id, Attempt.number == claim.fence)
                .values(started_at=DbNow() - (now - started))
                .execution_options(synchronize_session=False)
            )

    def _keep(self) -> None:
        look_at = renew_at = time.monotonic()
        look_at += LOOK_S
        renew_at += self._settings.lease_s / LEASE_RENEWALS
        while not self._done.wait(FLUSH_S):
            try:
                now = time.monotonic()
                if now >= renew_at:
                    self._renew()
                    renew_at = now + self._settings.lease_s / LEASE_RENEWALS
                self.flush()
                if now >= look_at:
                    self._look()
                    look_at = now + LOOK_S
            except DBAPIError as error:
                log.warning("claims not kept", detail=str(error.orig))

    def _renew(self) -> None:
        with self._sessions.begin() as session:
            runs.renew(session, self._open_claims(), self._settings.lease_s)

    def _look(self) -> None:
        claims = self._open_claims()
        with self._readers() as session:
            held = runs.held(session, claims)
        with self._lock:
            self._lost |= {c.stage_run_id for c in claims if c.stage_run_id not in held}

    def _open_claims(self) -> list[Claim]:
        with self._lock:
            return list(self._waiting.values())


def transact(sessions: sessionmaker[Session], work: Callable[[Session], Result]) -> Result:
    """Run one transaction; try again when the database drops the connection or is busy."""
    for pause_s in RETRY_PAUSES_S:
        try:
            with sessions.begin() as session:
                return work(session)
        except DBAPIError as error:
            log.warning("database transaction tried again", detail=str(error.orig))
            time.sleep(pause_s)
    with sessions.begin() as session:
        return work(session)
