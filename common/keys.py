"""API keys: made once, shown once, kept as a hash.

A secret is 256 random bits, so a plain SHA-256 is enough to keep it: nothing can be guessed. Who
may do what with a key is decided by the gateway.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from common.db import DbNow
from common.domain import Scope
from common.errors import KeyRefused, NotFound
from common.tables import ApiKey

PREFIX = "sm_"
SECRET_BYTES = 32


@dataclass(frozen=True)
class Limits:
    """What a key may hold and do at most. None does not limit."""

    max_jobs: int | None = None  # that have not ended
    max_bytes: int | None = None
    max_audio_s: float | None = None
    requests_per_minute: int | None = None


@dataclass(frozen=True)
class MadeKey:
    """A new key and its secret, which nobody can ask for again."""

    key: ApiKey
    secret: str


def make(
    session: Session,
    name: str,
    scopes: Collection[Scope],
    limits: Limits | None = None,
    expires_in_s: float | None = None,
) -> MadeKey:
    """Add a key. ``scopes`` holds at least one; ``admin`` brings the others along."""
    if not scopes:
        raise ValueError("a key without a scope may do nothing")
    limits = limits or Limits()
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    now = session.scalar(select(DbNow())) or 0.0
    key = ApiKey(
        name=name,
        hash=digest(secret),
        scopes=sorted(scope.value for scope in scopes),
        created_at=now,
        expires_at=None if expires_in_s is None else now + expires_in_s,
        max_jobs=limits.max_jobs,
        max_bytes=limits.max_bytes,
        max_audio_s=limits.max_audio_s,
        requests_per_minute=limits.requests_per_minute,
    )
    session.add(key)
    session.flush()
    return MadeKey(key, secret)


def verify(session: Session, secret: str) -> ApiKey:
    """Return the key that has this secret.

    Raises:
        KeyRefused: ``key_invalid`` when there is none or it was revoked, else ``key_expired``.
    """
    key = session.scalar(select(ApiKey).where(ApiKey.hash == digest(secret)))
    if key is None or key.revoked_at is not None:
        raise KeyRefused("key_invalid", "This API key does not exist or was revoked.")
    now = session.scalar(select(DbNow())) or 0.0
    if key.expires_at is not None and key.expires_at <= now:
        raise KeyRefused("key_expired", "This API key has expired.")
    return key


def revoke(session: Session, key_id: str) -> ApiKey:
    """Let a key open nothing any more; doing so again changes nothing. Its jobs stay.

    Raises:
        NotFound: no such key.
    """
    key = session.get(ApiKey, key_id, with_for_update=True)
    if key is None:
        raise NotFound(f"no API key {key_id}")
    if key.revoked_at is None:
        key.revoked_at = session.scalar(select(DbNow()))
    return key


def list_keys(session: Session) -> list[ApiKey]:
    """Return every key, the oldest first, revoked and expired ones included."""
    return list(session.scalars(select(ApiKey).order_by(ApiKey.created_at, ApiKey.id)))


def has_active(session: Session) -> bool:
    """Return whether any key opens anything."""
    active = select(ApiKey.id).where(
        ApiKey.revoked_at.is_(None),
        or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > DbNow()),
    )
    return session.scalar(active.limit(1)) is not None


def digest(secret: str) -> str:
    """Return how a secret is kept: its SHA-256 in hexadecimal digits."""
    return hashlib.sha256(secret.encode()).hexdigest()
