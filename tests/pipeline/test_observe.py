"""What the dispatcher counts of its own work agrees with what it did."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, select, text, update
from sqlalchemy.orm import Session, sessionmaker

from common.db import DbNow
from common.domain import JobState, Priority, RunState, Stage, queue_name
from common.metrics import REGISTRY
from common.settings import Settings
from common.tables import Job, JobEvent, StageRun, Webhook, WebhookDelivery
from common.webhooks import Answer
from services.dispatcher import counters, lifecycle, observe, recovery
from services.dispatcher.loop import Dispatcher
from services.dispatcher.shards import Shard
from services.dispatcher.sweeper import Sweeper
from services.dispatcher.webhooks import Deliverer, Due
from tests.pipeline.conftest import MakeJob, set_job, set_runs
from tests.servers import RedisServer


@pytest.fixture
def settings(settings: Settings, redis_server: RedisServer) -> Settings:
    return settings.model_copy(update={"redis_url": SecretStr(redis_server.url)})


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
