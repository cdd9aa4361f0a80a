"""The same work is not done twice, at the same time neither; what is taken away stops soon."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from common import garbage, keeper, runs, sharing, stage
from common.db import DbNow
from common.domain import Outcome, Priority, RunState, Scope, Stage
from common.ends import Ended
from common.messages import ShardMessage
from common.runs import Claim
from common.settings import Settings
from common.stage_io import StageInput, StageOutput, each
from common.tables import Artifact, Attempt, Garbage, Recording, StageRun
from services.dispatcher.shards import take_shard
from services.gateway import changes
from services.gateway.access import Caller
from tests.pipeline.conftest import MakeJob, states
from tests.pipeline.test_stage import Upper, upper

Sessions = sessionmaker[Session]


@pytest.fixture
def around(settings: Settings, tmp_path: Path, sessions: Sessions) -> Iterator[stage.Surroundings]:
    around = stage.open_surroundings(
        settings.model_copy(update={"scratch_dir": tmp_path / "scratch"})
    )
    yield around
    around.engine.dispose()


@pytest.fixture
def publish(around: stage.Surroundings, sessions: Sessions) -> Callable[[str], ShardMessage]:
    """Make all recordings alike, and put the next segment runs of a job into a shard."""

    def make_shard(job_id: str) -> ShardMessage:
        with sessions.begin() as session:
            session.execute(update(Recording).values(sha256="0" * 64))
            session.execute(update(StageRun).values(next_attempt_at=0.0))
            for key in session.scalars(select(Recording.object_key)):
                path = around.settings.home / "objects" / key
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"sound")
        with sessions.begin() as session:
            shard = take_shard(session, job_id, Stage.SEGMENT, Priority.BULK, around.settings)
        assert shard is not None
        return ShardMessage(shard_id=shard.id, stage=Stage.SEGMENT)

    return make_shard


def outcomes(sessions: Sessions) -> Counter[tuple[str, str | None]]:
    with sessions() as session:
        found = session.execute(select(Attempt.outcome, Attempt.error_code))
        return Counter((outcome, code) for outcome, code in found)


def never(model: Upper, item: StageInput) -> StageOutput:
    raise AssertionError("computed")


def test_recordings_alike_in_one_shard_are_computed_once(
    around: stage.Surroundings,
    sessions: Sessions,
    make_job: MakeJob,
    publish: Callable[[str], ShardMessage],
) -> None:
    job_id = make_job(5, stages={Stage.SEGMENT})
    calls = []

    def counting(model: Upper, item: StageInput) -> StageOutput:
        calls.append(item.name)
        return upper(model, item)

    stage.run_shard(around, publish(job_id), Upper, each(counting))
    assert calls == ["0.wav"]
    assert states(sessions, job_id)[Stage.SEGMENT] == [RunState.SUCCEEDED] * 5
    assert outcomes(sessions) == {("succeeded", None): 1, ("reused", None): 4}
    with sessions() as session:
        keys = session.scalars(select(Artifact.object_key)).all()
    assert (len(keys), len(set(keys))) == (5, 1)


def test_work_under_way_elsewhere_is_left_to_the_other_worker(
    around: stage.Surroundings,
    sessions: Sessions,
    make_job: MakeJob,
    publish: Callable[[str], ShardMessage],
) -> None:
    """While one worker computes, a second gets the same content: it waits, then reuses."""
    first, second = make_job(1, stages={Stage.SEGMENT}), make_job(1, stages={Stage.SEGMENT})
    message = publish(first)

    def slow(model: Upper, item: StageInput) -> StageOutput:
        stage.run_shard(around, publish(second), Upper, each(never))
        return upper(model, item)

    stage.run_shard(around, message, Upper, each(slow))
    assert states(sessions, first)[Stage.SEGMENT] == [RunState.SUCCEEDED]
    assert states(sessions, second)[Stage.SEGMENT] == [RunState.READY]
    with sessions() as session:
        run = session.scalars(select(StageRun).where(StageRun.job_id == second)).one()
        assert run.next_attempt_at > (session.scalar(select(DbNow())) or 0.0)
        assert run.failures == 0
    stage.run_shard(around, publish(second), Upper, each(never))
    assert outcomes(sessions) == {
        ("succeeded", None): 1,
        ("transient", "same_work_elsewhere"): 1,
        ("reused", None): 1,
    }


def test_many_workers_with_the_same_content_compute_it_once_at_a_time(
    around: stage.Surroundings,
    sessions: Sessions,
    make_job: MakeJob,
    publish: Callable[[str], ShardMessage],
) -> None:
    jobs = [make_job(2, stages={Stage.SEGMENT}) for _ in range(4)]
    messages = [publish(job_id) for job_id in jobs]
    at_work = []
    most = []
    together = threading.Barrier(len(messages))

    def watched(model: Upper, item: StageInput) -> StageOutput:
        at_work.append(item.name)
        most.append(len(at_work))
        try:
            return upper(model, item)
        finally:
            at_work.pop()

    def work(message: ShardMessage) -> None:
        together.wait()
        stage.run_shard(around, message, Upper, each(watched))

    threads = [threading.Thread(target=work, args=[message]) for message in messages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) <= {1}
    for job_id in jobs:  # what was given back is reused or computed now
        if set(states(sessions, job_id)[Stage.SEGMENT]) != {RunState.SUCCEEDED}:
            stage.run_shard(around, publish(job_id), Upper, each(watched))
        assert set(states(sessions, job_id)[Stage.SEGMENT]) == {RunState.SUCCEEDED}
    assert len(most) == 1


def test_results_that_are_being_removed_are_not_built_on(
    around: stage.Surroundings,
    sessions: Sessions,
    make_job: MakeJob,
    publish: Callable[[str], ShardMessage],
) -> None:
    first, second = make_job(1, stages={Stage.SEGMENT}), make_job(1, stages={Stage.SEGMENT})
    stage.run_shard(around, publish(first), Upper, each(upper))
    with sessions.begin() as session:
        [key] = session.scalars(select(StageRun.idempotency_key).where(StageRun.job_id == first))
        garbage.discard(session, [key or ""])
    stage.run_shard(around, publish(second), Upper, each(never))
    assert states(sessions, second)[Stage.SEGMENT] == [RunState.READY]
    with sessions.begin() as session:
        session.delete(session.get_one(Garbage, key))
    stage.run_shard(around, publish(second), Upper, each(never))
    assert states(sessions, second)[Stage.SEGMENT] == [RunState.SUCCEEDED]


def test_a_computation_stops_when_its_job_is_cancelled(
    around: stage.Surroundings,
    sessions: Sessions,
    make_job: MakeJob,
    publish: Callable[[str], ShardMessage],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeper, "FLUSH_S", 0.01)
    monkeypatch.setattr(keeper, "LOOK_S", 0.01)
    job_id = make_job(3, stages={Stage.SEGMENT})
    started = []

    def endless(model: Upper, item: StageInput) -> StageOutput:
        started.append(item.name)
        changes.cancel_job(sessions, Caller(None, frozenset(Scope)), job_id)
        while True:  # a model enters phases chunk by chunk
            with item.phases.phase("infer"):
                pass

    stage.run_shard(around, publish(job_id), Upper, each(endless))
    assert started == ["0.wav"]
    assert states(sessions, job_id)[Stage.SEGMENT] == [RunState.CANCELLED] * 3
    assert outcomes(sessions) == {("cancelled", None): 3}
    assert list(around.settings.scratch_dir.iterdir()) == []
    with sessions() as session:
        assert len(session.scalars(select(Garbage.key)).all()) == 1  # it may have stored something


def test_ends_are_recorded_in_groups_and_before_a_long_run_is_over(
    around: stage.Surroundings,
    sessions: Sessions,
    settings: Settings,
    make_job: MakeJob,
    publish: Callable[[str], ShardMessage],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeper, "FLUSH_S", 0.05)
    job_id = make_job(6, stages={Stage.SEGMENT})
    message = publish(job_id)
    with sessions.begin() as session:  # no two alike
        for number, recording in enumerate(session.scalars(select(Recording))):
            recording.sha256 = f"{number:064x}"
    seen: list[tuple[str, int]] = []
    groups: list[int] = []
    end_runs = keeper.end_runs

    def counted(session: Session, ends: list[object], settings: Settings) -> Ended:
        groups.append(len(ends))
        return end_runs(session, ends, settings)  # type: ignore[arg-type]

    def last_is_long(model: Upper, item: StageInput) -> StageOutput:
        while item.name == "5.wav" and not seen:
            with sessions() as session:
                started = session.scalars(
                    select(Attempt).where(
                        Attempt.outcome == Outcome.RUNNING.value, Attempt.started_at.is_not(None)
                    )
                ).all()
            done = states(sessions, job_id)[Stage.SEGMENT].count(RunState.SUCCEEDED)
            if done == 5 and started:
                seen.append((item.name, len(started)))
        return upper(model, item)

    monkeypatch.setattr(keeper, "end_runs", counted)
    stage.run_shard(around, message, Upper, each(last_is_long))
    assert seen == [("5.wav", 1)]
    assert sum(groups) == 6
    assert states(sessions, job_id)[Stage.SEGMENT] == [RunState.SUCCEEDED] * 6


def test_claims_that_bear_another_key_give_up_what_they_may_have_stored(
    sessions: Sessions, settings: Settings, make_job: MakeJob
) -> None:
    job_id = make_job(stages={Stage.SEGMENT})

    def begin(key: str) -> Claim:
        with sessions.begin() as session:
            shard = take_shard(session, job_id, Stage.SEGMENT, Priority.BULK, settings)
        assert shard is not None
        with sessions.begin() as session:
            [claim] = runs.claim(session, shard.id, "worker", 30.0)
            assert sharing.begin(session, {claim.stage_run_id: key}, [claim]) == {
                claim.stage_run_id
            }
        return claim

    assert begin("a" * 64).earlier_key is None
    with sessions.begin() as session:  # its worker died
        session.execute(update(StageRun).values(state=RunState.READY.value, shard_id=None))
    assert begin("b" * 64).earlier_key == "a" * 64
    with sessions() as session:
        assert session.scalars(select(Garbage.key)).all() == ["a" * 64]
