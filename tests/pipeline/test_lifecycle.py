"""How jobs end: cancelled a span at a time, expired, completed; what was lost is tried again."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session, sessionmaker

from common import spans
from common.db import DbNow
from common.domain import JobEventKind, JobState, RunState, Scope, SourceKind, SourceState, Stage
from common.errors import Conflict, DeadlinePassed
from common.tables import Job, JobEvent, Recording, Rejection, Source, StageRun
from services.dispatcher import counters, lifecycle
from services.gateway import changes
from services.gateway.access import Caller
from tests.pipeline.conftest import MakeJob, states

USER = Caller(None, frozenset(Scope))
Sessions = sessionmaker[Session]


def turn(sessions: Sessions) -> None:
    lifecycle.expire_jobs(sessions, sessions)
    lifecycle.end_jobs(sessions, sessions, for_s=60.0)


def the_job(sessions: Sessions, job_id: str) -> Job:
    with sessions() as session:
        return session.get_one(Job, job_id)


def events(sessions: Sessions, job_id: str) -> list[str]:
    with sessions() as session:
        return list(
            session.scalars(
                select(JobEvent.kind).where(JobEvent.job_id == job_id).order_by(JobEvent.id)
            )
        )


def add_source(sessions: Sessions, job_id: str, **columns: Any) -> str:
    with sessions.begin() as session:
        source = Source(
            job_id=job_id, kind=SourceKind.URLS.value, name="list", spec={"items": []}, **columns
        )
        session.add(source)
        session.flush()
        return source.id


def set_states(sessions: Sessions, job_id: str, found: dict[int, dict[Stage, RunState]]) -> None:
    with sessions.begin() as session:
        for position, by_stage in found.items():
            for stage, state in by_stage.items():
                session.execute(
                    update(StageRun)
                    .where(
                        StageRun.job_id == job_id,
                        StageRun.position == position,
                        StageRun.stage == stage.value,
                    )
                    .values(state=state.value)
                )


def test_cancelling_goes_on_in_spans_and_tells_when_it_is_done(
    sessions: Sessions, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "SPAN_RECORDINGS", 3)
    job_id, other = make_job(10), make_job(2)
    set_states(sessions, job_id, {4: {Stage.SEGMENT: RunState.SUCCEEDED}})
    source = add_source(sessions, job_id)
    reading = add_source(
        sessions, job_id, state=SourceState.RUNNING.value, lease_expires_at=DbNow() + 60.0
    )
    changes.cancel_job(sessions, USER, job_id)
    turn(sessions)
    found = Counter(state for runs in states(sessions, job_id).values() for state in runs)
    assert found == {RunState.CANCELLED: 39, RunState.SUCCEEDED: 1}
    job = the_job(sessions, job_id)
    assert (job.state, job.finished_at) == (JobState.CANCELLED, None)  # an ingester still reads
    assert events(sessions, job_id) == []
    with sessions.begin() as session:
        assert session.get_one(Source, source).state == SourceState.CANCELLED
        session.get_one(Source, reading).state = SourceState.CANCELLED.value
    turn(sessions)
    turn(sessions)
    assert the_job(sessions, job_id).finished_at is not None
    assert events(sessions, job_id) == [JobEventKind.CANCELLED]
    assert set(states(sessions, other)[Stage.SEGMENT]) == {RunState.READY}
    changes.cancel_job(sessions, USER, job_id)  # again: nothing
    with pytest.raises(Conflict):
        changes.retry_job(sessions, USER, job_id)


def test_a_passed_deadline_cancels_the_rest_and_can_be_moved(
    sessions: Sessions, make_job: MakeJob
) -> None:
    job_id = make_job(3)
    set_states(
        sessions,
        job_id,
        {
            0: {Stage.SEGMENT: RunState.SUCCEEDED, Stage.CLASSIFY: RunState.RUNNING},
            1: {Stage.SEGMENT: RunState.FAILED},
        },
    )
    source = add_source(sessions, job_id)
    turn(sessions)
    assert the_job(sessions, job_id).state == JobState.CLOSED
    with sessions.begin() as session:
        session.get_one(Job, job_id).deadline_at = DbNow() - 1.0
    turn(sessions)
    job = the_job(sessions, job_id)
    assert job.state == JobState.EXPIRED
    assert job.finished_at is not None
    assert events(sessions, job_id) == [JobEventKind.EXPIRED]
    found = states(sessions, job_id)
    assert found[Stage.CLASSIFY] == [RunState.CANCELLED] * 3
    with sessions() as session:
        codes = session.scalars(
            select(StageRun.error_code).where(StageRun.state == RunState.CANCELLED.value)
        )
        assert set(codes) == {"deadline_passed"}

    with pytest.raises(DeadlinePassed):
        changes.retry_job(sessions, USER, job_id)
    with sessions.begin() as session:
        session.get_one(Job, job_id).deadline_at = DbNow() + 3600.0
    retried = changes.retry_job(sessions, USER, job_id)
    assert retried == changes.Retried(runs=11, entries=0)
    assert the_job(sessions, job_id).state == JobState.CLOSED
    found = states(sessions, job_id)
    assert found[Stage.SEGMENT] == [RunState.SUCCEEDED, RunState.READY, RunState.READY]
    assert found[Stage.CLASSIFY] == [RunState.READY, RunState.BLOCKED, RunState.BLOCKED]
    assert found[Stage.RESTORE] == [RunState.BLOCKED] * 3
    with sessions() as session:
        assert session.get_one(Source, source).state == SourceState.PENDING


def test_a_job_completes_when_sources_and_runs_have_ended(
    sessions: Sessions, make_job: MakeJob
) -> None:
    job_id = make_job(1, stages={Stage.SEGMENT})
    source = add_source(sessions, job_id)
    rates = counters.Rates()
    set_states(sessions, job_id, {0: {Stage.SEGMENT: RunState.SUCCEEDED}})
    counters.count_job(sessions, sessions, job_id, rates)
    assert the_job(sessions, job_id).state == JobState.CLOSED
    with sessions.begin() as session:
        found = session.get_one(Source, source)
        found.state, found.rejected = SourceState.DONE.value, 2
        session.get_one(Job, job_id).rejected = 2
        session.execute(
            insert(Rejection),
            [
                {
                    "id": f"{entry:032x}",
                    "job_id": job_id,
                    "source_id": source,
                    "entry": entry,
                    "name": f"{entry}.wav",
                    "error_code": "url_status",
                    "error_detail": "answered 503",
                    "again": {"url": f"https://example.org/{entry}.wav"} if entry else None,
                }
                for entry in range(2)
            ],
        )
    counters.count_job(sessions, sessions, job_id, rates)
    job = the_job(sessions, job_id)
    assert job.state == JobState.COMPLETED
    assert [(e["stage"], e["code"], e["count"], e["name"]) for e in job.errors] == [
        ("ingest", "url_status", 2, "0.wav")
    ]
    assert events(sessions, job_id) == [JobEventKind.COMPLETED]

    # What may become a recording now is read again, the rest stays rejected.
    assert changes.retry_job(sessions, USER, job_id) == changes.Retried(runs=0, entries=1)
    job = the_job(sessions, job_id)
    assert (job.state, job.rejected, job.finished_at) == (JobState.CLOSED, 1, None)
    with sessions() as session:
        again = session.scalars(select(Source).where(Source.id != source)).one()
        assert again.spec == {"items": [{"url": "https://example.org/1.wav"}]}
        assert again.state == SourceState.PENDING
        assert session.scalars(select(Rejection.entry)).all() == [0]
    assert events(sessions, job_id) == [JobEventKind.COMPLETED, JobEventKind.RETRIED]


@pytest.mark.parametrize(
    ("code", "goes_on"), [("store_unavailable", True), ("archive_unreadable", False)]
)
def test_a_source_that_an_outage_ended_is_read_on_by_a_retry(
    sessions: Sessions, make_job: MakeJob, code: str, goes_on: bool
) -> None:
    job_id = make_job(1, stages={Stage.SEGMENT})
    source = add_source(sessions, job_id)
    set_states(sessions, job_id, {0: {Stage.SEGMENT: RunState.SUCCEEDED}})
    with sessions.begin() as session:
        found = session.get_one(Source, source)
        found.state, found.error_code, found.entries = SourceState.FAILED.value, code, 7
    counters.count_job(sessions, sessions, job_id, counters.Rates())
    assert the_job(sessions, job_id).state == JobState.COMPLETED
    assert changes.retry_job(sessions, USER, job_id) == changes.Retried(0, 0, int(goes_on))
    with sessions() as session:
        found = session.get_one(Source, source)
        assert (found.state == SourceState.PENDING, found.entries) == (goes_on, 7)
    assert (the_job(sessions, job_id).state == JobState.CLOSED) == goes_on


def test_pausing_takes_back_what_is_not_claimed_yet(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job(3)
    set_states(
        sessions,
        job_id,
        {
            0: {Stage.SEGMENT: RunState.RUNNING},
            1: {Stage.SEGMENT: RunState.DISPATCHED},
        },
    )
    changes.pause_job(sessions, USER, job_id)
    changes.pause_job(sessions, USER, job_id)
    assert states(sessions, job_id)[Stage.SEGMENT] == [
        RunState.RUNNING,
        RunState.READY,
        RunState.READY,
    ]
    assert the_job(sessions, job_id).paused_at is not None
    changes.resume_job(sessions, USER, job_id)
    changes.resume_job(sessions, USER, job_id)
    assert the_job(sessions, job_id).paused_at is None
    assert events(sessions, job_id) == [JobEventKind.PAUSED, JobEventKind.RESUMED]


def test_deleting_cancels_and_hides(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job(2)
    set_states(sessions, job_id, {0: {Stage.SEGMENT: RunState.RUNNING}})
    changes.delete_job(sessions, USER, job_id)
    assert states(sessions, job_id)[Stage.SEGMENT] == [RunState.CANCELLED, RunState.READY]
    turn(sessions)
    job = the_job(sessions, job_id)
    assert job.deleted_at is not None
    assert job.finished_at is not None
    assert events(sessions, job_id) == []
    with sessions() as session:
        assert len(session.scalars(select(Recording.id)).all()) == 2  # the sweeper's
