"""Removes a deleted job from the inside out, a bounded part at a time.

Recordings with their runs come first, then rejections, sources, events with their deliveries,
objects that no row names, and last the job's own row. Each part may be done again, so it does not
matter where a sweeper was stopped. Results that other jobs may share are only given up here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session, sessionmaker

from common import garbage, logs
from common.db import DbNow
from common.domain import SourceState
from common.sources import owned_object
from common.storage import ObjectStore
from common.tables import (
    Artifact,
    Attempt,
    Job,
    JobEvent,
    Recording,
    Rejection,
    Source,
    StageRun,
    WebhookDelivery,
)
from services.dispatcher import observe

log = logs.get_logger(__name__)

RECORDINGS_AT_ONCE = 250  # about 4,000 rows
ROWS_AT_ONCE = 2_000


@dataclass(frozen=True)
class JobRemover:
    """Takes deleted jobs apart.

    ``delete_objects`` returns when all of the objects are gone, and raises if one is not.
    """

    sessions: sessionmaker[Session]
    readers: sessionmaker[Session]
    store: ObjectStore
    delete_objects: Callable[[Iterable[str]], None]

    def remove_next(self, job_id: str) -> bool:
        """Remove the next part of a deleted job; return whether anything was removed.

        Once its recordings are gone, nothing is while an ingester still reads one of its sources:
        it notices soon, or loses its lease.
        """
        if self._remove_recordings(job_id):
            return True
        if self._is_read(job_id):
            return False
        for part in (
            self._remove_rejections,
            self._remove_sources,
            self._remove_deliveries,
            self._remove_events,
        ):
            if part(job_id):
                return True
        for prefix in (f"recordings/{job_id}/", f"sources/{job_id}/"):  # what killed processes left
            self.delete_objects(found.key for found in self.store.list(prefix))
        with self.sessions.begin() as session:
            gone: Any = session.execute(
                delete(Job).where(Job.id == job_id, Job.deleted_at.is_not(None))
            )
        observe.SWEPT.labels("job").inc(gone.rowcount)
        log.info("job removed", job_id=job_id)
        return True

    def _remove_recordings(self, job_id: str) -> bool:
        """Remove recordings and all that hangs on them; give up the results of their runs."""
        with self.readers() as session:
            recordings = session.execute(
                select(Recording.id, Recording.object_key)
                .where(Recording.job_id == job_id)
                .order_by(Recording.position)
                .limit(RECORDINGS_AT_ONCE)
            ).all()
        if not recordings:
            return False
        self.delete_objects(row.object_key for row in recordings)
        ids = sorted(row.id for row in recordings)
        with self.sessions.begin() as session:
            locked = select(Recording.id).where(Recording.id.in_(ids)).order_by(Recording.id)
            session.execute(locked.with_for_update())
            runs = session.execute(
                select(StageRun.id, StageRun.idempotency_key)
                .where(StageRun.recording_id.in_(ids))
                .order_by(StageRun.id)
                .with_for_update()
            ).all()
            run_ids = [run.id for run in runs]
            session.execute(delete(Artifact).where(Artifact.recording_id.in_(ids)))
            session.execute(delete(Attempt).where(Attempt.stage_run_id.in_(run_ids)))
            session.execute(delete(StageRun).where(StageRun.id.in_(run_ids)))
            session.execute(delete(Recording).where(Recording.id.in_(ids)))
            garbage.discard(session, {run.idempotency_key for run in runs if run.idempotency_key})
        return True

    def _is_read(self, job_id: str) -> bool:
        reading = select(Source.id).where(
            Source.job_id == job_id,
            Source.state == SourceState.RUNNING.value,
            Source.lease_expires_at > DbNow(),
        )
        with self.readers() as session:
            return session.scalar(reading.limit(1)) is not None

    def _remove_rejections(self, job_id: str) -> bool:
        return self._remove(Rejection, select(Rejection.id).where(Rejection.job_id == job_id))

    def _remove_sources(self, job_id: str) -> bool:
        some = select(Source.id, Source.spec).where(Source.job_id == job_id).limit(ROWS_AT_ONCE)
        with self.readers() as session:
            sources = session.execute(some).all()
        self.delete_objects(key for source in sources if (key := owned_object(source.spec)))
        ids = [source.id for source in sources]
        return self._remove(Source, select(Source.id).where(Source.id.in_(ids)))

    def _remove_deliveries(self, job_id: str) -> bool:
        events = select(JobEvent.id).where(JobEvent.job_id == job_id)
        some = select(WebhookDelivery.id).where(WebhookDelivery.event_id.in_(events))
        return self._remove(WebhookDelivery, some)

    def _remove_events(self, job_id: str) -> bool:
        return self._remove(JobEvent, select(JobEvent.id).where(JobEvent.job_id == job_id))

    def _remove(self, table: Any, ids: Select[Any]) -> bool:
        """Remove rows of a table by their ids, not all at once; return whether there were any."""
        with self.readers() as session:
            found = session.scalars(ids.limit(ROWS_AT_ONCE)).all()
        if found:
            with self.sessions.begin() as session:
                session.execute(delete(table).where(table.id.in_(found)))
        return bool(found)
