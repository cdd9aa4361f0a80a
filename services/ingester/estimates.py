"""What a dry run comes to: files, bytes, hours, what would fail, and how long it would take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from common.db import DbNow
from common.domain import Outcome
from common.tables import Attempt, StageRun
from services.ingester.entries import Refused
from services.ingester.taking import Taken

LATELY_S = 24 * 3600.0
SAMPLED_ATTEMPTS = 5_000


@dataclass(frozen=True)
class Estimate:
    """How the estimate of a job grows. ``seconds_per_audio_s`` is None where nothing is known."""

    seconds_per_audio_s: float | None
    max_duration_s: float

    def grown(
        self, so_far: dict[str, Any] | None, taken: Sequence[Taken], refused: Sequence[Refused]
    ) -> dict[str, Any]:
        """Return the estimate with more entries in it, as the API shows it."""
        before = so_far or {}
        fails = Counter(before.get("would_fail", {}))
        fails.update(outcome.code for outcome in refused)
        files, size_bytes = before.get("files", 0), before.get("size_bytes", 0)
        audio_s, unknown = before.get("audio_s", 0.0), before.get("unknown_length", 0)
        for outcome in taken:
            assert outcome.recording is not None
            files += 1
            size_bytes += outcome.recording.size_bytes
            length_s = outcome.recording.audio_s
            if length_s is None:
                unknown += 1
            elif length_s > self.max_duration_s:
                fails["audio_too_long"] += 1
            else:
                audio_s += length_s
        eta_s = None if self.seconds_per_audio_s is None else audio_s * self.seconds_per_audio_s
        return {
            "files": files,
            "size_bytes": size_bytes,
            "audio_s": audio_s,
            "unknown_length": unknown,
            "would_fail": dict(fails),
            "eta_s": eta_s,
        }


def measured_pace(session: Session, stages: Sequence[str]) -> float | None:
    """Return the seconds that a second of audio takes lately, or None before all was measured.

    Stages run side by side, so the slowest with the workers it had is what counts.
    """
    recent = (
        select(
            StageRun.stage,
            Attempt.worker,
            Attempt.audio_s,
            (Attempt.finished_at - Attempt.started_at).label("took_s"),
        )
        .join(StageRun, StageRun.id == Attempt.stage_run_id)
        .where(
            Attempt.outcome == Outcome.SUCCEEDED.value,
            Attempt.finished_at > DbNow() - LATELY_S,
            Attempt.started_at.is_not(None),
            Attempt.audio_s > 0,
        )
        .order_by(Attempt.id.desc())
        .limit(SAMPLED_ATTEMPTS)
        .subquery()
    )
    rows = session.execute(
        select(
            recent.c.stage,
            func.sum(recent.c.took_s),
            func.sum(recent.c.audio_s),
            func.count(func.distinct(recent.c.worker)),
        ).group_by(recent.c.stage)
    ).all()
    paces = {stage: took_s / audio_s / workers for stage, took_s, audio_s, workers in rows}
    if not stages or any(stage not in paces for stage in stages):
        return None
    return float(max(paces[stage] for stage in stages))
