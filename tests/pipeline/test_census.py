"""What the census tells Prometheus agrees with the database and with Redis."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, sessionmaker

from common.db import DbNow
from common.domain import (
    DeliveryState,
    JobState,
    Priority,
    RunState,
    SourceKind,
    SourceState,
    Stage,
    queue_name,
)
from common.tables import Job, JobEvent, Source, StageRun, Webhook, WebhookDelivery
from services.dispatcher import census as census_module
from services.dispatcher.census import Census, is_late, runs_query
from tests.pipeline.conftest import MakeJob, set_job, set_runs
from tests.pipeline.told import OF_DATABASE, OF_REDIS, Told


def test_an_empty_database_has_nothing_but_zeros(
    sessions: sessionmaker[Session], look: Callable[[], Told]
) -> None:
    told = look()
    assert told.names == (OF_DATABASE | OF_REDIS) - {"failed_runs"}
    for name in OF_DATABASE - {"database_bytes", "failed_runs"}:
        assert not told.above_zero(name), name
    assert len(told.values["stage_runs"]) == len(Stage) * len(RunState)
    assert len(told.values["queue_messages"]) == len(Stage) * len(Priority)
    assert told.of("database_bytes") > 10_000
    assert told.of("redis_max_memory_bytes") > told.of("redis_memory_bytes") > 0


def test_runs_and_backlog_as_counted_by_hand(
    sessions: sessionmaker[Session], make_job: MakeJob, look: Callable[[], Told]
) -> None:
    bulk = make_job(3, audio_s=10.0)  # segment ready, three stages blocked
    make_job(2, audio_s=1.5, stages={Stage.SEGMENT}, priority=Priority.INTERACTIVE)
    set_runs(sessions, bulk, Stage.CLASSIFY, state=RunState.SUCCEEDED.value)
    set_runs(
        sessions, bulk, Stage.RESTORE, state=RunState.QUARANTINED.value, error_code="worker_lost"
    )
    told = look()
    assert told.above_zero("stage_runs") == {
        ("ready", "segment"): 5,
        ("classify", "succeeded"): 3,
        ("blocked", "enhance"): 3,
        ("quarantined", "restore"): 3,
    }
    assert told.above_zero("backlog_audio_seconds") == {
        ("bulk", "segment"): 30.0,
        ("interactive", "segment"): 3.0,
        ("bulk", "enhance"): 30.0,
    }
    assert told.values["failed_runs"] == {("restore", "worker_lost"): 3}


def test_what_was_given_up_is_no_backlog(
    sessions: sessionmaker[Session], make_job: MakeJob, look: Callable[[], Told]
) -> None:
    make_job(1, audio_s=0.1, stages={Stage.SEGMENT})
    cancelled = make_job(3, audio_s=0.1, stages={Stage.SEGMENT})
    deleted = make_job(4, audio_s=0.1, stages={Stage.SEGMENT, Stage.ENHANCE})
    expired = make_job(5, audio_s=0.1, stages={Stage.SEGMENT})
    set_job(sessions, cancelled, state=JobState.CANCELLED.value)
    set_job(sessions, deleted, state=JobState.CANCELLED.value, deleted_at=DbNow())
    set_job(sessions, expired, state=JobState.EXPIRED.value)
    told = look()
    assert told.of("stage_runs", "segment", "ready") == 13
    backlog = told.above_zero("backlog_audio_seconds")
    assert backlog == {("bulk", "segment"): pytest.approx(0.1)}
    assert told.above_zero("jobs") == {("cancelled",): 1, ("closed",): 1, ("expired",): 1}


def test_the_oldest_that_waits(
    sessions: sessionmaker[Session], make_job: MakeJob, look: Callable[[], Told]
) -> None:
    young, old, paused, gone = (make_job(2, stages={Stage.SEGMENT}) for _ in range(4))
    for job_id, age_s in ((young, 100), (old, 5_000), (paused, 9_000), (gone, 20_000)):
        set_runs(sessions, job_id, Stage.SEGMENT, ready_at=DbNow() - age_s)
    set_runs(sessions, old, Stage.SEGMENT, state=RunState.DISPATCHED.value)
    slack = pytest.approx  # the database's clock goes on while it is asked
    assert look().of("oldest_ready_age_seconds", "segment") == slack(20_000, abs=60)
    set_job(sessions, gone, deleted_at=DbNow())
    set_job(sessions, paused, paused_at=DbNow())
    told = look()
    assert told.of("oldest_ready_age_seconds", "segment") == slack(5_000, abs=60)
    assert told.of("oldest_ready_age_seconds", "classify") == 0
    assert told.of("jobs_paused") == 1
    set_runs(sessions, old, Stage.SEGMENT, state=RunState.RUNNING.value)
    assert look().of("oldest_ready_age_seconds", "segment") == slack(100, abs=60)


def test_a_retry_that_is_not_due_has_not_waited(
    sessions: sessionmaker[Session], make_job: MakeJob, look: Callable[[], Told]
) -> None:
    job_id = make_job(1, stages={Stage.SEGMENT})
    set_runs(sessions, job_id, Stage.SEGMENT, ready_at=DbNow() + 1_000)
    assert look().of("oldest_ready_age_seconds", "segment") == 0


def test_sources_and_deliveries(
    sessions: sessionmaker[Session], make_job: MakeJob, look: Callable[[], Told]
) -> None:
    job_id = make_job(1)
    with sessions.begin() as session:
        for state in (SourceState.PENDING, SourceState.PENDING, SourceState.FAILED):
            session.add(
                Source(job_id=job_id, kind=SourceKind.URLS, name="x", spec={}, state=state.value)
            )
        webhook = Webhook(url="https://example.org", secret="x", kinds=[])
        events = [JobEvent(job_id=job_id, kind="job.created", data={}) for _ in range(3)]
        session.add_all([webhook, *events])
        session.flush()
        states = (DeliveryState.PENDING, DeliveryState.PENDING, DeliveryState.DELIVERED)
        session.add_all(
            WebhookDelivery(webhook_id=webhook.id, event_id=event.id, state=state.value)
            for event, state in zip(events, states, strict=True)
        )
    told = look()
    assert told.above_zero("sources") == {("pending",): 2, ("failed",): 1}
    assert told.of("webhook_deliveries_pending") == 2


@pytest.mark.parametrize(
    ("deadline_in_s", "left_s", "rate", "late"),
    [
        (1_000, 500.0, 1.0, False),
        (1_000, 1_500.0, 1.0, True),
        (1_000, 1_500.0, 3.0, False),
        (1_000, 0.0, 1.0, False),
        (1_000, 1e9, None, False),  # nobody knows yet, and there is time
        (1_000, 1e9, 0.0, False),  # stands still, and there is time
        (90, 1.0, None, True),  # less than a tenth of 1,000 s is left
        (90, 1.0, 0.0, True),
        (110, 1.0, None, False),
    ],
)
def test_jobs_that_will_be_late(
    sessions: sessionmaker[Session],
    make_job: MakeJob,
    look: Callable[[], Told],
    deadline_in_s: float,
    left_s: float,
    rate: float | None,
    late: bool,
) -> None:
    job_id = make_job(1)
    set_job(
        sessions,
        job_id,
        created_at=DbNow() - (1_000 - deadline_in_s),
        deadline_at=DbNow() + deadline_in_s,
        audio_s_total=left_s + 7.0,
        audio_s_done=7.0,
        rate=rate,
        counted_at=DbNow(),
    )
    make_job(1)  # without a deadline
    assert look().of("jobs_late") == late
    set_job(sessions, job_id, paused_at=DbNow())
    assert look().of("jobs_late") == 0
    set_job(sessions, job_id, paused_at=None, state=JobState.COMPLETED.value)
    assert look().of("jobs_late") == 0


def test_a_speed_without_a_time_is_none() -> None:
    job = Job(created_at=0.0, deadline_at=100.0, rate=1e-9, counted_at=None)
    assert not is_late(job, now=10.0)


def test_the_labels_stay_few(
    sessions: sessionmaker[Session],
    make_job: MakeJob,
    look: Callable[[], Told],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(census_module, "MOST_CODES", 2)
    job_id = make_job(7, stages={Stage.SEGMENT})
    with sessions.begin() as session:
        runs = session.scalars(select(StageRun).order_by(StageRun.position)).all()
        for run, code in zip(runs, ["a", "a", "a", "b", "b", "c", None], strict=True):
            run.state, run.error_code = RunState.FAILED.value, code
    told = look()
    assert told.values["failed_runs"] == {
        ("a", "segment"): 3,
        ("b", "segment"): 2,
        ("other", "segment"): 2,
    }
    known = {*Stage, *RunState, *Priority, *JobState, *SourceState, "a", "b", "other"}
    for name, values in told.values.items():
        assert {label for labels in values for label in labels} <= known, name
        assert job_id not in str(values)


def test_queues_are_those_of_redis(
    sessions: sessionmaker[Session], census: Census, look: Callable[[], Told]
) -> None:
    census.redis.rpush(queue_name(Stage.ENHANCE, Priority.BULK), "a", "b", "c")
    assert look().above_zero("queue_messages") == {("bulk", "enhance"): 3}
    census.redis.config_set("maxmemory", 1 << 40)
    try:
        assert look().of("redis_max_memory_bytes") == 1 << 40
    finally:
        census.redis.config_set("maxmemory", 0)


def test_runs_are_counted_from_the_index_alone(
    sessions: sessionmaker[Session], make_job: MakeJob, engine: Engine
) -> None:
    make_job(20)
    kind = engine.dialect.name
    dialect = {"sqlite": sqlite, "postgresql": postgresql}[kind].dialect()
    query = str(runs_query().compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
    with engine.connect() as connection:
        if kind == "sqlite":
            plan = connection.execute(text(f"EXPLAIN QUERY PLAN {query}")).all()
            assert "COVERING INDEX ix_stage_run_backlog" in str(plan)
            assert "TEMP B-TREE" not in str(plan)
        else:
            connection.execute(text("SET enable_seqscan = off"))
            plan = connection.execute(text(f"EXPLAIN {query}")).all()
            assert "Index Only Scan using ix_stage_run_backlog" in str(plan)
