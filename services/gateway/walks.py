"""Walks through the recordings of a job, a page at a time, at the same cost wherever it is."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Select, select, union_all

from common.domain import RunState, Stage
from common.tables import StageRun


def recordings_with_runs(
    job_id: str,
    states: Collection[RunState],
    after: int,
    limit: int,
    stages: Collection[Stage] = tuple(Stage),
    error_code: str | None = None,
) -> Select[str, int]:
    """Select id and position of the next recordings that have a run in one of ``states``.

    One short walk along the index for each stage and state, so that neither many matches nor few
    make a page of a job with a million recordings slow.

    Args:
        after: The position after which to begin; -1 begins at the first recording.
        limit: The most recordings to select.
        stages: Of which stages the runs may be.
        error_code: Which error the runs must have, if any. Passes over those with others one by
            one: ask for it together with states in which runs have errors.
    """
    walks = [
        select(StageRun.recording_id, StageRun.position)
        .where(
            StageRun.job_id == job_id,
            StageRun.stage == stage.value,
            StageRun.state == state.value,
            StageRun.position > after,
            *([] if error_code is None else [StageRun.error_code == error_code]),
        )
        .order_by(StageRun.position)
        .limit(limit)
        .subquery()
        for stage in stages
        for state in states
    ]
    found = union_all(*(select(walk.c.recording_id, walk.c.position) for walk in walks)).subquery()
    return (
        select(found.c.recording_id, found.c.position)
        .distinct()
        .order_by(found.c.position)
        .limit(limit)
    )
