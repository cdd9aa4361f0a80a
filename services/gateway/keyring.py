"""The API keys that were used lately, so that not every request asks the database."""

from __future__ import annotations

import time
from dataclasses import dataclass

from anyio import to_thread
from sqlalchemy.orm import Session, sessionmaker

from common import keys
from common.domain import Scope
from common.errors import KeyRefused

FRESH_S = 5.0  # a key that was revoked opens nothing after this


@dataclass(frozen=True)
class Holder:
    """What is known about a key that opens something."""

    key_id: str
    scopes: frozenset[Scope]
    requests_per_minute: int | None
    seen_at: float  # on this process's monotonic clock


class Keyring:
    """Looks keys up, and remembers each for ``FRESH_S``. Holds hashes, no secrets."""

    def __init__(self, readers: sessionmaker[Session]) -> None:
        self._readers = readers
        self._holders: dict[str, Holder] = {}  # by hash; only real keys, so it stays small

    async def open(self, secret: str) -> Holder:
        """Return who holds a secret.

        Raises:
            KeyRefused: it opens nothing (any more).
        """
        digest = keys.digest(secret)
        holder = self._holders.get(digest)
        if holder is not None and time.monotonic() - holder.seen_at < FRESH_S:
            return holder
        try:
            holder = await to_thread.run_sync(self._look_up, secret)
        except KeyRefused:
            self._holders.pop(digest, None)
            raise
        self._holders[digest] = holder
        return holder

    def _look_up(self, secret: str) -> Holder:
        with self._readers() as session:
            key = keys.verify(session, secret)
        scopes = frozenset(Scope(scope) for scope in key.scopes)
        return Holder(key.id, scopes, key.requests_per_minute, time.monotonic())
