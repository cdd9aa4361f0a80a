"""What the dispatcher tells Prometheus agrees with the database and with what it did."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, sessionmaker

from common.db import DbNow, Job, JobEvent, Source, StageRun, Webhook, WebhookDelivery
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
from common.metrics import REGISTRY, expose
from common.settings import Settings
from common.webhooks import Answer
from services.dispatcher import census as census_module
from services.dispatcher import counters, lifecycle, observe, recovery
from services.dispatcher.census import Census, is_late, runs_query
from services.dispatcher.loop import Dispatcher
from services.dispatcher.shards import Shard
from services.dispatcher.sweeper import Sweeper
from services.dispatcher.webhooks import Deliverer, Due
from tests.pipeline.conftest import MakeJob
from tests.servers import PostgresServer, RedisServer

OF_DATABASE = {
    "stage_runs",
    "backlog_audio_seconds",
    "oldest_ready_age_seconds",
    "failed_runs",
    "jobs",
    "jobs_paused",
    "jobs_late",
    "sources",
    "webhook_deliveries_pending",
    "database_bytes",
}
OF_REDIS = {"queue_messages", "redis_memory_bytes", "redis_max_memory_bytes"}


@dataclass
class Told:
    """A scrape: values by name and labels."""

    values: dict[str, dict[tuple[str, ...], float]]

    @property
    def names(self) -> set[str]:
        return set(self.values)

    def of(self, name: str, *labels: str) -> float:
        return self.values[name][tuple(sorted(labels))]

    def above_zero(self, name: str) -> dict[tuple[str, ...], float]:
        return {labels: value for labels, value in self.values[name].items() if value}


def tell(census: Census) -> Told:
    registry = CollectorRegistry()
    registry.register(census)
    values: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(expose(registry).body.decode()):
        for sample in family.samples:
            name = sample.name.removeprefix("soundmill_")
            values.setdefault(name, {})[tuple(sorted(sample.labels.values()))] = sample.value
    return Told(values)


@pytest.fixture
def settings(settings: Settings, redis_server: RedisServer) -> Settings:
    return settings.model_copy(update={"redis_url": SecretStr(redis_server.url)})


@pytest.fixture
def census(settings: Settings) -> Iterator[Census]:
    census = Census(settings)
    yield census
    census.close()


@pytest.fixture
def look(census: Census) -> Callable[[], Told]:
    """Count and scrape."""

    def look() -> Told:
        census.count()
        return tell(census)

    return look


def set_runs(sessions: sessionmaker[Session], job_id: str, stage: Stage, **values: object) -> None:
    with sessions.begin() as session:
        session.execute(
            update(StageRun)
            .where(StageRun.job_id == job_id, StageRun.stage == stage.value)
            .values(**values)
        )


def set_job(sessions: sessionmaker[Session], job_id: str, **values: object) -> None:
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(**values))


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


def test_what_does_not_answer_is_absent_and_comes_back(
    sessions: sessionmaker[Session], look: Callable[[], Told], redis_server: RedisServer
) -> None:
    def broken() -> float:
        reason = {"reason": "ConnectionError"}
        return REGISTRY.get_sample_value("soundmill_broker_errors_total", reason) or 0.0

    assert look().names >= OF_REDIS
    before = broken()
    redis_server.kill()
    told = look()
    assert not told.names & OF_REDIS
    assert told.names >= OF_DATABASE - {"failed_runs"}
    assert broken() == before + 1
    redis_server.start()
    assert look().names >= OF_REDIS


def test_a_redis_that_does_not_tell_its_memory(
    sessions: sessionmaker[Session], settings: Settings, redis_server: RedisServer
) -> None:
    """Managed ones forbid it: no error, again and again, and the queues are told all the same."""
    with redis_server.client() as client:
        client.execute_command(
            "ACL", "SETUSER", "managed", "reset", "on", ">pw", "allkeys", "+@all", "-info"
        )
    url = redis_server.url.replace("//", "//managed:pw@")
    reason = {"reason": "NoPermissionError"}
    before = REGISTRY.get_sample_value("soundmill_broker_errors_total", reason)
    with closing(Census(settings.model_copy(update={"redis_url": SecretStr(url)}))) as census:
        census.count()
        assert tell(census).names & OF_REDIS == {"queue_messages"}
    assert REGISTRY.get_sample_value("soundmill_broker_errors_total", reason) == before


def test_without_tables_there_are_no_numbers(
    settings: Settings, census: Census, engine: Engine
) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE stage_run RENAME TO elsewhere"))
    before = REGISTRY.get_sample_value(*database_errors(engine)) or 0.0
    census.count()
    assert tell(census).names == OF_REDIS
    assert (REGISTRY.get_sample_value(*database_errors(engine)) or 0.0) == before + 1
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO stage_run"))
    census.count()
    assert tell(census).names >= OF_DATABASE - {"failed_runs"}


def database_errors(engine: Engine) -> tuple[str, dict[str, str]]:
    kind = {"sqlite": "OperationalError", "postgresql": "ProgrammingError"}[engine.dialect.name]
    return "soundmill_database_errors_total", {"reason": kind}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_database_that_refuses(
    sessions: sessionmaker[Session],
    look: Callable[[], Told],
    postgres_server: PostgresServer,
    database_url: str,
) -> None:
    name = database_url.rpartition("/")[2]
    admin = create_engine(postgres_server.url(), isolation_level="AUTOCOMMIT")

    def let_in(whether: bool) -> None:
        with admin.connect() as connection:
            connection.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS {whether}'))
            connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :n"),
                {"n": name},
            )

    everything = (OF_DATABASE | OF_REDIS) - {"failed_runs"}
    assert look().names == everything
    let_in(False)
    assert look().names == OF_REDIS
    let_in(True)
    assert look().names == everything
    admin.dispose()


def test_an_old_count_no_longer_stands_for_now(
    sessions: sessionmaker[Session], census: Census, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that hangs lets the count hang: its last numbers fade."""
    census.count()
    counted_at = time.monotonic()
    monkeypatch.setattr(census_module.time, "monotonic", lambda: counted_at + 10)
    assert tell(census).names >= OF_REDIS
    monkeypatch.setattr(census_module.time, "monotonic", lambda: counted_at + 10_000)
    assert tell(census).names == set()


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


