"""Models that compute recordings of a shard together: each keeps its own claim, time and errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from common import keeper, stage
from common.domain import Outcome, Priority, RunState, Stage
from common.draining import Drain
from common.errors import AudioUnreadable
from common.messages import ShardMessage
from common.settings import Settings
from common.shard import ProcessShard
from common.stage_io import Done, StageInput
from common.tables import Artifact, Attempt, Recording, StageRun
from services.dispatcher.shards import take_shard
from tests.pipeline.conftest import MakeJob, states
from tests.pipeline.test_stage import Upper, upper

Sessions = sessionmaker[Session]
Run = Callable[[str, ProcessShard[Upper]], None]

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def around(settings: Settings, tmp_path: Path, sessions: Sessions) -> Iterator[stage.Surroundings]:
    around = stage.open_surroundings(
        settings.model_copy(update={"scratch_dir": tmp_path / "scratch"}), Drain()
    )
    yield around
    around.engine.dispose()


@pytest.fixture
def run(around: stage.Surroundings, sessions: Sessions) -> Run:
    """Store the inputs of a job, each its own, and run its segment stage as one shard."""

    def run_job(job_id: str, process_shard: ProcessShard[Upper]) -> None:
        with sessions() as session:
            for recording in session.scalars(select(Recording).where(Recording.job_id == job_id)):
                path = around.settings.home / "objects" / recording.object_key
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(f"recording {recording.position}")
        with sessions.begin() as session:
            shard = take_shard(session, job_id, Stage.SEGMENT, Priority.BULK, around.settings)
        assert shard is not None
        message = ShardMessage(shard_id=shard.id, stage=Stage.SEGMENT)
        stage.run_shard(around, message, Upper, process_shard)

    return run_job


@pytest.fixture
def job_id(make_job: MakeJob, sessions: Sessions) -> str:
    """Five recordings, no two alike."""
    job_id = make_job(5, stages={Stage.SEGMENT})
    with sessions.begin() as session:
        for recording in session.scalars(select(Recording)):
            recording.sha256 = f"{recording.position:064x}"
    return job_id


def outcome_of(model: Upper, item: StageInput) -> Done:
    try:
        return Done(item, upper(model, item))
    except Exception as error:
        return Done(item, error)


def in_threes(model: Upper, items: Iterable[StageInput]) -> Iterator[Done]:
    """Take three recordings, then compute them, the last first."""
    taken: list[StageInput] = []
    for item in items:
        taken.append(item)
        if len(taken) == 3:
            yield from (outcome_of(model, one) for one in reversed(taken))
            taken = []
    yield from (outcome_of(model, one) for one in reversed(taken))


def test_each_keeps_its_own_result(
    around: stage.Surroundings, sessions: Sessions, job_id: str, run: Run
) -> None:
    run(job_id, in_threes)
    assert states(sessions, job_id)[Stage.SEGMENT] == [RunState.SUCCEEDED] * 5
    with sessions() as session:
        found = session.execute(
            select(Recording.position, Artifact.object_key).join(
                Artifact, Artifact.recording_id == Recording.id
            )
        ).all()
        attempts = session.scalars(select(Attempt)).all()
    assert len(found) == 5
    for position, key in found:
        with around.store.open(key) as chunks:
            assert b"".join(chunks) == f"RECORDING {position}".encode()
    assert all(attempt.infer_s is not None for attempt in attempts)
    assert list(around.settings.scratch_dir.iterdir()) == []


def test_times_of_attempts_add_up_to_the_time_worked(
    sessions: Sessions, job_id: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three at once take three seconds: a third of them each, then two share two seconds."""
    now_s = 100.0
    monkeypatch.setattr(keeper, "time", SimpleNamespace(monotonic=lambda: now_s))

    def slow(model: Upper, items: Iterable[StageInput]) -> Iterator[Done]:
        nonlocal now_s
        taken = list(islice(items, 3))
        now_s += 3.0
        yield outcome_of(model, taken[0])
        now_s += 2.0
        yield from (outcome_of(model, item) for item in taken[1:])
        yield from (outcome_of(model, item) for item in items)

    run(job_id, slow)
    with sessions() as session:
        took_s = session.execute(
            select(Recording.position, Attempt.finished_at - Attempt.started_at)
            .join(StageRun, StageRun.id == Attempt.stage_run_id)
            .join(Recording, Recording.id == StageRun.recording_id)
        )
        by_position = {row[0]: row[1] for row in took_s}
    wanted = {0: 1.0, 1: 2.0, 2: 2.0, 3: 0.0, 4: 0.0}
    assert by_position == pytest.approx(wanted, abs=1e-3)


