"""Running a shard, with real database and object store and a model small enough to see through."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from pydantic import SecretStr
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from common import scratch, shard, stage
from common.domain import ArtifactKind, Outcome, Priority, RunState, Stage
from common.errors import AudioUnreadable
from common.messages import ShardMessage
from common.settings import Settings
from common.stage_io import AudioFacts, OutputFile, StageInput, StageOutput, each
from common.tables import Artifact, Attempt, Job, Recording, StageRun
from services.dispatcher.shards import take_shard
from tests.pipeline.conftest import Clock, MakeJob, states

Run = Callable[..., list[str]]


@dataclass(frozen=True)
class Upper:
    """A model that writes its input in capitals."""

    digest: str = "d" * 64
    device: str = "cpu"


def upper(model: Upper, item: StageInput) -> StageOutput:
    with item.phases.phase("infer"):
        text = item.audio_path.read_bytes().upper()
    path = item.scratch / "mask.npz"
    path.write_bytes(text)
    return StageOutput(
        files={ArtifactKind.MASK: OutputFile(path, "application/zip")},
        result={"bytes": len(text)},
        audio=AudioFacts(1.0, 8_000, 1),
        batch_size=4,
    )


@pytest.fixture
def around(
    settings: Settings,
    store_options: dict[str, Any],
    sessions: sessionmaker[Session],
    tmp_path: Path,
) -> Iterator[stage.Surroundings]:
    options = {
        name: SecretStr(value) if "key" in name else value for name, value in store_options.items()
    }
    around = stage.open_surroundings(
        settings.model_copy(update={**options, "scratch_dir": tmp_path / "scratch"})
    )
    yield around
    around.engine.dispose()


@pytest.fixture
def run(around: stage.Surroundings, sessions: sessionmaker[Session]) -> Run:
    """Store the inputs of a job, dispatch its segment stage and run it with a process function."""

    def run_job(job_id: str, process: Any, load: Any = Upper) -> list[str]:
        with sessions() as session:
            for recording in session.scalars(select(Recording).where(Recording.job_id == job_id)):
                body = f"recording {recording.position}".encode()
                around.store.put_stream(
                    recording.object_key, io.BytesIO(body), "audio/wav", max_bytes=100
                )
        served = []
        while True:
            with sessions.begin() as session:
                shard = take_shard(session, job_id, Stage.SEGMENT, Priority.BULK, around.settings)
            if shard is None:
                return served
            served.append(shard.id)
            message = ShardMessage(shard_id=shard.id, stage=Stage.SEGMENT)
            stage.run_shard(around, message, load, each(process))

    return run_job


def test_artifacts_are_stored_recorded_and_nothing_is_left(
    around: stage.Surroundings, sessions: sessionmaker[Session], make_job: MakeJob, run: Run
) -> None:
    job_id = make_job(2, stages={Stage.SEGMENT})
    run(job_id, upper)
    assert states(sessions, job_id)[Stage.SEGMENT] == [RunState.SUCCEEDED] * 2
    with sessions() as session:
        artifact, other = session.scalars(
            select(Artifact)
            .join(Recording, Recording.id == Artifact.recording_id)
            .order_by(Recording.position)
        ).all()
        attempt = session.scalars(select(Attempt)).first()
    assert artifact.object_key != other.object_key
    with around.store.open(artifact.object_key) as chunks:
        assert b"".join(chunks) == b"RECORDING 0"
    assert artifact.sha256 == hashlib.sha256(b"RECORDING 0").hexdigest()
    assert artifact.size_bytes == 11
    assert attempt is not None
    assert (attempt.model_digest, attempt.device, attempt.batch_size) == ("d" * 64, "cpu", 4)
    assert attempt.infer_s is not None
    assert attempt.upload_s is not None
    assert attempt.peak_memory_bytes is not None
    assert attempt.peak_memory_bytes > 10_000_000
    assert list(around.settings.scratch_dir.iterdir()) == []


def test_one_bad_recording_costs_the_others_nothing(
    around: stage.Surroundings, sessions: sessionmaker[Session], make_job: MakeJob, run: Run
) -> None:
    def second_is_bad(model: Upper, item: StageInput) -> StageOutput:
        if item.name == "1.wav":
            (item.scratch / "half-written").write_bytes(b"x")
            raise AudioUnreadable("1.wav holds no audio stream")
        return upper(model, item)

    job_id = make_job(3, stages={Stage.CLASSIFY})
    run(job_id, second_is_bad)
    assert states(sessions, job_id) == {
        Stage.SEGMENT: [RunState.SUCCEEDED, RunState.FAILED, RunState.SUCCEEDED],
        Stage.CLASSIFY: [RunState.READY, RunState.SKIPPED, RunState.READY],
    }
    assert list(around.settings.scratch_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (MemoryError(), "out_of_memory"),
        (KeyError("a bug"), "internal_error"),
    ],
)
def test_unforeseen_errors_are_tried_again_under_a_stable_code(
    sessions: sessionmaker[Session], make_job: MakeJob, run: Run, error: Exception, code: str
) -> None:
    def fail(model: Upper, item: StageInput) -> StageOutput:
        raise error

    job_id = make_job(1, stages={Stage.SEGMENT})
    run(job_id, fail)
    with sessions() as session:
        found = session.scalars(select(StageRun)).one()
        attempt = session.scalars(select(Attempt)).one()
    assert (found.state, found.error_code, found.failures) == (RunState.READY, code, 1)
    assert attempt.outcome == Outcome.TRANSIENT


def test_the_time_limit_ends_one_and_gives_back_what_has_not_begun(
    around: stage.Surroundings,
    sessions: sessionmaker[Session],
    make_job: MakeJob,
    run: Run,
    clock: Clock,
) -> None:
    served: list[str] = []

    def second_takes_too_long(model: Upper, item: StageInput) -> StageOutput:
        served.append(item.name)
        if served == ["0.wav", "1.wav"]:
            with item.phases.phase("infer"):
                clock.passes(around.settings.soft_time_limit_s)
                raise SoftTimeLimitExceeded
        return upper(model, item)

    job_id = make_job(3, stages={Stage.SEGMENT})
    run(job_id, second_takes_too_long)
    assert served == ["0.wav", "1.wav", "2.wav"]
    assert states(sessions, job_id)[Stage.SEGMENT] == [
        RunState.SUCCEEDED,
        RunState.READY,  # for another try, later
        RunState.SUCCEEDED,
    ]
    with sessions() as session:
        (limited,) = session.scalars(
            select(Attempt).where(Attempt.error_code == "time_limit_exceeded")
        )
        (given_back,) = session.scalars(
            select(Attempt).where(Attempt.error_code == "shard_out_of_time")
        )
    assert (limited.outcome, limited.device) == (Outcome.TRANSIENT, "cpu")
    assert limited.infer_s is not None
    assert given_back.outcome == Outcome.TRANSIENT


def test_the_same_work_is_not_done_twice(
    sessions: sessionmaker[Session], make_job: MakeJob, run: Run
) -> None:
    first, second = make_job(1, stages={Stage.SEGMENT}), make_job(1, stages={Stage.SEGMENT})
    with sessions.begin() as session:
        session.execute(update(Recording).values(sha256="0" * 64))
    calls = []

    def counting(model: Upper, item: StageInput) -> StageOutput:
        calls.append(item.name)
        return upper(model, item)

    run(first, counting)
    run(second, counting)
    assert len(calls) == 1
    with sessions() as session:
        keys = session.scalars(select(Artifact.object_key)).all()
        outcomes = session.scalars(select(Attempt.outcome).order_by(Attempt.id)).all()
    assert len(keys) == 2
    assert len(set(keys)) == 1
    assert outcomes == [Outcome.SUCCEEDED, Outcome.REUSED]

    third = make_job(1, stages={Stage.SEGMENT})  # other weights: computed anew
    with sessions.begin() as session:
        session.execute(update(Recording).values(sha256="0" * 64))
    run(third, counting, lambda: Upper(digest="e" * 64))
    assert len(calls) == 2

    fourth = make_job(1, stages={Stage.SEGMENT})  # other parameters: computed anew
    with sessions.begin() as session:
        session.execute(update(Recording).values(sha256="0" * 64))
        session.execute(
            update(Job).where(Job.id == fourth).values(params={"segment": {"margin_s": 0.5}})
        )
    run(fourth, counting)
    assert len(calls) == 3


def test_what_was_taken_away_while_it_ran_writes_nothing(
    around: stage.Surroundings, sessions: sessionmaker[Session], make_job: MakeJob, run: Run
) -> None:
    def slow(model: Upper, item: StageInput) -> StageOutput:
        with sessions.begin() as session:
            session.execute(update(StageRun).values(state=RunState.CANCELLED.value))
        return upper(model, item)

    job_id = make_job(2, stages={Stage.SEGMENT})
    run(job_id, slow)
    assert states(sessions, job_id)[Stage.SEGMENT] == [RunState.CANCELLED] * 2
    with sessions() as session:
        assert session.scalars(select(Artifact)).all() == []


def test_scratch_of_dead_processes_is_swept_and_of_living_ones_kept(tmp_path: Path) -> None:
    living = tmp_path / f"{os.getpid()}-a"
    dead = tmp_path / "4194304-b"  # above the largest process id Linux gives
    for folder in (living, dead):
        folder.mkdir()
        (folder / "input").write_bytes(b"x")
    scratch.sweep_scratch(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [living.name]


def test_what_an_earlier_process_of_this_number_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that starts anew counts its processes from 1 again."""
    (tmp_path / f"{os.getpid()}-a").mkdir()
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: time.time() + 60.0)
    scratch.sweep_scratch(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "message",
    [
        {"version": 2, "shard_id": "0" * 32, "stage": "segment"},
        {"version": 1, "shard_id": "../../etc", "stage": "segment"},
        {"version": 1, "shard_id": "0" * 32, "stage": "dance"},
        {"version": 1, "shard_id": "0" * 32, "stage": "segment", "audio": "AAAA"},
    ],
)
def test_hostile_messages_are_refused(message: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        ShardMessage.model_validate_json(json.dumps(message))


def test_the_key_depends_on_everything_that_shapes_the_result() -> None:
    base = ("0" * 64, "d" * 64, "{}", ["k"])
    keys = {
        shard.idempotency_key(Stage.CLASSIFY, *base),
        shard.idempotency_key(Stage.ENHANCE, *base),
        shard.idempotency_key(Stage.CLASSIFY, "1" * 64, *base[1:]),
        shard.idempotency_key(Stage.CLASSIFY, base[0], "e" * 64, *base[2:]),
        shard.idempotency_key(Stage.CLASSIFY, *base[:2], '{"top_k":3}', base[3]),
        shard.idempotency_key(Stage.CLASSIFY, *base[:3], ["other"]),
    }
    assert len(keys) == 6
    assert shard.idempotency_key(Stage.CLASSIFY, *base) in keys
