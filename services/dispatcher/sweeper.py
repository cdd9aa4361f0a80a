"""Removes what nobody wants any more: deleted jobs, shared results, uploads, old request keys.

A thread of the dispatcher. Every step is a short transaction, and objects go before the rows that
name them, so a sweeper that is killed goes on where it was and leaves nothing behind. How results
that jobs share are removed is decision 0009.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from sqlalchemy import delete, or_, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from common import logs
from common.db import DbNow, make_engine, make_readers, make_sessions
from common.domain import ENDED_STATES, RunState, UploadState
from common.errors import SoundmillError
from common.settings import Settings
from common.storage import open_store
from common.tables import Garbage, IdempotencyKey, Job, StageRun, Upload
from services.dispatcher import observe
from services.dispatcher.removal import JobRemover

log = logs.get_logger(__name__)

IDLE_PAUSE_S = 5.0
DELETIONS_AT_ONCE = 8
RESULTS_AT_ONCE = 500
ROWS_AT_ONCE = 1_000
MULTIPARTS_EVERY_S = 3600.0
USING = (RunState.RUNNING.value, RunState.SUCCEEDED.value)  # states that keep results


class Sweeper:
    """Owns the connections of the thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine = make_engine(settings)
        self.sessions: sessionmaker[Session] = make_sessions(self.engine)
        self.readers: sessionmaker[Session] = make_readers(self.engine)
        self.store = open_store(settings)
        self._pool = ThreadPoolExecutor(DELETIONS_AT_ONCE, "delete")
        self._multiparts_at = time.monotonic()

    def close(self) -> None:
        """Close every connection."""
        self._pool.shutdown(cancel_futures=True)
        self.engine.dispose()

    def run(self, stop: threading.Event) -> None:
        """Take turns until ``stop`` is set."""
        while not stop.is_set():
            started = time.monotonic()
            busy = self.turn(stop)
            # At most half of the time: on SQLite, everybody else waits for this writer.
            stop.wait(time.monotonic() - started if busy else IDLE_PAUSE_S)

    def turn(self, stop: threading.Event) -> bool:
        """Take one step of every kind; return whether there may be more to do at once."""
        steps: list[Callable[[], bool]] = [
            self.end_retention,
            self.remove_jobs,
            self.remove_results,
            self.remove_uploads,
            self.abort_multiparts,
            self.forget_requests,
        ]
        busy = False
        for step in steps:
            if stop.is_set():
                break
            try:
                busy |= step()
            except (DBAPIError, SoundmillError) as error:  # the others may fare better
                log.warning("not swept", step=step.__name__, detail=str(error))
        return busy

    def end_retention(self) -> bool:
        """Mark jobs as deleted that ended longer ago than they were to be kept."""
        over = (
            Job.deleted_at.is_(None),
            Job.state.in_([state.value for state in ENDED_STATES]),
            Job.finished_at + Job.retention_s < DbNow(),
        )
        with self.readers() as session:
            if session.scalar(select(Job.id).where(*over).limit(1)) is None:
                return False
        with self.sessions.begin() as session:  # a job that was retried meanwhile no longer fits
            gone = session.scalars(
                update(Job)
                .where(*over)
                .values(deleted_at=DbNow())
                .returning(Job.id)
                .execution_options(synchronize_session=False)
            ).all()
        observe.SWEPT.labels("retention").inc(len(gone))
        log.info("retention over", jobs=len(gone))
        return bool(gone)

    def remove_jobs(self) -> bool:
        """Remove the next part of every deleted job; return whether anything was."""
        with self.readers() as session:
            deleted = session.scalars(select(Job.id).where(Job.deleted_at.is_not(None))).all()
        remover = JobRemover(self.sessions, self.readers, self.store, self.delete_objects)
        return sum(remover.remove_next(job_id) for job_id in deleted) > 0

    def remove_results(self) -> bool:
        """Remove results that no stage run uses; return whether there were any to look at."""
        with self.readers() as session:
            found = session.scalars(
                select(Garbage.key).order_by(Garbage.created_at).limit(RESULTS_AT_ONCE)
            ).all()
        if not found:
            return False
        with self.sessions.begin() as session:
            noted = {
                row.key: row.created_at
                for row in session.scalars(
                    select(Garbage)
                    .where(Garbage.key.in_(found))
                    .order_by(Garbage.key)
                    .with_for_update(skip_locked=True)
                )
            }
            used = session.scalars(
                select(StageRun.idempotency_key)
                .where(StageRun.idempotency_key.in_(noted), StageRun.state.in_(USING))
                .distinct()
            ).all()
            session.execute(delete(Garbage).where(Garbage.key.in_(used)))
        unused = {key: at for key, at in noted.items() if key not in used}
        for listing in self._pool.map(self._results_under, unused):
            self.delete_objects(listing)
        with self.sessions.begin() as session:
            for key, at in unused.items():  # not one that was given up again meanwhile
                session.execute(delete(Garbage).where(Garbage.key == key, Garbage.created_at == at))
        observe.SWEPT.labels("result").inc(len(unused))
        log.info("results removed", removed=len(unused), kept=len(used))
        return True

    def remove_uploads(self) -> bool:
        """Remove uploads whose time is over; the bytes of one that was used belong to its job."""
        unused = [UploadState.OPEN.value, UploadState.COMPLETE.value]
        with self.readers() as session:
            over = session.scalars(
                select(Upload.id).where(Upload.expires_at < DbNow()).limit(ROWS_AT_ONCE)
            ).all()
        if not over:
            return False
        with self.sessions.begin() as session:  # from here on nobody can use it
            session.execute(
                update(Upload)
                .where(Upload.id.in_(over), Upload.state.in_(unused))
                .values(state=UploadState.ABORTED.value)
                .execution_options(synchronize_session=False)
            )
        with self.readers() as session:
            uploads = session.scalars(select(Upload).where(Upload.id.in_(over))).all()
        aborted = [upload for upload in uploads if upload.state == UploadState.ABORTED]
        for upload in aborted:
            self.store.abort_multipart(upload.object_key, upload.store_id)
        self.delete_objects(upload.object_key for upload in aborted)
        with self.sessions.begin() as session:
            session.execute(delete(Upload).where(Upload.id.in_(over)))
        observe.SWEPT.labels("upload").inc(len(aborted))
        log.info("uploads removed", aborted=len(aborted), used=len(uploads) - len(aborted))
        return True

    def abort_multiparts(self) -> bool:
        """Now and then, abort uploads in parts that the store still holds for nobody.

        A process that was killed while it stored something large leaves one behind.
        """
        if time.monotonic() < self._multiparts_at:
            return False
        self._multiparts_at = time.monotonic() + MULTIPARTS_EVERY_S
        for left in self.store.list_multiparts(self.settings.upload_ttl_s + MULTIPARTS_EVERY_S):
            self.store.abort_multipart(left.key, left.store_id)
            observe.SWEPT.labels("multipart").inc()
            log.info("upload in parts aborted", key=left.key)
        return False

    def forget_requests(self) -> bool:
        """Forget Idempotency-Keys of requests that nobody repeats any more."""
        old = IdempotencyKey.created_at < DbNow() - self.settings.idempotency_ttl_s
        with self.readers() as session:
            found = session.execute(
                select(IdempotencyKey.owner, IdempotencyKey.key).where(old).limit(ROWS_AT_ONCE)
            ).all()
        if not found:
            return False
        rows = [
            (IdempotencyKey.owner == row.owner) & (IdempotencyKey.key == row.key) for row in found
        ]
        with self.sessions.begin() as session:
            forgotten: Any = session.execute(delete(IdempotencyKey).where(or_(*rows), old))
        observe.SWEPT.labels("request").inc(forgotten.rowcount)
        return len(found) == ROWS_AT_ONCE

    def delete_objects(self, keys: Iterable[str]) -> None:
        """Delete objects, several at a time. Raises StoreUnavailable when one stays."""
        waiting = iter(keys)
        while some := list(islice(waiting, ROWS_AT_ONCE)):
            for _ in self._pool.map(self.store.delete, some):
                pass

    def _results_under(self, key: str) -> list[str]:
        return [found.key for found in self.store.list(f"artifacts/{key[:2]}/{key}/")]