def test_one_that_cannot_be_fetched_or_decoded_costs_the_others_nothing(
    around: stage.Surroundings, sessions: Sessions, job_id: str, run: Run
) -> None:
    def third_is_bad(model: Upper, items: Iterable[StageInput]) -> Iterator[Done]:
        for done in in_threes(model, items):
            if done.item.name == "2.wav":
                done = Done(done.item, AudioUnreadable("2.wav holds no audio stream"))
            yield done

    with sessions() as session:
        key = session.scalars(select(Recording.object_key).where(Recording.position == 1)).one()
    missing = around.settings.home / "objects" / key
    missing.parent.mkdir(parents=True, exist_ok=True)
    missing.mkdir()  # no file
    run(job_id, third_is_bad)
    found = states(sessions, job_id)[Stage.SEGMENT]
    assert [found[position] for position in (0, 2, 3, 4)] == [
        RunState.SUCCEEDED,
        RunState.FAILED,
        RunState.SUCCEEDED,
        RunState.SUCCEEDED,
    ]
    assert found[1] != RunState.SUCCEEDED


def test_recordings_alike_are_computed_once(sessions: Sessions, job_id: str, run: Run) -> None:
    with sessions.begin() as session:
        session.execute(update(Recording).values(sha256="0" * 64))
    asked: list[str] = []

    def counting(model: Upper, items: Iterable[StageInput]) -> Iterator[Done]:
        for done in in_threes(model, items):
            asked.append(done.item.name)
            yield done

    run(job_id, counting)
    assert asked == ["0.wav"]
    assert states(sessions, job_id)[Stage.SEGMENT] == [RunState.SUCCEEDED] * 5


def test_an_error_of_all_fails_what_was_at_work_and_nothing_else(
    sessions: Sessions, job_id: str, run: Run
) -> None:
    calls: list[int] = []

    def breaks_at_first(model: Upper, items: Iterable[StageInput]) -> Iterator[Done]:
        calls.append(1)
        if len(calls) > 1:
            yield from in_threes(model, items)
        else:
            list(islice(items, 2))
            raise RuntimeError("the device is gone")

    run(job_id, breaks_at_first)
    succeeded, ready = RunState.SUCCEEDED, RunState.READY
    found = states(sessions, job_id)[Stage.SEGMENT]
    assert found == [ready, ready, succeeded, succeeded, succeeded]
    with sessions() as session:
        codes = session.scalars(select(StageRun.error_code).where(StageRun.state == ready)).all()
    assert codes == ["internal_error"] * 2


@pytest.mark.parametrize("n_taken", [0, 1])
def test_a_model_that_leaves_recordings_out_is_not_waited_for(
    sessions: Sessions, job_id: str, run: Run, n_taken: int
) -> None:
    def forgets(model: Upper, items: Iterable[StageInput]) -> Iterator[Done]:
        list(islice(items, n_taken))
        yield from ()

    run(job_id, forgets)
    assert states(sessions, job_id)[Stage.SEGMENT] == [RunState.READY] * 5
    with sessions() as session:
        codes = session.scalars(select(StageRun.error_code)).all()
    assert codes == ["internal_error"] * 5


def test_the_time_limit_fails_what_was_at_work_and_gives_back_the_rest(
    sessions: Sessions, job_id: str, run: Run
) -> None:
    def hangs(model: Upper, items: Iterable[StageInput]) -> Iterator[Done]:
        taken = iter(items)
        first, second = next(taken), next(taken)
        yield outcome_of(model, first)
        next(taken)
        yield Done(second, SoftTimeLimitExceeded())

    run(job_id, hangs)
    assert states(sessions, job_id)[Stage.SEGMENT] == [RunState.SUCCEEDED] + [RunState.READY] * 4
    with sessions() as session:
        codes = session.scalars(
            select(Attempt.error_code)
            .join(StageRun, StageRun.id == Attempt.stage_run_id)
            .order_by(StageRun.position)
        ).all()
        failures = session.scalars(select(StageRun.failures).order_by(StageRun.position)).all()
    assert codes == [None, *["time_limit_exceeded"] * 2, *["shard_out_of_time"] * 2]
    assert failures == [0, 1, 1, 0, 0]


def test_a_stopping_worker_ends_what_is_at_work_and_begins_no_more(
    around: stage.Surroundings, sessions: Sessions, job_id: str, run: Run
) -> None:
    def asked_to_stop(model: Upper, items: Iterable[StageInput]) -> Iterator[Done]:
        taken = list(islice(items, 2))
        around.drain.ask(60.0)
        taken += items
        yield from (outcome_of(model, item) for item in taken)

    run(job_id, asked_to_stop)
    found = states(sessions, job_id)[Stage.SEGMENT]
    assert found == [RunState.SUCCEEDED] * 2 + [RunState.READY] * 3
    with sessions() as session:
        outcomes = session.scalars(select(Attempt.outcome)).all()
    assert sorted(outcomes) == [Outcome.SUCCEEDED] * 2 + [Outcome.TRANSIENT] * 3
