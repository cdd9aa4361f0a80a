"""Shards, turns, recovery and counters of the dispatcher, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from common import runs
from common.broker import queue_lengths
from common.db import DbNow
from common.domain import JobState, Outcome, Priority, RunState, Stage
from common.settings import Settings
from common.tables import Attempt, Job, StageRun
from services.dispatcher import counters, recovery, shards
from services.dispatcher.loop import Dispatcher
from tests.pipeline.conftest import MakeJob, states
from tests.servers import RedisServer


def take(sessions: sessionmaker[Session], settings: Settings, job_id: str) -> shards.Shard | None:
    with sessions.begin() as session:
        return shards.take_shard(session, job_id, Stage.SEGMENT, Priority.BULK, settings)


@pytest.fixture
def make_dispatcher(
    settings: Settings, redis_server: RedisServer, sessions: sessionmaker[Session]
) -> Iterator[Callable[..., Dispatcher]]:
    with ExitStack() as stack:

        def make(**changes: object) -> Dispatcher:
            changes["redis_url"] = SecretStr(redis_server.url)
            dispatcher = Dispatcher(settings.model_copy(update=changes))
            return stack.enter_context(closing(dispatcher))

        yield make


def test_a_shard_is_a_number_of_seconds_of_audio(
    sessions: sessionmaker[Session], settings: Settings, make_job: MakeJob
) -> None:
    job_id = make_job(30, audio_s=10.0)
    shard = take(sessions, settings, job_id)
    assert shard is not None
    assert (len(shard.stage_run_ids), shard.audio_s) == (12, 120.0)  # shard_audio_s = 120

    long = make_job(2, audio_s=7_200.0)
    shard = take(sessions, settings, long)
    assert shard is not None
    assert len(shard.stage_run_ids) == 1  # longer than a shard: alone, never stuck


def test_two_dispatchers_never_take_the_same_run(
    sessions: sessionmaker[Session], settings: Settings, make_job: MakeJob
) -> None:
    job_id = make_job(60, audio_s=60.0)
    taken: list[str] = []

    def take_all() -> None:
        while (shard := take(sessions, settings, job_id)) is not None:
            taken.extend(shard.stage_run_ids)

    threads = [threading.Thread(target=take_all) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while (shard := take(sessions, settings, job_id)) is not None:  # passed over while locked
        taken.extend(shard.stage_run_ids)
    assert len(taken) == len(set(taken)) == 60


def test_queues_are_bounded_and_jobs_take_turns(
    sessions: sessionmaker[Session],
    make_job: MakeJob,
    make_dispatcher: Callable[..., Dispatcher],
) -> None:
    big, small = make_job(500, audio_s=60.0), make_job(4, audio_s=60.0)
    dispatcher = make_dispatcher(min_shards_per_queue=4)
    assert dispatcher.turn() == 4
    assert dispatcher.turn() == 0  # full: nothing more until something is claimed
    lengths = queue_lengths(dispatcher.redis)
    assert lengths["segmenter.bulk"] == 4
    assert sum(lengths.values()) == 4
    with sessions() as session:
        jobs = session.execute(
            select(StageRun.job_id, StageRun.shard_id)
            .where(StageRun.state == RunState.DISPATCHED.value)
            .distinct()
        ).all()
    assert sorted(job_id for job_id, _ in jobs) == sorted([big, big, small, small])


def test_more_workers_get_more_shards(
    sessions: sessionmaker[Session], settings: Settings, make_job: MakeJob
) -> None:
    job_id = make_job(20, audio_s=1_000.0)
    for number in range(3):
        shard = take(sessions, settings, job_id)
        assert shard is not None
        with sessions.begin() as session:
            runs.claim(session, shard.id, f"worker-{number}", 30.0)
    with sessions() as session:
        places = shards.free_places(session, Stage.SEGMENT, settings)
    assert places == {Priority.BULK: 6, Priority.INTERACTIVE: 6}


def test_keys_take_turns_and_so_do_the_jobs_of_a_key() -> None:
    turns = shards.Turns()
    waiting = [shards.Waiting(f"a{number}", "a") for number in range(3)]
    waiting += [shards.Waiting("b", "b"), shards.Waiting("local", None)]
    order = []
    for _ in range(9):
        served = turns.next(waiting)
        turns.served(served)
        order.append(served.job_id)
    assert order == ["local", "a0", "b", "local", "a1", "b", "local", "a2", "b"]
    turns.served(shards.Waiting("a1", "a"))
    assert turns.next(waiting[:3]).job_id == "a0"


def test_a_job_that_became_urgent_goes_into_the_other_queue(
    sessions: sessionmaker[Session], settings: Settings, make_job: MakeJob
) -> None:
    job_id = make_job(2)
    with sessions.begin() as session:
        session.get_one(Job, job_id).priority = Priority.INTERACTIVE.value
        assert shards.waiting_jobs(session, Stage.SEGMENT, Priority.BULK) == []
        shard = shards.take_shard(session, job_id, Stage.SEGMENT, Priority.INTERACTIVE, settings)
        assert shard is not None
        found = select(StageRun.priority).where(StageRun.id.in_(shard.stage_run_ids))
        assert session.scalars(found).all() == ["interactive", "interactive"]


def test_nothing_of_a_paused_cancelled_or_deleted_job_is_dispatched(
    sessions: sessionmaker[Session], settings: Settings, make_job: MakeJob
) -> None:
    changes: list[dict[str, Any]] = [
        {"paused_at": DbNow()},
        {"deleted_at": DbNow()},
        {"state": JobState.CANCELLED.value},
    ]
    for change in changes:
        job_id = make_job()
        with sessions.begin() as session:
            session.execute(update(Job).where(Job.id == job_id).values(**change))
        assert take(sessions, settings, job_id) is None
    with sessions() as session:
        assert shards.waiting_jobs(session, Stage.SEGMENT, Priority.BULK) == []


def expire(sessions: sessionmaker[Session], settings: Settings) -> int:
    with sessions.begin() as session:
        session.execute(
            update(StageRun)
            .where(StageRun.state == RunState.RUNNING.value)
            .values(lease_expires_at=DbNow() - 1.0)
        )
    with sessions.begin() as session:
        return recovery.recover_leases(session, settings).expired.total()


def test_a_shard_that_kills_its_worker_is_halved_until_the_killer_is_alone_and_quarantined(
    sessions: sessionmaker[Session], settings: Settings, make_job: MakeJob
) -> None:
    """Recording 5 of 8 kills every worker that comes to it; the other seven must succeed."""
    job_id = make_job(8, audio_s=1.0)
    sizes = []
    for _ in range(40):
        shard = take(sessions, settings, job_id)
        if shard is None:
            break
        with sessions.begin() as session:
            claims = runs.claim(session, shard.id, "worker", settings.lease_s)
        if any(claim.name == "5.wav" for claim in claims):
            sizes.append(len(claims))
            assert expire(sessions, settings) == len(claims)
            continue
        for claim in claims:
            with sessions.begin() as session:
                session.execute(
                    update(StageRun)
                    .where(StageRun.id == claim.stage_run_id)
                    .values(state=RunState.SUCCEEDED.value)
                )
    assert sizes == [8, 4, 2, 1, 1, 1]
    found = states(sessions, job_id)
    assert found[Stage.SEGMENT] == [
        RunState.QUARANTINED if n == 5 else RunState.SUCCEEDED for n in range(8)
    ]
    assert found[Stage.CLASSIFY][5] is RunState.SKIPPED
    with sessions() as session:
        outcomes = set(session.scalars(select(Attempt.outcome)))
    assert Outcome.LOST.value in outcomes


def test_lost_messages_are_found_when_redis_comes_back_empty(
    sessions: sessionmaker[Session],
    make_job: MakeJob,
    make_dispatcher: Callable[..., Dispatcher],
    redis_server: RedisServer,
) -> None:
    job_id = make_job(2, audio_s=60.0)
    dispatcher = make_dispatcher(lost_message_grace_s=0.0, min_shards_per_queue=1)
    assert dispatcher.turn() == 1
    assert states(sessions, job_id)[Stage.SEGMENT] == [RunState.DISPATCHED] * 2
    dispatcher.turn()
    assert states(sessions, job_id)[Stage.SEGMENT] == [RunState.DISPATCHED] * 2  # not lost
    redis_server.restart_empty()
    assert dispatcher.turn() == 1  # published anew
    assert queue_lengths(dispatcher.redis)["segmenter.bulk"] == 1


def test_a_shard_that_cannot_be_published_goes_back(
    sessions: sessionmaker[Session],
    make_job: MakeJob,
    make_dispatcher: Callable[..., Dispatcher],
    redis_server: RedisServer,
) -> None:
    job_id = make_job()
    dispatcher = make_dispatcher()
    redis_server.kill()
    with pytest.raises(Exception, match=r"(?i)connect|refused|No such file"):
        dispatcher.dispatch(Stage.SEGMENT)
    assert states(sessions, job_id)[Stage.SEGMENT] == [RunState.READY]


def test_counters_are_exact_and_end_the_job(
    sessions: sessionmaker[Session], settings: Settings, make_job: MakeJob
) -> None:
    job_id = make_job(3, stages={Stage.CLASSIFY}, audio_s=10.0)
    rates = counters.Rates()

    def count() -> Job:
        counters.count_job(sessions, sessions, job_id, rates)
        with sessions() as session:
            job = session.get(Job, job_id)
            assert job is not None
            return job

    job = count()
    assert job.counts == {"segment": {"ready": 3}, "classify": {"blocked": 3}}
    assert (job.audio_s_total, job.audio_s_done, job.state) == (30.0, 0.0, JobState.CLOSED)

    ends = {0: RunState.SUCCEEDED, 1: RunState.FAILED, 2: RunState.SUCCEEDED}
    with sessions.begin() as session:
        for position, state in ends.items():
            session.execute(
                update(StageRun)
                .where(StageRun.position == position, StageRun.stage == Stage.SEGMENT.value)
                .values(state=state.value)
            )
    job = count()
    assert (job.audio_s_done, job.state) == (15.0, JobState.CLOSED)

    with sessions.begin() as session:
        session.execute(
            update(StageRun)
            .where(StageRun.stage == Stage.CLASSIFY.value)
            .values(state=RunState.SKIPPED.value)
        )
    job = count()
    assert job.counts == {
        "segment": {"succeeded": 2, "failed": 1},
        "classify": {"skipped": 3},
    }
    assert (job.audio_s_done, job.state) == (30.0, JobState.COMPLETED)
    assert job.finished_at is not None
    assert job.errors == [
        {
            "stage": "segment",
            "code": None,
            "count": 1,
            "recording_id": job.errors[0]["recording_id"],
            "name": "1.wav",
            "detail": None,
        }
    ]
    count()  # once more after the end
    with sessions() as session:
        assert counters.stale_jobs(session) == []


def test_the_rate_follows_the_recent_speed() -> None:
    rates = counters.Rates()
    assert rates.update("job", 0.0, 0.0) is None
    assert rates.update("job", 1.0, 100.0) == pytest.approx(100.0)
    rate = 100.0
    for second in range(2, 200):
        rate = rates.update("job", float(second), 100.0 + 10.0 * (second - 1)) or 0.0
    assert rate == pytest.approx(10.0, rel=0.01)
