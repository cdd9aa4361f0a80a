"""Keys of results that perhaps nobody uses any more: see decision 0009.

Whoever gives up results under an idempotency key notes the key here; the sweeper of the dispatcher
removes what is unused. Who is about to use a key looks here first.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from common.tables import Garbage

TOUCH_S = 1e-3  # more than the coarsest clock of a database tells apart


def discard(session: Session, keys: Collection[str]) -> None:
    """Note that the results under ``keys`` may be unused.

    A row that is there already is locked and touched, so that a sweeper which works on it just now
    looks at it again.
    """
    if not keys:
        return
    dialect = session.get_bind().dialect.name
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    session.execute(
        insert(Garbage.__table__).on_conflict_do_update(  # type: ignore[arg-type]
            index_elements=["key"], set_={"created_at": Garbage.created_at + TOUCH_S}
        ),
        [{"key": key} for key in sorted(keys)],  # in one order, so that nobody waits in a circle
    )


def being_removed(session: Session, keys: Collection[str]) -> set[str]:
    """Return those of ``keys`` whose results may be about to be removed."""
    return set(session.scalars(select(Garbage.key).where(Garbage.key.in_(keys))))
