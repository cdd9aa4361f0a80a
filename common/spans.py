"""Changes the stage runs of a whole job, a span of recordings at a time, by a few statements each.

One span is one transaction. The caller's transaction holds the job's row; ``lock`` takes the rows
of the span's recordings, before those of stage runs, as everywhere.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, select, union_all, update
from sqlalchemy.orm import Session, aliased

from common.db import DbNow
from common.domain import STAGE_NEEDS, TERMINAL_STATES, Outcome, RunState, Stage
from common.tables import Attempt, Recording, StageRun

SPAN_RECORDINGS = 2_000
DEADLINE_PASSED = "deadline_passed"
BUSY = (RunState.RUNNING, RunState.DISPATCHED)
UNFINISHED = tuple(state for state in RunState if state not in TERMINAL_STATES)
LOST = (RunState.FAILED, RunState.QUARANTINED, RunState.SKIPPED)


@dataclass(frozen=True)
class Span:
    """The recordings of a job from position ``first`` up to but without ``stop``."""

    job_id: str
    first: int
    stop: int


def next_span(
    session: Session,
    job_id: str,
    states: Collection[RunState],
    after: int = -1,
    size: int | None = None,
) -> Span | None:
    """Return the span that begins at the next recording with a run in one of ``states``, if any.

    One short look into the index for each stage and state, however many recordings the job has.
    """
    looks = [
        select(func.min(StageRun.position).label("position")).where(
            StageRun.job_id == job_id,
            StageRun.stage == stage.value,
            StageRun.state == state.value,
            StageRun.position > after,
        )
        for stage in Stage
        for state in states
    ]
    first = session.scalar(select(func.min(union_all(*looks).subquery().c.position)))
    return None if first is None else Span(job_id, first, first + (size or SPAN_RECORDINGS))


def lock(session: Session, span: Span) -> None:
    """Hold the rows of the span's recordings: until the end nobody changes the state of runs."""
    session.scalars(
        select(Recording.id)
        .where(
            Recording.job_id == span.job_id,
            Recording.position >= span.first,
            Recording.position < span.stop,
        )
        .order_by(Recording.id)
        .with_for_update()
    ).all()


def cancel(
    session: Session, span: Span, states: Collection[RunState], error_code: str | None = None
) -> None:
    """Cancel the runs of a locked span that are in one of ``states``, and cut off attempts (j)."""
    running = select(StageRun.id).where(_in(span, [RunState.RUNNING]))
    session.execute(
        update(Attempt)
        .where(Attempt.stage_run_id.in_(running), Attempt.outcome == Outcome.RUNNING.value)
        .values(outcome=Outcome.CANCELLED.value, finished_at=DbNow())
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(StageRun)
        .where(_in(span, states))
        .values(
            state=RunState.CANCELLED.value,
            finished_at=DbNow(),
            lease_expires_at=None,
            shard_id=None,
            error_code=error_code,
        )
        .execution_options(synchronize_session=False)
    )


def retry(session: Session, span: Span, states: Collection[RunState]) -> int:
    """Block the runs of a locked span that are in one of ``states``; return how many (k).

    Then release those that have what they need. Counts of failures and crashes begin anew; what was
    quarantined stays alone in its shard.
    """
    alone = StageRun.state == RunState.QUARANTINED.value
    changed: Any = session.execute(
        update(StageRun)
        .where(_in(span, states))
        .values(
            state=RunState.BLOCKED.value,
            shard_limit=case((alone, 1), else_=StageRun.shard_limit),
            next_attempt_at=0.0,
            shard_id=None,
            ready_at=None,
            lease_expires_at=None,
            worker=None,
            failures=0,
            crashes=0,
            finished_at=None,
            error_code=None,
            error_detail=None,
        )
        .execution_options(synchronize_session=False)
    )
    for stage, needs in STAGE_NEEDS.items():
        need = aliased(StageRun)
        unmet = select(need.id).where(
            need.recording_id == StageRun.recording_id,
            need.stage.in_([stage.value for stage in needs]),
            need.state != RunState.SUCCEEDED.value,
        )
        session.execute(
            update(StageRun)
            .where(_in(span, [RunState.BLOCKED], [stage]), ~unmet.exists())
            .values(state=RunState.READY.value, ready_at=DbNow())
            .execution_options(synchronize_session=False)
        )
    return int(changed.rowcount)


def return_dispatched(session: Session, job_id: str) -> None:
    """Put runs of a job that were dispatched and not yet claimed back to ready (e).

    One that is being claimed at this moment is passed over.
    """
    for stage in Stage:
        found = session.scalars(
            select(StageRun.id)
            .where(
                StageRun.job_id == job_id,
                StageRun.stage == stage.value,
                StageRun.state == RunState.DISPATCHED.value,
            )
            .limit(SPAN_RECORDINGS)
            .with_for_update(skip_locked=True)
        ).all()
        session.execute(
            update(StageRun)
            .where(StageRun.id.in_(found), StageRun.state == RunState.DISPATCHED.value)
            .values(state=RunState.READY.value, shard_id=None)
            .execution_options(synchronize_session=False)
        )


def _in(
    span: Span, states: Collection[RunState], stages: Collection[Stage] = tuple(Stage)
) -> ColumnElement[bool]:
    return and_(
        StageRun.job_id == span.job_id,
        StageRun.stage.in_([stage.value for stage in stages]),
        StageRun.state.in_([state.value for state in states]),
        StageRun.position >= span.first,
        StageRun.position < span.stop,
    )
