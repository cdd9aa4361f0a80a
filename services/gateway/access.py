"""Who asks, and what they may see: API keys, scopes, ownership."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import ColumnElement, true
from sqlalchemy.orm import Session

from common.domain import Scope
from common.errors import KeyRefused, NotFound
from common.tables import Job, Recording
from services.gateway.context import Around
from services.gateway.guard import check_local
from services.gateway.problems import CHALLENGE, Problem

BEARER = HTTPBearer(auto_error=False, description="An API key: see `soundmill keys create`.")


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

    def require(self, scope: Scope) -> Caller:
        """Return the caller itself. Raises Problem where the key lacks a scope."""
        if scope not in self.scopes and not self.sees_all:
            raise Problem(
                HTTPStatus.FORBIDDEN, "scope_missing", f"This API key lacks the scope {scope}."
            )
        return self

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


LOCAL_USER = Caller(None, frozenset(Scope))


async def identify(
    request: Request,
    around: Around,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)],
) -> Caller:
    """Return who sent the request.

    Raises:
        Problem: ``key_missing``, ``rate_limited``, or see ``guard.check_local``.
        KeyRefused: the key that was sent opens nothing.
    """
    if credentials is not None:
        holder = await around.keyring.open(credentials.credentials)
        await around.limiter.check(holder.key_id, holder.requests_per_minute)
        return Caller(holder.key_id, holder.scopes)
    if "authorization" in request.headers:
        raise KeyRefused("key_invalid", "Send the API key as: Authorization: Bearer sm_...")
    if not around.keyless:
        raise Problem(
            HTTPStatus.UNAUTHORIZED,
            "key_missing",
            "Send an API key as: Authorization: Bearer sm_...",
            CHALLENGE,
        )
    check_local(request)
    return LOCAL_USER


Identified = Annotated[Caller, Depends(identify)]


async def reader(caller: Identified) -> Caller:
    """Return who asks to look at something (scope ``read``)."""
    return caller.require(Scope.READ)


async def submitter(caller: Identified) -> Caller:
    """Return who asks to change something (scope ``submit``)."""
    return caller.require(Scope.SUBMIT)


Reader = Annotated[Caller, Depends(reader)]
Submitter = Annotated[Caller, Depends(submitter)]
