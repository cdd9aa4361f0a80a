"""What an API key may hold at once: jobs that have not ended, bytes, seconds of audio."""

from __future__ import annotations

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from common.domain import ENDED_STATES
from common.errors import QuotaExceeded
from common.tables import ApiKey, Job

ENDED = sorted(state.value for state in ENDED_STATES)


def check_room(
    session: Session, owner: str | None, *, jobs: int = 0, size_bytes: int = 0, audio_s: float = 0.0
) -> None:
    """Return if the key ``owner`` may hold this much more; None has no limits.

    The row of a key with limits stays locked until the transaction ends, after those of its jobs,
    so that two requests do not both take the last room.

    Raises:
        QuotaExceeded: naming the limit, what is held and what was asked for.
    """
    key = None if owner is None else session.get(ApiKey, owner)
    if key is None or (key.max_jobs, key.max_bytes, key.max_audio_s) == (None, None, None):
        return
    session.execute(select(ApiKey.id).where(ApiKey.id == owner).with_for_update(key_share=True))
    held = session.execute(
        select(
            func.coalesce(func.sum(case((Job.state.in_(ENDED), 0), else_=1)), 0).label("jobs"),
            func.coalesce(func.sum(Job.size_bytes), 0).label("size_bytes"),
            func.coalesce(func.sum(Job.audio_s_total), 0.0).label("audio_s"),
        ).where(Job.owner == owner, Job.deleted_at.is_(None))
    ).one()
    _check(key.max_jobs, int(held.jobs), jobs, "jobs that have not ended")
    _check(key.max_bytes, int(held.size_bytes), size_bytes, "bytes of recordings")
    _check(key.max_audio_s, float(held.audio_s), audio_s, "seconds of audio")


def _check(limit: float | None, held: float, more: float, what: str) -> None:
    if limit is not None and more > 0 and held + more > limit:
        raise QuotaExceeded(
            f"This API key may hold {limit:.0f} {what}; it holds {held:.0f}, this is {more:.0f}."
        )
