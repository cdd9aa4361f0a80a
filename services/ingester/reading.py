"""Reads one source on from its cursor: entries in order, stored side by side, recorded in batches.

A pass ends in one of six ways: the source is done, has failed, is postponed, is given back, is
cancelled with its job, or belongs to another ingester by now.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from hashlib import sha256

from sqlalchemy.exc import OperationalError

from common import logs, traces
from common.errors import (
    InternalError,
    NotFound,
    Outage,
    SoundmillError,
    SourceInvalid,
    StaleFence,
    TransientError,
)
from common.jobs import recording_key
from common.settings import Settings
from common.sources import MAY_PASS, ArchiveSpec, ManifestSpec, owned_object, parse_spec
from common.storage import ObjectStore
from common.traces import Kind
from services.ingester import claims, observe
from services.ingester.batches import MAX_BATCH, Outcome, record
from services.ingester.claims import MAX_LOSSES, Hold, JobEnded, Sessions
from services.ingester.entries import Entry, Found, Refused, Tally
from services.ingester.estimates import Estimate, measured_pace
from services.ingester.locators import Locators
from services.ingester.readers import CONSUMED, read_entries
from services.ingester.taking import Halted, Taker, recording_id

log = logs.get_logger(__name__)

BATCH_S = 1.0  # recordings show up in the job at least this often
MAX_PENDING = 64  # entries taken but not yet collected in order
NUMBER_TAIL = 12 + 3
"""Characters at the end of a recording's key: neighbours share what stands before them."""

ESTIMATE_S = 5.0  # how long a measured pace is used