# What was done


class Raised:
    """By how much counters were raised since."""

    def __init__(self) -> None:
        self._before = self._all()

    @staticmethod
    def _all() -> dict[tuple[str, tuple[str, ...]], float]:
        return {
            (sample.name.removeprefix("soundmill_"), tuple(sorted(sample.labels.values()))): (
                sample.value
            )
            for metric in REGISTRY.collect()
            for sample in metric.samples
            if sample.name.endswith(("_total", "_count", "_sum"))
        }

    def by(self, *names: str) -> dict[tuple[str, tuple[str, ...]], float]:
        return {
            key: value - self._before.get(key, 0.0)
            for key, value in self._all().items()
            if key[0] in names and value != self._before.get(key, 0.0)
        }


@pytest.fixture
def dispatcher(settings: Settings) -> Iterator[Dispatcher]:
    dispatcher = Dispatcher(settings)
    yield dispatcher
    dispatcher.close()


def test_every_counter_begins_at_zero() -> None:
    observe.start_counting()
    for name, labels in {
        "shards_published_total": {"stage": "enhance", "priority": "bulk"},
        "shard_runs_count": {"stage": "enhance"},
        "leases_expired_total": {"stage": "enhance"},
        "messages_lost_total": {"stage": "enhance"},
        "quarantined_total": {"stage": "enhance"},
        "turns_failed_total": {"reason": "broker"},
        "webhook_deliveries_total": {"outcome": "failed"},
        "jobs_ended_total": {"state": "expired"},
        "swept_total": {"kind": "result"},
    }.items():
        assert REGISTRY.get_sample_value(f"soundmill_{name}", labels) is not None, name


