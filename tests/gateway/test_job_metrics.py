"""What the work of a job took: against sums and quantiles worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from common.db import new_id
from common.domain import Scope, Stage
from common.tables import Attempt, Job, Recording, StageRun
from services.gateway.measured import Measured
from services.gateway.metric_schemas import EXAMPLE, JobMetricsOut
from tests.gateway.conftest import STACKS, Gateway, problem
from tests.gateway.test_exports import three_tables

DIGEST, OLD_DIGEST = "d" * 64, "a" * 64
CREATED_AT = 1_700_000_000.0


def attempt(session: Session, run: StageRun, number: int, outcome: str, **measured: Any) -> None:
    """Insert an attempt. Times count from the creation of the job."""
    times = {
        name: CREATED_AT + measured.pop(name)
        for name in ("claimed_at", "started_at", "finished_at")
        if name in measured
    }
    session.add(
        Attempt(
            stage_run_id=run.id,
            number=number,
            outcome=outcome,
            worker="host:1",
            shard_id=new_id(),
            **{"claimed_at": CREATED_AT + 10.0, **times},
            **measured,
        )
    )


def runs_of(session: Session, job_id: str, stage: str) -> list[StageRun]:
    found = select(StageRun).where(StageRun.job_id == job_id, StageRun.stage == stage)
    return list(session.scalars(found.order_by(StageRun.position)))


@pytest.fixture
def job_id(gateway: Gateway) -> str:
    """Five recordings of 20 s in two stages; nothing of classify yet but a first claim."""
    job_id = gateway.new_job(name="tapes", stages=["classify"])
    for number in range(5):
        gateway.upload(job_id, name=f"{number}.wav")
    with gateway.sessions.begin() as session:
        job = session.get_one(Job, job_id)
        job.created_at, job.finished_at = CREATED_AT, CREATED_AT + 200.0
        segment = runs_of(session, job_id, "segment")
        for run in segment:
            run.audio_s = 20.0
        one = {"audio_s": 20.0, "model_digest": DIGEST, "batch_size": 4}
        # Times 2, 4, 8 and 10 s for 20 s of audio each: factors 0.1, 0.2, 0.4, 0.5.
        for n, (took_s, wait_s) in enumerate([(8.0, 3.0), (2.0, 1.0), (10.0, 7.0)]):
            attempt(
                session,
                segment[n],
                1,
                "succeeded",
                started_at=20.0 * n + 10.0,
                finished_at=20.0 * n + 10.0 + took_s,
                queue_wait_s=wait_s,
                decode_s=1.0,
                infer_s=took_s / 2,
                device="cpu",
                peak_memory_bytes=1000 * (n + 1),
                **one,
            )
        attempt(
            session,
            segment[3],
            1,
            "transient",
            error_code="store_unavailable",
            started_at=70.0,
            finished_at=71.5,
            queue_wait_s=2.0,
            infer_s=1.0,
            peak_memory_bytes=9000,
        )
        attempt(session, segment[3], 2, "lost", error_code="worker_lost", started_at=71.0,
                finished_at=101.0, queue_wait_s=5.0)  # fmt: skip
        attempt(
            session,
            segment[3],
            3,
            "succeeded",
            claimed_at=105.0,
            started_at=106.0,
            finished_at=110.0,
            queue_wait_s=4.0,
            infer_s=3.0,
            device="cuda",
            device_memory_bytes=5000,
            **{**one, "batch_size": 16, "model_digest": OLD_DIGEST},
        )
        attempt(
            session,
            segment[4],
            1,
            "reused",
            started_at=110.0,
            finished_at=110.5,
            queue_wait_s=6.0,
            model_digest=DIGEST,
            device="cpu",
        )
        (first, *_) = runs_of(session, job_id, "classify")
        attempt(session, first, 1, "running", claimed_at=111.0, queue_wait_s=0.5)
    return job_id


@STACKS
def test_values_worked_out_by_hand(gateway: Gateway, job_id: str) -> None:
    found = gateway.get(f"/v1/jobs/{job_id}/metrics")
    assert found["to_first_result_s"] == pytest.approx(18.0, abs=1e-5)
    assert found["to_end_s"] == 200.0
    assert found["working_s"] == pytest.approx(100.5, abs=1e-5)  # from 10 to 110.5
    # Five of ten runs are done, each of 20 s: 50 s of audio and 2.5 recordings.
    assert found["audio_hours_per_hour"] == pytest.approx(50.0 / 100.5, rel=1e-5)
    assert found["recordings_per_s"] == pytest.approx(2.5 / 100.5, rel=1e-5)
    assert list(found["stages"]) == ["segment", "classify"]
    segment, classify = found["stages"].values()
    assert segment["attempts"] == [
        {"outcome": "lost", "reason": "worker_lost", "count": 1},
        {"outcome": "reused", "reason": None, "count": 1},
        {"outcome": "succeeded", "reason": None, "count": 4},
        {"outcome": "transient", "reason": "store_unavailable", "count": 1},
    ]
    assert (segment["recordings_done"], segment["audio_s"]) == (5, 80.0)
    assert segment["audio_done_s"] == 100.0
    assert segment["busy_s"] == pytest.approx(8 + 2 + 10 + 1.5 + 4 + 0.5, abs=1e-5)
    assert segment["real_time_factor"] == pytest.approx(
        {"total": 24.0 / 80.0, "p50": 0.2, "p95": 0.5}, abs=1e-6
    )
    # The waits are 1 to 7: the fourth is the median, the seventh the 95th percentile.
    assert segment["queue_wait_s"] == {"mean": 4.0, "p50": 4.0, "p95": 7.0, "max": 7.0}
    assert list(segment["phases"]) == ["decode", "infer"]
    assert segment["phases"]["decode"] == pytest.approx(
        {"sum_s": 3.0, "mean_s": 1.0, "share": 3.0 / 24.0}, abs=1e-6
    )
    assert segment["phases"]["infer"] == pytest.approx(
        {"sum_s": 13.0, "mean_s": 13.0 / 4, "share": 13.0 / 24.0}, abs=1e-6
    )
    assert segment["batch_size"] == {"mean": 7.0, "max": 16}
    assert (segment["peak_memory_bytes"], segment["device_memory_bytes"]) == (9000, 5000)
    cpu, cuda = segment["devices"]
    assert (cpu["device"], cpu["attempts"], cpu["audio_s"]) == ("cpu", 3, 60.0)
    assert cpu["real_time_factor"] == pytest.approx(20.0 / 60.0, abs=1e-6)
    assert (cuda["device"], cuda["attempts"], cuda["audio_s"]) == ("cuda", 1, 20.0)
    assert segment["models"] == [
        {"digest": OLD_DIGEST, "attempts": 1, "audio_s": 20.0},
        {"digest": DIGEST, "attempts": 3, "audio_s": 60.0},
    ]
    assert classify["attempts"] == [{"outcome": "running", "reason": None, "count": 1}]
    assert classify["queue_wait_s"] == {"mean": 0.5, "p50": 0.5, "p95": 0.5, "max": 0.5}
    assert classify["real_time_factor"] == {"total": None, "p50": None, "p95": None}
    assert (classify["recordings_done"], classify["phases"], classify["models"]) == (0, {}, [])


@STACKS
@pytest.mark.parametrize(
    ("number", "median", "high"), [(1, 1, 1), (2, 1, 2), (19, 10, 19), (20, 10, 19), (21, 11, 20)]
)
def test_quantiles_are_nearest_ranks(gateway: Gateway, number: int, median: int, high: int) -> None:
    """The smallest value that at least half, or 95 of a hundred, do not exceed."""
    job_id = gateway.new_job(stages=["segment"])
    gateway.upload(job_id)
    with gateway.sessions.begin() as session:
        (run,) = runs_of(session, job_id, "segment")
        for n in range(number, 0, -1):
            attempt(session, run, n, "transient", error_code="x", queue_wait_s=float(n))
        attempt(session, run, number + 1, "running")  # its wait is not known
    wait = gateway.get(f"/v1/jobs/{job_id}/metrics")["stages"]["segment"]["queue_wait_s"]
    assert (wait["p50"], wait["p95"], wait["max"]) == (median, high, number)


@STACKS
def test_a_job_without_attempts(gateway: Gateway) -> None:
    found = gateway.get(f"/v1/jobs/{gateway.new_job()}/metrics")
    assert list(found["stages"]) == [stage.value for stage in Stage]
    assert (found["working_s"], found["to_first_result_s"], found["to_end_s"]) == (None,) * 3
    assert (found["audio_hours_per_hour"], found["recordings_per_s"]) == (None, None)
    assert found["stages"]["restore"]["attempts"] == []


@STACKS
def test_of_others_and_of_deleted_jobs(gateway_with_keys: Gateway) -> None:
    """A kept answer is for nobody who may not see the job, and ends with it."""
    gateway = gateway_with_keys
    mine, other = (gateway.new_key((Scope.READ, Scope.SUBMIT)) for _ in range(2))
    gateway.client.headers.update(mine)
    job_id = gateway.new_job()
    path = f"/v1/jobs/{job_id}/metrics"
    for _ in range(3):
        assert gateway.get(path)["job_id"] == job_id
        problem(gateway.client.get(path, headers=other), 404, "not_found")
    submit_only = gateway.new_key([Scope.SUBMIT])
    problem(gateway.client.get(path, headers=submit_only), 403, "scope_missing")
    assert gateway.client.delete(f"/v1/jobs/{job_id}").status_code == 202
    problem(gateway.client.get(path), 404, "not_found")
    problem(gateway.client.get("/v1/jobs/nothing/metrics"), 404, "not_found")


@STACKS
def test_table_of_attempts(gateway: Gateway, job_id: str) -> None:
    with gateway.sessions.begin() as session:
        recording = session.scalars(
            select(Recording).where(Recording.job_id == job_id, Recording.position == 0)
        ).one()
        recording.custom_id = "tape-1"
        first_id = recording.id
    rows = three_tables(gateway, f"/v1/jobs/{job_id}/attempts")
    assert [(row["position"], row["stage"], row["number"]) for row in rows] == [
        (0, "segment", 1),
        (0, "classify", 1),
        (1, "segment", 1),
        (2, "segment", 1),
        (3, "segment", 1),
        (3, "segment", 2),
        (3, "segment", 3),
        (4, "segment", 1),
    ]
    first, *_, third, _ = rows
    assert (first["recording_id"], first["custom_id"], first["name"]) == (
        first_id,
        "tape-1",
        "0.wav",
    )
    assert first["outcome"] == "succeeded"
    assert first["started_at"] == "2023-11-14T22:13:30.000000+00:00"
    assert (first["decode_s"], first["infer_s"], first["download_s"]) == (1.0, 4.0, None)
    assert (third["device"], third["device_memory_bytes"], third["batch_size"]) == (
        "cuda",
        5000,
        16,
    )
    assert third["model_digest"] == OLD_DIGEST
    assert set(first) >= {column.name for column in Attempt.__table__.columns} - {
        "id",
        "stage_run_id",
    }


def test_the_example_is_one() -> None:
    assert JobMetricsOut.model_validate(EXAMPLE).stages[Stage.SEGMENT].recordings_done == 1800


def test_answers_are_kept_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times as long as they took; who waited meanwhile gets what was found."""
    now = [0.0]
    monkeypatch.setattr("services.gateway.measured.time", SimpleNamespace(monotonic=lambda: now[0]))
    looks: list[float] = []
    measured = Measured()

    def look() -> JobMetricsOut:
        now[0] += 2.0
        looks.append(now[0])
        return JobMetricsOut.model_validate({**EXAMPLE, "measured_at": now[0]})

    found = measured.find("a", look)
    assert measured.known("b") is None
    now[0] += 19.9
    assert measured.known("a") is found
    assert measured.find("a", look) is found
    now[0] += 0.2
    assert measured.known("a") is None
    assert measured.find("a", look) is not found
    assert len(looks) == 2
