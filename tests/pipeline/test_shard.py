"""Models that compute recordings of a shard together: each keeps its own claim, time and errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from common import stage
from common.domain import Outcome, Priority, RunState, Stage
from common.draining import Drain
from common.errors import AudioUnreadable
from common.messages import ShardMessage
from common.settings import Settings
from common.shard import ProcessShard
from common.stage_io import Done, StageInput, together
from common.tables import Artifact, Attempt, Recording, StageRun
from services.dispatcher.shards import take_shard
from tests.pipeline.conftest import Clock, MakeJob, set_runs, states
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


def took_s(sessions: Sessions, job_id: str) -> list[float]:
    """Return how long attempts took, by position."""
    with sessions() as session:
        return list(
            session.scalars(
                select(Attempt.finished_at - Attempt.started_at)
                .join(StageRun, StageRun.id == Attempt.stage_run_id)
                .where(StageRun.job_id == job_id)
                .order_by(StageRun.position)
            )
        )


def test_time_of_which_nothing_is_known_is_parted_equally(
    sessions: Sessions, job_id: str, run: Run, clock: Clock
) -> None:
    """Three at once take three seconds: a third of them each, then two share two seconds."""

    def slow(model: Upper, items: Iterable[StageInput]) -> Iterator[Done]:
        taken = list(islice(items, 3))
        clock.passes(3.0)
        yield outcome_of(model, taken[0])
        clock.passes(2.0)
        yield from (outcome_of(model, item) for item in taken[1:])
        yield from (outcome_of(model, item) for item in items)

    run(job_id, slow)
    assert took_s(sessions, job_id) == pytest.approx([1.0, 2.0, 2.0, 0.0, 0.0], abs=1e-3)


def test_time_is_parted_by_how_much_each_has_in_a_batch(
    sessions: Sessions, job_id: str, run: Run, clock: Clock
) -> None:
    """Each pays for its own decoding, and for the batch by its windows; nothing counts twice."""

    def in_a_batch(model: Upper, items: Iterable[StageInput]) -> Iterator[Done]:
        taken = list(items)
        for seconds, item in enumerate(taken):
            with item.phases.phase("decode"):
                clock.passes(float(seconds))
        with together("infer", {taken[0].phases: 7, taken[1].phases: 2, taken[2].phases: 1}):
            clock.passes(20.0)
        yield from (outcome_of(model, item) for item in taken)

    run(job_id, in_a_batch)
    assert took_s(sessions, job_id) == pytest.approx([14.0, 5.0, 4.0, 3.0, 4.0], abs=1e-3)
    with sessions() as session:
        phases = session.execute(
            select(Attempt.decode_s, Attempt.infer_s)
            .join(StageRun, StageRun.id == Attempt.stage_run_id)
            .order_by(StageRun.position)
        ).all()
    assert [tuple(row) for row in phases] == [
        pytest.approx(wanted)
        for wanted in [(0.0, 14.0), (1.0, 4.0), (2.0, 2.0), (3.0, 0.0), (4.0, 0.0)]
    ]


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


def limits(around: stage.Surroundings, clock: Clock) -> SoftTimeLimitExceeded:
    """Let all the time of a shard pass; return what the worker hears then."""
    clock.passes(around.settings.soft_time_limit_s)
    return SoftTimeLimitExceeded()


def ends_of(sessions: Sessions, job_id: str) -> list[tuple[str | None, int, int | None]]:
    """Return by position why the newest attempt ended, failures so far and the shard limit."""
    with sessions() as session:
        rows = session.execute(
            select(Attempt.error_code, StageRun.failures, StageRun.shard_limit)
            .join(StageRun, StageRun.id == Attempt.stage_run_id)
            .where(StageRun.job_id == job_id, Attempt.number == StageRun.fence)
            .order_by(StageRun.position)
        )
        return [(code, failures, limit) for code, failures, limit in rows]


def test_who_hangs_beside_others_fails_alone(
    around: stage.Surroundings, sessions: Sessions, job_id: str, run: Run, clock: Clock
) -> None:
    def second_hangs(model: Upper, items: Iterable[StageInput]) -> Iterator[Done]:
        _waits, hangs, _waits_too = islice(items, 3)
        with hangs.phases.phase("decode"):
            raise limits(around, clock)
        yield from ()

    run(job_id, second_hangs)
    assert states(sessions, job_id)[Stage.SEGMENT] == [RunState.READY] * 5
    given_back = ("shard_out_of_time", 0, None)
    failed = ("time_limit_exceeded", 1, None)
    assert ends_of(sessions, job_id) == [given_back, failed, *[given_back] * 3]
    with sessions() as session:
        attempts = session.scalars(select(Attempt).where(Attempt.started_at.is_not(None))).all()
    limit_s = around.settings.soft_time_limit_s
    took_s = [(a.finished_at or 0.0) - (a.started_at or 0.0) for a in attempts]
    assert sorted(took_s) == pytest.approx([0.0, 0.0, limit_s], abs=1e-3)
    assert [a.decode_s for a in attempts if a.decode_s] == [limit_s]
    assert list(around.settings.scratch_dir.iterdir()) == []


@pytest.mark.parametrize("in_a_phase", [True, False])
def test_of_those_that_hang_together_none_is_failed(
    around: stage.Surroundings,
    sessions: Sessions,
    job_id: str,
    run: Run,
    clock: Clock,
    in_a_phase: bool,
) -> None:
    def hang(model: Upper, items: Iterable[StageInput]) -> Iterator[Done]:
        first, *taken = islice(items, 3)
        yield outcome_of(model, first)
        if in_a_phase:
            with together("infer", {item.phases: 1.0 for item in taken}):
                raise limits(around, clock)
        raise limits(around, clock)

    run(job_id, hang)
    assert states(sessions, job_id)[Stage.SEGMENT] == [RunState.SUCCEEDED] + [RunState.READY] * 4
    assert ends_of(sessions, job_id) == [
        (None, 0, None),
        *[("shard_out_of_time", 0, 1)] * 2,
        *[("shard_out_of_time", 0, None)] * 2,
    ]
    with sessions() as session:
        devices = session.scalars(select(Attempt.device).order_by(Attempt.started_at)).all()
    assert devices.count("cpu") == 3  # so their time counts as time in which the worker was busy


def test_the_limit_is_not_held_against_who_came_last(
    around: stage.Surroundings, sessions: Sessions, job_id: str, run: Run, clock: Clock
) -> None:
    """It was alone when the limit was met, but others had taken the time."""

    def slow(model: Upper, items: Iterable[StageInput]) -> Iterator[Done]:
        for item in items:
            with item.phases.phase("infer"):
                clock.passes(0.4 * around.settings.soft_time_limit_s)
                if item.name == "2.wav":
                    raise SoftTimeLimitExceeded
            yield outcome_of(model, item)

    run(job_id, slow)
    back = "shard_out_of_time"
    found = [(None, 0, None)] * 2 + [(back, 0, 1)] + [(back, 0, None)] * 2
    assert ends_of(sessions, job_id) == found


def test_who_hangs_is_found_by_halves_and_only_it_is_failed(
    around: stage.Surroundings, sessions: Sessions, make_job: MakeJob, run: Run, clock: Clock
) -> None:
    sizes: list[int] = []

    def all_at_once(model: Upper, items: Iterable[StageInput]) -> Iterator[Done]:
        taken = list(items)
        sizes.append(len(taken))
        with together("infer", {item.phases: 1.0 for item in taken}):
            if any(item.name == "5.wav" for item in taken):
                raise limits(around, clock)
        yield from (outcome_of(model, item) for item in taken)

    job_id = make_job(8, stages={Stage.SEGMENT})
    while RunState.READY in states(sessions, job_id)[Stage.SEGMENT]:
        set_runs(sessions, job_id, Stage.SEGMENT, next_attempt_at=0.0)
        run(job_id, all_at_once)
    assert sizes == [8, 4, 4, 2, 1, 1, 1, 1, 2]
    found = states(sessions, job_id)[Stage.SEGMENT]
    assert found == [RunState.SUCCEEDED] * 5 + [RunState.FAILED] + [RunState.SUCCEEDED] * 2
    with sessions() as session:
        runs = session.scalars(select(StageRun).order_by(StageRun.position)).all()
    assert [one.failures for one in runs] == [0] * 5 + [3] + [0] * 2
    assert runs[5].error_code == "time_limit_exceeded"


def test_a_model_that_hangs_before_any_has_begun_is_not_tried_for_ever(
    around: stage.Surroundings, sessions: Sessions, job_id: str, run: Run, clock: Clock
) -> None:
    def hangs(model: Upper, items: Iterable[StageInput]) -> Iterator[Done]:
        raise limits(around, clock)
        yield from ()

    run(job_id, hangs)
    given_back = ("shard_out_of_time", 0, None)
    assert ends_of(sessions, job_id) == [("time_limit_exceeded", 1, None), *[given_back] * 4]


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
