"""What an API key may hold at once: jobs that have not ended, bytes, hours of audio."""

from __future__ import annotations

from sqlalchemy.orm import Session


def check_room(
    session: Session, owner: str | None, *, jobs: int = 0, size_bytes: int = 0, audio_s: float = 0.0
) -> None:
    """Return if the key ``owner`` may hold this much more.

    Raises:
        QuotaExceeded: naming the limit, what is held and what was asked for.
    """