def test_shards_that_were_published(
    sessions: sessionmaker[Session], make_job: MakeJob, dispatcher: Dispatcher
) -> None:
    make_job(30, audio_s=10.0, stages={Stage.SEGMENT})  # 300 s: two full shards and a half one
    raised = Raised()
    while dispatcher.turn():
        with sessions.begin() as session:  # workers take them
            session.execute(
                update(StageRun)
                .where(StageRun.state == RunState.DISPATCHED.value)
                .values(state=RunState.SUCCEEDED.value)
            )
    assert raised.by("shards_published_total", "shard_runs_sum", "shard_fill_ratio_sum") == {
        ("shards_published_total", ("bulk", "segment")): 3,
        ("shard_runs_sum", ("segment",)): 30,
        ("shard_fill_ratio_sum", ("segment",)): pytest.approx(2.5),
    }


def test_the_fill_of_a_shard_by_hand() -> None:
    settings = Settings(shard_audio_s=100.0, shard_max_runs=10)
    raised = Raised()
    for audio_s, runs in ((50.0, 1), (1.0, 8), (9_000.0, 1)):
        ids = tuple(str(number) for number in range(runs))
        observe.note_shard(Shard("x", Stage.ENHANCE, Priority.BULK, "j", ids, audio_s), settings)
    assert raised.by("shard_fill_ratio_sum") == {
        ("shard_fill_ratio_sum", ("enhance",)): pytest.approx(0.5 + 0.8 + 1.0)
    }


