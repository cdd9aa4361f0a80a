"""Who asks, and what they may see: API keys, scopes, ownership."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends
from sqlalchemy import ColumnElement, true
from sqlalchemy.orm import Session

from common.db import Job, Recording
from common.domain import Scope
from common.errors import NotFound


@dataclass(frozen=True)
class Caller:
    """Who sent a request. ``owner`` is the id of an API key, None the user of an embedded stack."""

    owner: str | None
    scopes: frozenset[Scope]

    @property
    def sees_all(self) -> bool:
        return Scope.ADMIN in self.scopes

    def owns(self, column: Any) -> ColumnElement[bool]:
        """Return the condition under which a row with this owner column may be seen."""
        if self.sees_all:
            return true()
        owned: ColumnElement[bool] = (
            column.is_(None) if self.owner is None else column == self.owner
        )
        return owned

    def job(self, session: Session, job_id: str, *, lock: bool = False) -> Job:
        """Return a job of the caller. Raises NotFound, also for a job of somebody else."""
        job = session.get(Job, job_id, with_for_update=True if lock else None)
        if job is None or job.deleted_at is not None:
            raise NotFound(f"no job {job_id}")
        if not self.sees_all and job.owner != self.owner:
            raise NotFound(f"no job {job_id}")
        return job

    def recording(self, session: Session, recording_id: str) -> Recording:
        """Return a recording of a job of the caller. Raises NotFound."""
        recording = session.get(Recording, recording_id)
        if recording is None:
            raise NotFound(f"no recording {recording_id}")
        try:
            self.job(session, recording.job_id)
        except NotFound:
            raise NotFound(f"no recording {recording_id}") from None
        return recording


def reader() -> Caller:
    """Return who asks to look at something (scope ``read``)."""
    return Caller(None, frozenset(Scope))


def submitter() -> Caller:
    """Return who asks to change something (scope ``submit``)."""
    return Caller(None, frozenset(Scope))


Reader = Annotated[Caller, Depends(reader)]
Submitter = Annotated[Caller, Depends(submitter)]