class Reading:
    """One pass over one source."""

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        store: ObjectStore,
        locators: Locators,
        hold: Hold,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._store = store
        self._locators = locators
        self._ids = {
            "source_id": hold.source_id,
            "job_id": hold.job_id,
            "trace_id": traces.trace_id_of(hold.traceparent),
        }
        self._pool = ThreadPoolExecutor(
            settings.ingest_threads, "store", initializer=partial(logs.bind_on, **self._ids)
        )
        self.hold = hold
        self._taker = Taker(settings, store, hold)
        self._tally = Tally()
        self._cursor = hold.entries
        self._recordings = hold.recordings
        self._pending: deque[Outcome | Future[Outcome]] = deque()
        self._outcomes: list[Outcome] = []
        self._recorded_at = time.monotonic()
        self._pace: float | None = None
        self._pace_at = 0.0
        self._progressed = False
        self._outcome = "dropped"  # unless it ends in one of the other ways

    def run(self) -> None:
        """Read until the source ends or ``hold.halted`` is set; never raises."""
        parent = traces.parse(self.hold.traceparent)
        with logs.bind(**self._ids), traces.span("read source", parent, Kind.CONSUMER) as span:
            try:
                self._read_to_an_end()
            except Exception:  # the lease expires, then another pass follows
                self._outcome = "dropped"
                log.exception("the source was dropped")
            finally:
                self._drop_pending()
                self._pool.shutdown()
                observe.SOURCES_READ.labels(self.hold.kind.value, self._outcome).inc()
                span.note(self._facts())
                if self._outcome in ("failed", "dropped"):
                    span.fail(self._outcome)

    def _facts(self) -> dict[str, str | int]:
        """Return what a span tells of this pass."""
        return {
            "soundmill.source_id": self.hold.source_id,
            "soundmill.job_id": self.hold.job_id,
            "soundmill.kind": self.hold.kind.value,
            "soundmill.entries": self._cursor - self.hold.entries,
            "soundmill.recordings": self._recordings - self.hold.recordings,
            "soundmill.outcome": self._outcome,
        }

    def _read_to_an_end(self) -> None:
        hold = self.hold
        try:
            if hold.failures >= MAX_LOSSES:
                raise SourceInvalid("source_unavailable", "reading it ended its reader repeatedly")
            self._read()
            with self._sessions.begin() as session:
                claims.end(session, hold, dict(self._tally.left_out))
            self._outcome = "done"
            log.info("source read", entries=self._cursor)
            self._delete_owned()
        except JobEnded:
            self._cancel()
        except StaleFence:
            self._outcome = "lost"
            log.warning("source is held by another ingester")
        except Halted:
            self._outcome = "given_back"
            with self._sessions.begin() as session:
                claims.give_back(session, hold)
        except SourceInvalid as error:
            self._fail(error.code, str(error))
        except (TransientError, OperationalError) as error:
            self._postpone(error)
        except Exception as error:
            log.exception("reading the source failed")
            self._postpone(InternalError(f"{type(error).__name__} while reading"))

    def _read(self) -> None:
        """Read to the source's end; what came before an error is recorded first."""
        failure: SourceInvalid | None = None
        spec = parse_spec(self.hold.kind, self.hold.spec)
        if self._cursor == 0 and isinstance(spec, ArchiveSpec | ManifestSpec):
            self._check_hash(spec)
        entries = read_entries(
            self._store, self._locators, self._settings, spec, self._cursor, self._tally
        )
        try:
            try:
                self._take_all(entries)
            except SourceInvalid as error:
                failure = error
            self._collect(0)
        finally:
            self._record()
        if failure is not None:
            raise failure

    def _check_hash(self, spec: ArchiveSpec | ManifestSpec) -> None:
        """Compare what arrived with what was declared. Raises SourceInvalid, Halted."""
        if spec.sha256 is None:
            return
        digest = sha256()
        try:
            with self._store.open(spec.object_key) as blocks:
                for block in blocks:
                    if self.hold.halted.is_set():
                        raise Halted
                    digest.update(block)
        except NotFound as error:
            raise SourceInvalid("source_unavailable", "what was uploaded is gone") from error
        if digest.hexdigest() != spec.sha256:
            raise SourceInvalid("hash_mismatch", f"it has the SHA-256 {digest.hexdigest()}")

    def _take_all(self, entries: Iterator[Found]) -> None:
        for found in entries:
            if self.hold.halted.is_set():
                raise Halted
            if isinstance(found, Refused):
                self._pending.append(found)
            elif isinstance(found, Entry):
                self._pending.append(
                    self._taker.take(found)
                    if found.inline
                    else self._pool.submit(self._taker.take, found)
                )
            self._collect(MAX_PENDING)

    def _collect(self, most: int) -> None:
        """Take finished entries from the front, waiting until at most ``most`` are behind."""
        while self._pending:
            head = self._pending[0]
            if isinstance(head, Future):
                if not head.done():
                    if len(self._pending) <= most:
                        return
                    wait([head], timeout=BATCH_S)
                    self._record_when_due()
                    continue
                outcome = head.result()
            else:
                outcome = head
            self._pending.popleft()
            self._outcomes.append(outcome)
            self._record_when_due()

    def _record_when_due(self) -> None:
        if len(self._outcomes) >= MAX_BATCH or time.monotonic() - self._recorded_at >= BATCH_S:
            self._record()

    def _record(self) -> None:
        self._recorded_at = time.monotonic()
        if not self._outcomes:
            return
        estimate = self._estimate() if self.hold.dry_run else None
        with self._sessions.begin() as session:
            recorded = record(
                session, self.hold, self._outcomes, self._tally.total, self._settings, estimate
            )
        log.info(
            "recordings stored",
            first_entry=self._outcomes[0].number,
            next_entry=recorded.cursor,
            recordings=recorded.recordings,
        )
        observe.note_entries(
            self.hold.kind, recorded.recordings, recorded.stored_bytes, recorded.rejected
        )
        self._cursor = recorded.cursor
        self._recordings += recorded.recordings
        self._outcomes.clear()
        self._progressed = True
        self._taker.full = recorded.full
        if not self.hold.dry_run:
            for key in recorded.unwanted:
                self._store.delete(key)
        if recorded.job_full:
            self._drop_pending()
            most = self._settings.max_recordings_per_job
            raise SourceInvalid("archive_too_many_entries", f"the job holds {most} recordings")

    def _estimate(self) -> Estimate:
        if not self._pace_at or time.monotonic() - self._pace_at > ESTIMATE_S:
            with self._sessions() as session:
                self._pace = measured_pace(session, self.hold.stages)
            self._pace_at = time.monotonic()
        return Estimate(self._pace, self._settings.max_duration_s)

    def _fail(self, code: str, detail: str) -> None:
        self._outcome = "failed"
        log.warning("source cannot be read", code=code, detail=detail)
        try:
            with self._sessions.begin() as session:
                claims.fail(session, self.hold, code, detail)
        except JobEnded:
            self._cancel()
            return
        self._remove_unrecorded()
        if code not in MAY_PASS:
            self._delete_owned()

    def _postpone(self, error: Exception) -> None:
        failures = 1 if self._progressed else self.hold.failures + 1
        patience = self._settings.max_outage_attempts
        if not isinstance(error, Outage | OperationalError):
            patience = self._settings.max_attempts
        if failures >= patience:
            code = error.code if isinstance(error, SoundmillError) else "source_unavailable"
            self._fail(code, str(error))
            return
        self._outcome = "postponed"
        log.warning("source is postponed", failures=failures, detail=str(error))
        with self._sessions.begin() as session:
            claims.postpone(session, self.hold, self._settings, failures)

    def _cancel(self) -> None:
        self._outcome = "cancelled"
        with self._sessions.begin() as session:
            given_up = claims.cancel(session, self.hold)
        if given_up.unread:
            self._remove_unrecorded()
            if given_up.for_good:
                self._delete_owned()

    def _drop_pending(self) -> None:
        """Give up what is not collected yet; on return nobody writes for it any more."""
        running = [item for item in self._pending if isinstance(item, Future) and not item.cancel()]
        self._pending.clear()
        if running:
            self.hold.halted.set()
            wait(running)

    def _remove_unrecorded(self) -> None:
        """Remove what this pass or one that was killed stored beyond the cursor."""
        self._drop_pending()
        if self.hold.dry_run:
            return
        unrecorded = {
            self._key(number)
            for number in range(self._cursor, self._cursor + MAX_BATCH + 2 * MAX_PENDING)
        }
        for prefix in sorted({key[:-NUMBER_TAIL] for key in unrecorded}):
            for found in self._store.list(prefix):
                if found.key in unrecorded:
                    self._store.delete(found.key)

    def _key(self, number: int) -> str:
        return recording_key(self.hold.job_id, recording_id(self.hold.source_id, number))

    def _delete_owned(self) -> None:
        """Remove what was uploaded, unless it is a recording by now."""
        key = owned_object(self.hold.spec)
        useless = self.hold.kind in CONSUMED or self.hold.dry_run or not self._recordings
        if key is not None and useless:
            self._store.delete(key)
