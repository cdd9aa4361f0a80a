"""``Idempotency-Key``: a request that is sent twice makes its resource once.

What was made is noted in the transaction that makes it. A second request with the same key and
the same content is answered with the same resource; its own work is undone, because ``claim``
raises. A route asks for ``Idempotent`` and hands it down to where the transaction is::

    def post_thing(around: Around, caller: Submitter, once: Idempotent, ...) -> ThingOut:
        thing_id = once.make(partial(service.add_thing, around.sessions, caller, once, ...))

    def add_thing(...) -> str:
        with sessions.begin() as session:
            job = caller.job(session, job_id, lock=True)
            once.claim(session, thing_id, {"name": name, "sha256": sha256})
            require_open(job)  # after the claim: a repeated request is answered even when closed
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Response
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from common.db import DbNow
from common.tables import IdempotencyKey
from services.gateway.access import Submitter
from services.gateway.problems import invalid

REPLAYED = "Idempotency-Replayed"
VISIBLE = r"^[!-~]+$"


class Replayed(Exception):
    """The same request has made ``resource`` before. Undoes the transaction it is raised in."""

    def __init__(self, resource: str) -> None:
        super().__init__(resource)
        self.resource = resource


@dataclass(frozen=True)
class Once:
    """The ``Idempotency-Key`` of one request; without a key, everything is made anew."""

    owner: str
    key: str | None
    action: str  # method and path
    response: Response

    def known(self, session: Session) -> bool:
        """Return whether the key was used before, so that ``claim`` will not succeed."""
        return self.key is not None and self._row(session) is not None

    def claim(self, session: Session, resource: str, content: Any) -> None:
        """Note, in the caller's transaction, that this request makes ``resource``.

        Rows that the transaction needs locked are locked before, in every route alike.

        Args:
            resource: The id of what is made.
            content: What was asked for, as JSON: all that tells two requests apart.

        Raises:
            Replayed: the same request has been followed before.
            Problem: the key was used for something else.
        """
        if self.key is None:
            return
        fingerprint = self._fingerprint(content)
        insert = (
            postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
        )
        added = session.execute(
            insert(IdempotencyKey)
            .values(
                owner=self.owner,
                key=self.key,
                fingerprint=fingerprint,
                resource=resource,
                created_at=DbNow(),
            )
            .on_conflict_do_nothing()
            .returning(IdempotencyKey.resource)
        ).one_or_none()
        if added is not None:
            return
        earlier = self._row(session)
        if earlier is None or earlier.fingerprint != fingerprint:
            raise invalid(
                "idempotency_key_reused",
                "This Idempotency-Key was used for a request with another content.",
            )
        raise Replayed(earlier.resource)

    def make(self, create: Callable[[], str]) -> str:
        """Return the id that ``create`` returns, or the one that the same request made before."""
        try:
            return create()
        except Replayed as again:
            self.response.headers[REPLAYED] = "true"
            return again.resource

    def _row(self, session: Session) -> IdempotencyKey | None:
        return session.get(IdempotencyKey, (self.owner, self.key))

    def _fingerprint(self, content: Any) -> str:
        text = json.dumps([self.action, content], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def once(
    request: Request,
    response: Response,
    caller: Submitter,
    idempotency_key: Annotated[
        str | None,
        Header(
            max_length=255,
            pattern=VISIBLE,
            description="Any text that is new for each thing to be made. Sent again with the same"
            " content within a day, it makes nothing and returns what it made before.",
        ),
    ] = None,
) -> Once:
    """Return what a request says about being sent twice."""
    action = f"{request.method} {request.url.path}"
    return Once(caller.owner or "", idempotency_key, action, response)


Idempotent = Annotated[Once, Depends(once)]
