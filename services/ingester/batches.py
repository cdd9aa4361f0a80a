"""Records what became of entries: recordings, rejections and the cursor in one transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from common.db import DbNow, new_id
from common.errors import QuotaExceeded
from common.jobs import NewRecording, add_recordings
from common.settings import Settings
from common.tables import Job, Recording, Rejection
from services.ingester.claims import DETAIL_LENGTH, Hold, lock
from services.ingester.entries import Refused, show
from services.ingester.estimates import Estimate
from services.ingester.taking import Taken

MAX_BATCH = 500
Outcome = Taken | Refused


@dataclass(frozen=True)
class Recorded:
    """What a batch came to.

    ``unwanted`` are the keys of objects that were stored for entries refused in the end; ``full``
    is set when the key's quota had no room; ``job_full`` when the job itself had none, and then
    the cursor stands before the first entry that had no place. ``stored_bytes`` are those of the
    recordings, 0 in a dry run; ``rejected`` are rejections by code.
    """

    cursor: int
    recordings: int
    stored_bytes: int
    rejected: Counter[str]
    unwanted: tuple[str, ...]
    full: bool
    job_full: bool


def record(
    session: Session,
    hold: Hold,
    outcomes: Sequence[Outcome],
    total: int | None,
    settings: Settings,
    estimate: Estimate | None,
) -> Recorded:
    """Record outcomes that follow one another from the cursor on.

    Raises:
        JobEnded: nothing of it is wanted any more.
        StaleFence: another ingester owns the source now.
    """
    job, source = lock(session, hold)
    first = outcomes[0].number
    assert first == source.entries, f"entry {first} does not follow {source.entries}"
    unique = _refuse_taken_ids(session, hold, outcomes)
    fitting = unique if hold.dry_run else _fitting(job, unique, settings)
    settled = fitting if hold.dry_run else _add(session, job, fitting, settings)
    refused = [outcome for outcome in settled if isinstance(outcome, Refused)]
    taken = [outcome for outcome in settled if isinstance(outcome, Taken)]
    if refused:
        now = session.scalar(select(DbNow())) or 0.0
        session.execute(insert(Rejection), [_row(hold, outcome, now) for outcome in refused])
    if settled:
        source.entries = settled[-1].number + 1
        mark = settled[-1].mark
        if mark is not None:
            source.spec = {**hold.spec, "after": mark}
    source.total = total
    source.recordings += len(taken)
    source.rejected += len(refused)
    source.failures = 0
    job.rejected += len(refused)
    if estimate is not None:
        job.estimate = estimate.grown(job.estimate, taken, refused)
    kept = {outcome.number for outcome in taken}
    return Recorded(
        cursor=source.entries,
        recordings=len(taken),
        stored_bytes=0 if hold.dry_run else sum(_recording(o).size_bytes for o in taken),
        rejected=Counter(outcome.code for outcome in refused),
        unwanted=tuple(
            outcome.recording.object_key
            for outcome in outcomes
            if isinstance(outcome, Taken) and outcome.number not in kept and outcome.recording
        ),
        full=any(outcome.code == "quota_exceeded" for outcome in refused),
        job_full=len(settled) < len(outcomes),
    )


def _refuse_taken_ids(session: Session, hold: Hold, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Refuse what has the custom id of an earlier recording. The job's row is locked."""
    asked = [o.custom_id for o in outcomes if isinstance(o, Taken) and o.custom_id is not None]
    if not asked:
        return list(outcomes)
    known = select(Recording.custom_id).where(
        Recording.job_id == hold.job_id, Recording.custom_id.in_(asked)
    )
    used: set[str | None] = set(session.scalars(known))
    settled: list[Outcome] = []
    for outcome in outcomes:
        if isinstance(outcome, Taken) and outcome.custom_id is not None:
            if outcome.custom_id in used:
                settled.append(
                    _refuse(outcome, "custom_id_taken", "a recording before has this custom id")
                )
                continue
            used.add(outcome.custom_id)
        settled.append(outcome)
    return settled


def _fitting(job: Job, outcomes: list[Outcome], settings: Settings) -> list[Outcome]:
    """Return the outcomes up to where the job is full."""
    room = settings.max_recordings_per_job - job.recordings
    for place, outcome in enumerate(outcomes):
        if isinstance(outcome, Taken):
            room -= 1
            if room < 0:
                return outcomes[:place]
    return outcomes


def _add(session: Session, job: Job, outcomes: list[Outcome], settings: Settings) -> list[Outcome]:
    """Add what was taken to the job; refuse what the key's quota has no room for."""
    most = settings.max_recordings_per_job
    new = [_recording(outcome) for outcome in outcomes if isinstance(outcome, Taken)]
    try:
        if new:
            add_recordings(session, job, new, most)
        return outcomes
    except QuotaExceeded:
        pass  # nothing of it is written: then one by one
    settled: list[Outcome] = []
    for outcome in outcomes:
        if isinstance(outcome, Taken):
            try:
                add_recordings(session, job, [_recording(outcome)], most)
            except QuotaExceeded as error:
                refused = _refuse(outcome, error.code, str(error))
                settled.append(replace(refused, again=outcome.again))
                continue
        settled.append(outcome)
    return settled


def _recording(outcome: Taken) -> NewRecording:
    assert outcome.recording is not None
    return outcome.recording


def _refuse(outcome: Taken, code: str, detail: str) -> Refused:
    return Refused(
        outcome.number,
        outcome.name,
        outcome.custom_id,
        None,
        outcome.mark,
        code=code,
        detail=detail,
    )


def _row(hold: Hold, outcome: Refused, now: float) -> dict[str, Any]:
    return {
        "id": new_id(),
        "job_id": hold.job_id,
        "source_id": hold.source_id,
        "entry": outcome.number,
        "name": show(outcome.name),
        "custom_id": outcome.custom_id,
        "error_code": outcome.code,
        "error_detail": show(outcome.detail)[:DETAIL_LENGTH],
        "again": outcome.again,
        "created_at": now,
    }
