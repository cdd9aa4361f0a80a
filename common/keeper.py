"""Holds on to the claims of a shard while a worker goes through them, from a thread of its own.

It renews leases, notices claims that were taken away, gives back what a stopping worker will not
finish, and records how runs ended in groups: many tiny recordings cost few transactions, and a long
one does not hold up what ended before it. Ends that were not recorded when the process dies are
found again under their idempotency keys or done once more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TypeVar

from sqlalchemy import update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from common import logs, runs, stage_metrics, stage_traces
from common.db import DbNow
from common.draining import Drain
from common.ends import Dropped, End, Ended, GivenBack, GivenBackFor, Succeeded, end_runs
from common.errors import StaleFence
from common.runs import Claim
from common.settings import Settings
from common.tables import Attempt
from common.timesheet import Spent, Timesheet

log = logs.get_logger(__name__)

FLUSH_S = 0.5  # an end waits at most so long until it is recorded
LOOK_S = 1.0  # between looks whether the claims are still held
LEASE_RENEWALS = 3  # times a lease is renewed before it would expire
RETRY_PAUSES_S = (0.5, 1.0, 2.0, 4.0)  # before a transaction is tried again

Result = TypeVar("Result")


@dataclass
class _Begun:
    """A claim that is being worked on, beside others perhaps."""

    claim: Claim
    at: float
    is_noted: bool = False  # its start is recorded


class Keeper:
    """The claims of one shard. Use it as a context: all ends are recorded when it is left."""

    def __init__(
        self,
        sessions: sessionmaker[Session],
        readers: sessionmaker[Session],
        settings: Settings,
        drain: Drain,
        claims: Sequence[Claim],
    ) -> None:
        self._sessions = sessions
        self._readers = readers
        self._settings = settings
        self._drain = drain
        self._stage = claims[0].stage  # a shard is of one stage
        self._waiting = {claim.stage_run_id: claim for claim in claims}
        self._lost: set[str] = set()
        self._given_back: set[str] = set()  # because the worker stops
        self._begun: dict[str, _Begun] = {}
        self._times = Timesheet()  # of what was begun, by run
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
            StaleFence: it was lost while it waited its turn in the shard, or the worker stops.
        """
        with self._lock:
            self._stop_if_asked()
            self.check(claim)
            now = time.monotonic()
            self._times.begin(claim.stage_run_id, now)
            self._begun[claim.stage_run_id] = _Begun(claim, now)

    @contextmanager
    def turn(self, claim: Claim, weight: float) -> Iterator[None]:
        """Make the time of the block a claim's own, or one of several's, by their weights."""
        with self._lock:
            self._times.enter(claim.stage_run_id, weight, time.monotonic())
        try:
            yield
        finally:
            with self._lock:
                self._times.leave(claim.stage_run_id, time.monotonic())

    def spent(self, claim: Claim) -> Spent:
        """Return what a claim has had of the time so far: nothing unless it is being worked on."""
        with self._lock:
            return self._times.spent(claim.stage_run_id, time.monotonic()) or Spent(0.0, 0.0)

    def check(self, claim: Claim) -> None:
        """Return while a claim is held, as far as is known. Raises StaleFence."""
        if claim.stage_run_id in self._given_back:
            raise StaleFence(f"stage run {claim.stage_run_id} was given back: the worker stops")
        if claim.stage_run_id in self._lost:
            raise StaleFence(
                f"stage run {claim.stage_run_id} is no longer held under {claim.fence}"
            )

    def end(self, end: End) -> None:
        """Hand in how a run ended. It is recorded soon, together with others."""
        now = time.monotonic()
        with self._lock:
            self._begun.pop(end.claim.stage_run_id, None)
            spent = self._times.end(end.claim.stage_run_id, now)
            if spent is not None and not isinstance(end, Dropped):
                end = replace(end, took_s=spent.own_s)
            if end.claim.stage_run_id not in self._given_back:
                self._ends.append((end, now))
            elif isinstance(end, Succeeded | Dropped):
                self._ends.append((Dropped(end.claim, end.key), now))

    def flush(self) -> None:
        """Record what has ended so far, and the start of what is being worked on."""
        with self._flushing:
            with self._lock:
                ends = list(self._ends)
                begun = [work for work in self._begun.values() if not work.is_noted]
            ended = Ended()
            if ends or begun:
                ended = transact(self._sessions, lambda session: self._record(session, ends, begun))
            with self._lock:
                del self._ends[: len(ends)]
                for end, _ in ends:
                    self._waiting.pop(end.claim.stage_run_id, None)
                for work in begun:
                    work.is_noted = True
            fenced = len(ended.stale - self._given_back)
            stage_metrics.count_ends(self._stage, ended.attempts, fenced)
            stage_traces.tell_ends([end.claim for end, _ in ends], ended.attempts)

    def _record(
        self,
        session: Session,
        ends: Sequence[tuple[End, float]],
        begun: Sequence[_Begun],
    ) -> Ended:
        now = time.monotonic()
        aged = [
            end if isinstance(end, Dropped) else replace(end, ago_s=now - at) for end, at in ends
        ]
        ended = end_runs(session, aged, self._settings) if aged else Ended()
        for end in aged:
            if end.claim.stage_run_id in ended.stale and not isinstance(end, Dropped):
                log.warning("end discarded", **end.claim.ids)
        for work in begun:
            run_id, fence = work.claim.stage_run_id, work.claim.fence
            session.execute(
                update(Attempt)
                .where(Attempt.stage_run_id == run_id, Attempt.number == fence)
                .values(started_at=DbNow() - (now - work.at))
                .execution_options(synchronize_session=False)
            )
        return ended

    def _stop_if_asked(self) -> None:
        """Give back what is not begun once the worker stops; all, once its grace is over.

        The lock is held. Who works on what is given back learns it at the next ``check``.
        """
        if not self._drain.asked:
            return
        now = time.monotonic()
        handed_in = {end.claim.stage_run_id for end, _ in self._ends} | self._given_back
        for run_id, claim in self._waiting.items():
            if run_id in handed_in or run_id in self._lost:
                continue
            if run_id in self._begun and not self._drain.is_over:
                continue
            self._begun.pop(run_id, None)
            spent = self._times.end(run_id, now)
            took_s = None if spent is None else spent.own_s
            back = GivenBack(claim, GivenBackFor.WORKER_STOPPING, took_s=took_s)
            self._ends.append((back, now))
            self._given_back.add(run_id)
            log.info("given back: the worker stops", begun=took_s is not None, **claim.ids)

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
                with self._lock:
                    self._stop_if_asked()
                self.flush()
                if now >= look_at:
                    self._look()
                    look_at = now + LOOK_S
            except DBAPIError as error:
                log.warning("claims not kept", detail=str(error.orig))
            except Exception as error:  # without this thread the leases would expire
                log.error("claims not kept", exc_info=error)

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
