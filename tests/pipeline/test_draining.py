"""Workers that are stopped under load: what they held is taken up by others, at no cost to it."""

from __future__ import annotations

import io
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from common.db import DbNow
from common.domain import STAGE_NEEDS, Outcome, RunState, Stage
from common.ends import GivenBackFor
from common.settings import Settings
from common.tables import Attempt, StageRun
from common.worker import CLEAN_UP_S
from tests.pipeline.conftest import NamedJob, has_ended, states
from tests.pipeline.fleet import Fleet, Worker, until
from tests.pipeline.paced import BEGUN
from tests.servers import RedisServer

Sessions = sessionmaker[Session]
STOPPING = GivenBackFor.WORKER_STOPPING.value
LEASE_S = 600.0  # so long that nothing is taken back from the dead within a test
GRACE_S = 1.0
sqlite_alone = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def settings(database_url: str, redis_server: RedisServer, tmp_path: Path) -> Settings:
    values: dict[str, Any] = {
        "home": tmp_path,
        "database_url": database_url,
        "redis_url": redis_server.url,
        "lease_s": LEASE_S,
        "max_crashes_alone": 1,
        "shard_max_runs": 8,
        "shard_audio_s": 1_000.0,
    }
    return Settings(**values)


def now(sessions: Sessions) -> float:
    """Return the database's time."""
    with sessions() as session:
        return session.scalar(select(DbNow())) or 0.0


def attempts(sessions: Sessions, stage: Stage = Stage.SEGMENT) -> list[Attempt]:
    with sessions() as session:
        return list(
            session.scalars(
                select(Attempt)
                .join(StageRun, StageRun.id == Attempt.stage_run_id)
                .where(StageRun.stage == stage.value)
                .order_by(StageRun.position, Attempt.number)
            )
        )


def at_work(worker: Worker) -> bool:
    """Return whether a paced worker works on a recording."""
    folder = worker.log.parent / "scratch"
    return any(folder.glob(f"{worker.child.pid}-*/out-*/{BEGUN}"))


def check_nothing_was_held_against_anybody(sessions: Sessions, job_id: str) -> Counter[str]:
    """Everything succeeded once; nothing failed, nobody was lost. Return the attempts' reasons."""
    found = states(sessions, job_id)
    assert set(found) == set(STAGE_NEEDS)
    assert {state for ended in found.values() for state in ended} == {RunState.SUCCEEDED}
    with sessions() as session:
        runs = session.scalars(select(StageRun)).all()
        every = session.scalars(select(Attempt)).all()
    assert {(run.failures, run.crashes, run.shard_limit) for run in runs} == {(0, 0, None)}
    good = {Outcome.SUCCEEDED.value, Outcome.REUSED.value}
    assert {a.outcome for a in every} <= {*good, Outcome.TRANSIENT.value}
    assert Counter(a.stage_run_id for a in every if a.outcome in good) == {r.id: 1 for r in runs}
    reasons = Counter(a.error_code for a in every if a.outcome not in good)
    assert set(reasons) <= {STOPPING, GivenBackFor.SAME_WORK_ELSEWHERE.value}
    return Counter({str(reason): number for reason, number in reasons.items()})


def test_stopped_and_started_again_and_again_under_load_nothing_is_lost(
    processes: Fleet, sessions: Sessions, named_job: NamedJob
) -> None:
    rounds = 4
    job_id = named_job([f"0.15 s, {number}.wav" for number in range(24)])
    processes.dispatcher()
    worker, other = processes.paced("worker-a"), processes.paced("worker-b")
    stops = 0
    for number in range(rounds):
        until(lambda w=worker: has_ended(sessions, job_id) or at_work(w))
        if has_ended(sessions, job_id):
            break
        worker.stop()
        stops += 1
        worker, other = other, processes.paced(f"worker-{number}")
    until(lambda: has_ended(sessions, job_id))
    assert stops > 1, "the job was over too soon: make it longer"
    reasons = check_nothing_was_held_against_anybody(sessions, job_id)
    assert reasons[STOPPING] > 0
    worker.stop()
    other.stop()


@sqlite_alone
def test_what_has_not_begun_goes_back_at_once_and_what_is_begun_after_the_grace(
    processes: Fleet, sessions: Sessions, named_job: NamedJob
) -> None:
    job_id = named_job(["60 s, long.wav", *(f"0.01 s, {n}.wav" for n in range(3))])
    processes.dispatcher()
    worker = processes.paced("worker-1", drain_grace_s=GRACE_S)
    until(lambda: at_work(worker))
    asked_at = now(sessions)
    worker.stop()
    begun, *rest = attempts(sessions)
    assert {(a.outcome, a.error_code) for a in (begun, *rest)} == {("transient", STOPPING)}
    assert begun.started_at is not None
    assert begun.started_at < asked_at
    assert begun.finished_at is not None
    assert 0 <= begun.finished_at - asked_at - GRACE_S < CLEAN_UP_S
    for waiting in rest:
        assert waiting.started_at is None
        assert waiting.finished_at is not None
        assert waiting.finished_at < begun.finished_at
    found = states(sessions, job_id)[Stage.SEGMENT]
    assert set(found) <= {RunState.READY, RunState.DISPATCHED}
    assert "child ended unexpectedly" not in worker.log.read_text()


