"""What a sweeper finds and leaves: short ways to store, to sweep and to look."""

from __future__ import annotations

import io
import threading

from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from common.storage import ObjectStore
from common.tables import Base
from services.dispatcher.sweeper import Sweeper

Sessions = sessionmaker[Session]
MANY_TURNS = 50


def put(store: ObjectStore, key: str) -> str:
    """Store a few bytes under a key; return the key."""
    store.put_stream(key, io.BytesIO(b"bytes"), "application/octet-stream")
    return key


def result_key(key: str) -> str:
    """Return the object key of the result that has this idempotency key."""
    return f"artifacts/{key[:2]}/{key}/mask.npz"


def keys(store: ObjectStore) -> set[str]:
    """Return the keys of all stored objects."""
    return {found.key for found in store.list()}


def sweep(sweeper: Sweeper) -> None:
    """Turn until there is nothing left to do."""
    for _ in range(MANY_TURNS):
        if not sweeper.turn(threading.Event()):
            return
    raise AssertionError("never idle")


def rows(sessions: Sessions) -> dict[str, int]:
    """Return how many rows each table has, of those that have any."""
    with sessions() as session:
        counted = {
            table.name: session.scalar(select(func.count()).select_from(table)) or 0
            for table in Base.metadata.sorted_tables
        }
    return {name: number for name, number in counted.items() if number}
