"""What the end of one stage run means for those that build on it.

The letters are those of the diagram in ``docs/architecture.md``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from common.db import DbNow
from common.domain import STAGE_NEEDS, RunState, Stage
from common.tables import StageRun

LOST_NEEDS = frozenset(
    {RunState.FAILED, RunState.QUARANTINED, RunState.SKIPPED, RunState.CANCELLED}
)


def release_downstream(
    session: Session, recordings: Collection[str], lengths_s: Mapping[str, float] | None = None
) -> None:
    """Make ready what now has all it needs, and skip what can never have it (a, i).

    The caller holds the recordings' rows, so two ends of one recording do not miss each other. No
    row is changed twice: PostgreSQL would then look whether its job still exists, and wait for it.

    Args:
        lengths_s: The lengths of recordings that have just been decoded, by id.
    """
    if not recordings:
        return
    lengths_s = lengths_s or {}
    ids: dict[str, dict[Stage, str]] = {}
    states: dict[str, dict[Stage, RunState]] = {}
    for run_id, recording_id, stage, state in session.execute(
        select(StageRun.id, StageRun.recording_id, StageRun.stage, StageRun.state).where(
            StageRun.recording_id.in_(recordings)
        )
    ):
        ids.setdefault(recording_id, {})[Stage(stage)] = run_id
        states.setdefault(recording_id, {})[Stage(stage)] = RunState(state)
    now = session.scalar(select(DbNow()))
    ready: list[str] = []
    decoded: list[dict[str, Any]] = []  # runs whose length is known now
    skipped: dict[Stage, list[str]] = {}  # by the stage that is at fault
    for recording_id, found in states.items():
        for stage, needs in STAGE_NEEDS.items():  # in pipeline order, so that skips cascade
            if found.get(stage) is not RunState.BLOCKED:
                continue
            run_id = ids[recording_id][stage]
            needed = {found[need] for need in needs}
            released = needed <= {RunState.SUCCEEDED}
            if needed & LOST_NEEDS:
                found[stage] = RunState.SKIPPED
                cause = next(need for need in needs if found[need] in LOST_NEEDS)
                skipped.setdefault(cause, []).append(run_id)
            elif recording_id in lengths_s:
                decoded.append(
                    {
                        "run": run_id,
                        "length_s": lengths_s[recording_id],
                        "next": (RunState.READY if released else RunState.BLOCKED).value,
                        "since": now if released else None,
                    }
                )
            elif released:
                ready.append(run_id)
    _leave_blocked(session, ready, state=RunState.READY.value, ready_at=now)
    if decoded:
        session.connection().execute(
            update(StageRun.__table__)  # type: ignore[arg-type]
            .where(StageRun.id == bindparam("run"), StageRun.state == RunState.BLOCKED.value)
            .values(
                audio_s=bindparam("length_s"), state=bindparam("next"), ready_at=bindparam("since")
            ),
            decoded,
        )
    for cause, runs in skipped.items():
        _leave_blocked(
            session,
            runs,
            state=RunState.SKIPPED.value,
            finished_at=now,
            error_code="upstream_failed",
            error_detail=f"stage {cause.value} did not succeed",
        )


def _leave_blocked(session: Session, runs: Collection[str], **change: Any) -> None:
    if runs:
        session.execute(
            update(StageRun)
            .where(StageRun.id.in_(runs), StageRun.state == RunState.BLOCKED.value)
            .values(**change)
            .execution_options(synchronize_session=False)
        )