@sqlite_alone
def test_what_fits_into_the_grace_is_finished(
    processes: Fleet, sessions: Sessions, named_job: NamedJob
) -> None:
    job_id = named_job(["1 s, short.wav", "1 s, next.wav"])
    processes.dispatcher()
    worker = processes.paced("worker-1")
    until(lambda: at_work(worker))
    worker.stop()
    outcomes = [(a.outcome, a.error_code) for a in attempts(sessions)]
    assert outcomes == [("succeeded", None), ("transient", STOPPING)]
    processes.paced("worker-2")
    until(lambda: has_ended(sessions, job_id))
    check_nothing_was_held_against_anybody(sessions, job_id)


@sqlite_alone
def test_who_is_asked_twice_gives_back_at_once(
    processes: Fleet, sessions: Sessions, named_job: NamedJob
) -> None:
    named_job(["600 s, long.wav"])
    processes.dispatcher()
    worker = processes.paced("worker-1", drain_grace_s=500.0)
    until(lambda: at_work(worker))

    def ask_again() -> bool:  # two signals may arrive as one
        worker.ask_to_stop()
        return attempts(sessions)[0].outcome != Outcome.RUNNING.value

    until(ask_again)
    worker.stop()
    [attempt] = attempts(sessions)
    assert (attempt.outcome, attempt.error_code) == ("transient", STOPPING)
    assert attempt.finished_at is not None
    assert attempt.started_at is not None
    assert attempt.finished_at - attempt.started_at < 500.0


@sqlite_alone
def test_a_model_that_does_not_listen_loses_its_recording_in_time_too(
    processes: Fleet, sessions: Sessions, named_job: NamedJob
) -> None:
    job_id = named_job(["deaf, 600 s, a.wav"])
    processes.dispatcher()
    worker = processes.paced("worker-1", drain_grace_s=GRACE_S)
    until(lambda: at_work(worker))
    asked_at = now(sessions)
    worker.stop()  # its child is killed, but has nothing in its hands by then
    [attempt] = attempts(sessions)
    assert (attempt.outcome, attempt.error_code) == ("transient", STOPPING)
    assert 0 <= (attempt.finished_at or 0.0) - asked_at - GRACE_S < CLEAN_UP_S
    assert states(sessions, job_id)[Stage.SEGMENT][0] in (RunState.READY, RunState.DISPATCHED)


@sqlite_alone
def test_a_signal_to_the_whole_group_leaves_the_child_alone(
    processes: Fleet, sessions: Sessions, named_job: NamedJob
) -> None:
    """As systemd and terminals send it."""
    job_id = named_job(["1 s, a.wav"])
    processes.dispatcher()
    worker = processes.paced("worker-1")
    until(lambda: at_work(worker))
    child = worker.child
    os.kill(child.pid, signal.SIGTERM)
    worker.stop()
    assert [(a.outcome, a.error_code) for a in attempts(sessions)] == [("succeeded", None)]
    assert "unexpectedly" not in worker.log.read_text()
    assert states(sessions, job_id)[Stage.SEGMENT] == [RunState.SUCCEEDED]


def sound(seed: int, seconds: float) -> bytes:
    """Return a WAV of noise with a burst, no two alike."""
    rng = np.random.default_rng(seed)
    samples = 0.02 * rng.standard_normal(round(16_000 * seconds))
    samples[4_000:12_000] += 0.4 * np.sin(np.arange(8_000) * (0.1 + 0.01 * seed))
    file = io.BytesIO()
    soundfile.write(file, samples.clip(-1, 1), 16_000, format="WAV")
    return file.getvalue()


@sqlite_alone
def test_a_real_model_is_stopped_while_it_loads_and_while_it_works(
    processes: Fleet, sessions: Sessions, named_job: NamedJob
) -> None:
    names = [f"{number}.wav" for number in range(16)]
    job_id = named_job(names, [sound(number, 8.0) for number in range(len(names))])
    processes.dispatcher()
    processes.paced("others", Stage.CLASSIFY, Stage.ENHANCE, Stage.RESTORE)

    def claimed_by(worker: Worker) -> list[Attempt]:
        mine = f":{worker.child.pid}"
        return [a for a in attempts(sessions) if a.worker.endswith(mine)]

    first = processes.real("segmenter-1", Stage.SEGMENT)
    until(lambda: claimed_by(first))  # and loads its model, or has just begun
    first.stop()
    second = processes.real("segmenter-2", Stage.SEGMENT)
    until(lambda: any(a.started_at for a in claimed_by(second)))
    second.stop()
    third = processes.real("segmenter-3", Stage.SEGMENT)
    until(lambda: has_ended(sessions, job_id))
    assert third.page("/health").status_code == 200
    reasons = check_nothing_was_held_against_anybody(sessions, job_id)
    assert reasons[STOPPING] > 0
    third.stop()