def test_what_was_taken_back(
    sessions: sessionmaker[Session],
    make_job: MakeJob,
    dispatcher: Dispatcher,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id = make_job(3, stages={Stage.SEGMENT, Stage.ENHANCE})
    with sessions.begin() as session:
        runs = session.scalars(
            select(StageRun)
            .where(StageRun.job_id == job_id, StageRun.stage == Stage.SEGMENT.value)
            .order_by(StageRun.position)
        ).all()
        for run in runs[:2]:  # the first has killed its workers before
            run.state, run.shard_id = RunState.RUNNING.value, f"shard {run.position}"
            run.lease_expires_at = 1.0
        runs[0].crashes = settings.max_crashes_alone - 1
        runs[2].state, runs[2].shard_id = RunState.DISPATCHED.value, "lost"
        runs[2].dispatched_at = 1.0
    monkeypatch.setattr(
        dispatcher.empty_queues,
        "longer_than",
        lambda *_: {queue_name(Stage.SEGMENT, Priority.BULK)},
    )
    raised = Raised()
    dispatcher.recover()
    assert raised.by("leases_expired_total", "messages_lost_total", "quarantined_total") == {
        ("leases_expired_total", ("segment",)): 2,
        ("quarantined_total", ("segment",)): 1,
        ("messages_lost_total", ("segment",)): 1,
    }


def test_nothing_counts_that_was_not_committed(
    sessions: sessionmaker[Session],
    make_job: MakeJob,
    dispatcher: Dispatcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id = make_job(1, stages={Stage.SEGMENT})
    set_runs(sessions, job_id, Stage.SEGMENT, state=RunState.RUNNING.value, lease_expires_at=1.0)

    def fails(*_: object) -> None:
        raise RuntimeError("after the leases")

    monkeypatch.setattr(recovery, "recover_messages", fails)
    raised = Raised()
    with pytest.raises(RuntimeError, match="after the leases"):
        dispatcher.recover()
    assert raised.by("leases_expired_total") == {}


def test_turns_and_what_ended_them(
    sessions: sessionmaker[Session],
    dispatcher: Dispatcher,
    engine: Engine,
    redis_server: RedisServer,
) -> None:
    class Once:
        """Stands for the wish to stop: it comes after one turn."""

        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            return self.asked > 1

        def wait(self, _seconds: float) -> None: ...

    def turn() -> dict[tuple[str, tuple[str, ...]], float]:
        raised = Raised()
        dispatcher.run(Once())  # type: ignore[arg-type]
        return raised.by("turn_seconds_count", "turns_failed_total")

    one_turn = {("turn_seconds_count", ()): 1}
    assert turn() == one_turn
    redis_server.kill()
    assert turn() == one_turn | {("turns_failed_total", ("broker",)): 1}
    redis_server.start()
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE job RENAME TO elsewhere"))
    assert turn() == one_turn | {("turns_failed_total", ("database",)): 1}


def test_jobs_that_ended(sessions: sessionmaker[Session], make_job: MakeJob) -> None:
    done, cancelled = make_job(1, stages={Stage.SEGMENT}), make_job(1)
    overdue = make_job(1)
    set_runs(sessions, done, Stage.SEGMENT, state=RunState.SUCCEEDED.value)
    set_job(sessions, cancelled, state=JobState.CANCELLED.value)
    set_job(sessions, overdue, deadline_at=DbNow() - 1)
    raised = Raised()
    for _ in range(2):  # the second time there is nothing left to do
        lifecycle.expire_jobs(sessions, sessions)
        lifecycle.end_jobs(sessions, sessions, for_s=60.0)
        for job_id in (done, cancelled, overdue):
            counters.count_job(sessions, sessions, job_id, counters.Rates())
    assert raised.by("jobs_ended_total") == {
        ("jobs_ended_total", ("completed",)): 1,
        ("jobs_ended_total", ("cancelled",)): 1,
        ("jobs_ended_total", ("expired",)): 1,
    }


def test_deliveries_by_how_they_ended(
    sessions: sessionmaker[Session], make_job: MakeJob, settings: Settings
) -> None:
    job_id = make_job(1)
    with sessions.begin() as session:
        webhook = Webhook(url="https://example.org", secret="x", kinds=[])
        events = [JobEvent(job_id=job_id, kind="job.created", data={}) for _ in range(6)]
        session.add_all([webhook, *events])
        session.flush()
        rows = [
            WebhookDelivery(webhook_id=webhook.id, event_id=event.id, attempts=1)
            for event in events
        ]
        session.add_all(rows)
        session.flush()
        dues = [Due(row.id, webhook.id, 1, "u", "s", {}) for row in rows]
    deliverer = Deliverer(settings)
    raised = Raised()
    deliverer._record(dues[0], Answer(200))
    deliverer._record(dues[0], Answer(200))  # a second answer to the same changes nothing
    deliverer._record(dues[1], Answer(500, "failed", again=True))
    deliverer._record(dues[2], Answer(404, "unknown"))
    deliverer._record(dues[3], Answer(410, "gone"))  # and with it those that still wait: 1, 4, 5
    deliverer.close()
    assert raised.by("webhook_deliveries_total") == {
        ("webhook_deliveries_total", ("delivered",)): 1,
        ("webhook_deliveries_total", ("retried",)): 1,
        ("webhook_deliveries_total", ("failed",)): 5,
    }


def test_what_was_swept(
    sessions: sessionmaker[Session], make_job: MakeJob, settings: Settings
) -> None:
    ended, kept = make_job(2, stages={Stage.SEGMENT}), make_job(1)
    set_job(
        sessions,
        ended,
        state=JobState.COMPLETED.value,
        finished_at=DbNow() - 10,
        retention_s=1.0,
    )
    sweeper = Sweeper(settings)
    sweeper.store.prepare()
    raised = Raised()
    while sweeper.end_retention() or sweeper.remove_jobs():
        pass
    sweeper.close()
    assert raised.by("swept_total") == {
        ("swept_total", ("retention",)): 1,
        ("swept_total", ("job",)): 1,
    }
    with sessions() as session:
        assert session.scalars(select(Job.id)).all() == [kept]
