"""Jobs from open to ended: polling, paging, cancelling, trying again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select, update

from common import spans
from common.db import DbNow
from common.domain import JobState, Outcome, RunState, Stage
from common.ends import Measures, Succeeded, end_runs
from common.runs import Reusable
from common.tables import Attempt, Job, StageRun
from services.dispatcher import lifecycle
from services.gateway import changes
from tests.gateway.conftest import FACTS, STACKS, Gateway, problem

pytestmark = STACKS

ALL = ("segment", "classify", "enhance", "restore")


def all_in(state: str) -> dict[str, str]:
    return dict.fromkeys(ALL, state)


def test_a_job_from_open_to_closed(gateway: Gateway) -> None:
    before = datetime.now(UTC).timestamp()
    job_id = gateway.new_job(name="  tapes ", params={"enhance": {"widen": False}})
    job = gateway.get(f"/v1/jobs/{job_id}")
    assert (job["name"], job["state"], job["recordings"]) == ("tapes", "open", 0)
    assert job["params"]["enhance"]["widen"] is False
    assert job["stages"] == list(ALL)
    assert abs(datetime.fromisoformat(job["created_at"]).timestamp() - before) < 60
    assert job["created_at"].endswith("Z")
    for _ in range(2):
        job = gateway.client.post(f"/v1/jobs/{job_id}/close").raise_for_status().json()
        assert job["state"] == "closed"
        assert job["closed_at"] is not None


def test_progress_comes_from_the_counters(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    assert gateway.get(f"/v1/jobs/{job_id}")["eta_s"] is None

    def count(**values: Any) -> dict[str, Any]:
        with gateway.sessions.begin() as session:
            session.execute(
                update(Job).where(Job.id == job_id).values(counted_at=DbNow(), **values)
            )
        job: dict[str, Any] = gateway.get(f"/v1/jobs/{job_id}")
        return job

    counts = {"segment": {"succeeded": 3, "running": 1}, "classify": {"ready": 3, "blocked": 1}}
    job = count(counts=counts, audio_s_total=600.0, audio_s_done=200.0, rate=None)
    assert job["counts"] == counts
    assert (job["rate"], job["eta_s"]) == (None, None)
    job = count(rate=8.0)
    assert (job["audio_s_total"], job["audio_s_done"], job["rate"]) == (600.0, 200.0, 8.0)
    assert job["eta_s"] == pytest.approx(50.0)
    assert count(rate=0.0)["eta_s"] is None
    assert count(audio_s_done=600.0)["eta_s"] == 0.0
    gateway.complete(job_id)
    assert gateway.get(f"/v1/jobs/{job_id}")["eta_s"] is None


def test_jobs_are_listed_newest_first_page_by_page(gateway: Gateway) -> None:
    ids = [gateway.new_job(name=str(number)) for number in range(7)]
    with gateway.sessions.begin() as session:
        session.execute(update(Job).where(Job.id == ids[3]).values(state=JobState.CLOSED.value))
    seen: list[str] = []
    cursor = None
    while True:
        page = gateway.get("/v1/jobs", params={"limit": 3} | ({"cursor": cursor} if cursor else {}))
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ids[::-1]
    closed = gateway.get("/v1/jobs", params={"state": "closed"})
    assert [job["id"] for job in closed["jobs"]] == [ids[3]]
    assert gateway.get("/v1/jobs", params={"limit": 7})["next_cursor"] is None


def test_recordings_are_listed_in_order_page_by_page(gateway: Gateway) -> None:
    job_id = gateway.new_job(stages=["segment"])
    ids = [gateway.upload(job_id, name=f"{number}.wav") for number in range(7)]
    for number in (1, 4, 5):
        gateway.fail(ids[number], Stage.SEGMENT)
    path = f"/v1/jobs/{job_id}/recordings"

    def walk(**params: Any) -> list[str]:
        seen: list[str] = []
        while True:
            page = gateway.get(path, params={"limit": 2, **params})
            assert len(page["recordings"]) <= 2
            seen += [recording["id"] for recording in page["recordings"]]
            if page["next_cursor"] is None:
                return seen
            params["cursor"] = page["next_cursor"]

    assert walk() == ids
    assert walk(state="failed") == [ids[1], ids[4], ids[5]]
    assert walk(state="failed", stage="segment") == [ids[1], ids[4], ids[5]]
    assert walk(state="failed", stage="enhance") == []
    assert walk(state="ready") == [ids[0], ids[2], ids[3], ids[6]]
    failed = gateway.get(path, params={"state": "failed"})["recordings"][0]
    assert failed["runs"] == [
        {
            "stage": "segment",
            "state": "failed",
            "error_code": "audio_unreadable",
            "error_detail": "not audio",
        }
    ]
    # A recording that arrives between two pages is on the second one, none is missed or twice.
    page = gateway.get(path, params={"limit": 5})
    ids.append(gateway.upload(job_id))
    rest = gateway.get(path, params={"cursor": page["next_cursor"]})
    assert [recording["id"] for recording in rest["recordings"]] == ids[5:]


@pytest.mark.parametrize(
    "params",
    [{"cursor": "?"}, {"cursor": "YWJj"}, {"cursor": "_____"}, {"cursor": "MTIzNDU2Nzg5MDEyMw"}],
)
def test_a_cursor_that_is_none(gateway: Gateway, params: dict[str, str]) -> None:
    job_id = gateway.new_job()
    answer = gateway.client.get(f"/v1/jobs/{job_id}/recordings", params=params)
    problem(answer, 422, "cursor_invalid")


def test_a_recording_in_full(gateway: Gateway) -> None:
    job_id = gateway.new_job(params={"classify": {"threshold": 0.75}})
    recording_id = gateway.upload(job_id)
    gateway.succeed(recording_id, Stage.SEGMENT)
    gateway.succeed(recording_id, Stage.CLASSIFY)
    gateway.fail(recording_id, Stage.ENHANCE)
    detail = gateway.get(f"/v1/recordings/{recording_id}")
    assert (detail["duration_s"], detail["sample_rate"], detail["channels"]) == (3.5, 48_000, 2)
    assert [run["stage"] for run in detail["runs"]] == list(ALL)
    assert gateway.states(recording_id) == {
        "segment": "succeeded",
        "classify": "succeeded",
        "enhance": "failed",
        "restore": "ready",
    }
    _, classify, enhance, restore = detail["runs"]
    assert classify["parameters"] == {"threshold": 0.75, "top_k": 5}
    assert classify["result"] == {"top": "dog"}
    (attempt,) = classify["attempts"]
    assert attempt["outcome"] == "succeeded"
    assert (attempt["infer_s"], attempt["batch_size"], attempt["device"]) == (0.25, 4, "cpu")
    assert (enhance["error_code"], enhance["error_detail"]) == ("audio_unreadable", "not audio")
    assert enhance["attempts"][0]["outcome"] == "permanent"
    assert restore["attempts"] == []
    assert [(a["kind"], a["stage"]) for a in detail["artifacts"]] == [
        ("events", "classify"),
        ("mask", "segment"),
    ]


def test_cancelling_ends_everything_and_keeps_results(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "BUSY_SPAN_RECORDINGS", 1)
    job_id = gateway.new_job()
    ids = [gateway.upload(job_id) for _ in range(7)]
    gateway.succeed(ids[0], Stage.SEGMENT)
    gateway.fail(ids[1], Stage.SEGMENT)
    claim = gateway.claim(ids[2], Stage.SEGMENT)
    job = gateway.client.post(f"/v1/jobs/{job_id}/cancel").raise_for_status().json()
    assert (job["state"], job["finished_at"]) == ("cancelled", None)
    assert gateway.states(ids[2])["segment"] == "cancelled"  # at once; the rest follows
    lifecycle.end_jobs(gateway.sessions, gateway.sessions, for_s=60.0)
    job = gateway.get(f"/v1/jobs/{job_id}")
    assert job["finished_at"] is not None
    assert gateway.states(ids[0]) == all_in("cancelled") | {"segment": "succeeded"}
    assert gateway.states(ids[1]) == all_in("skipped") | {"segment": "failed"}
    for recording_id in ids[2:]:
        assert gateway.states(recording_id) == all_in("cancelled")
    mask = gateway.client.get(f"/v1/recordings/{ids[0]}/artifacts/mask")
    assert mask.content == b"mask" * 100

    # The worker that was cut off finds out, and changes nothing.
    late = Succeeded(claim, "k" * 64, Reusable((), {}, FACTS), Measures())
    with gateway.sessions.begin() as session:
        assert end_runs(session, [late], gateway.settings).stale == {claim.stage_run_id}
    assert gateway.states(ids[2]) == all_in("cancelled")
    with gateway.sessions() as session:
        attempt = session.scalars(
            select(Attempt).where(Attempt.stage_run_id == claim.stage_run_id)
        ).one()
        assert attempt.outcome == Outcome.CANCELLED
        assert attempt.finished_at is not None
        assert session.get_one(StageRun, claim.stage_run_id).lease_expires_at is None

    again = gateway.client.post(f"/v1/jobs/{job_id}/cancel").raise_for_status().json()
    assert again["finished_at"] == job["finished_at"]
    problem(gateway.client.post(f"/v1/jobs/{job_id}/retry"), 409, "conflict")
    problem(gateway.client.post(f"/v1/jobs/{job_id}/close"), 409, "conflict")
    answer = gateway.client.post(
        f"/v1/jobs/{job_id}/recordings", params={"name": "a"}, content=b"x"
    )
    problem(answer, 409, "conflict")


def test_a_completed_job_cannot_be_cancelled(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    gateway.complete(job_id)
    problem(gateway.client.post(f"/v1/jobs/{job_id}/cancel"), 409, "conflict")
    assert gateway.get(f"/v1/jobs/{job_id}")["state"] == "completed"


def test_trying_again_what_failed(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "SPAN_RECORDINGS", 2)
    job_id = gateway.new_job()
    ids = [gateway.upload(job_id) for _ in range(5)]
    for number in (0, 1, 2):
        gateway.fail(ids[number], Stage.SEGMENT)
    for stage in (Stage.SEGMENT, Stage.CLASSIFY, Stage.ENHANCE, Stage.RESTORE):
        gateway.succeed(ids[3], stage)
    gateway.succeed(ids[4], Stage.SEGMENT)
    gateway.succeed(ids[4], Stage.ENHANCE)
    gateway.fail(ids[4], Stage.CLASSIFY)
    assert gateway.states(ids[4]) == {
        "segment": "succeeded",
        "classify": "failed",
        "enhance": "succeeded",
        "restore": "skipped",
    }
    with gateway.sessions.begin() as session:
        session.execute(
            update(StageRun)
            .where(StageRun.recording_id == ids[2], StageRun.stage == Stage.SEGMENT.value)
            .values(state=RunState.QUARANTINED.value, crashes=3, next_attempt_at=DbNow() + 9999.0)
        )
    gateway.client.post(f"/v1/jobs/{job_id}/close").raise_for_status()
    gateway.complete(job_id)

    answer = gateway.client.post(f"/v1/jobs/{job_id}/retry").raise_for_status().json()
    assert answer["retried"] == 3 * 4 + 2
    assert answer["job"]["state"] == "closed"
    assert answer["job"]["finished_at"] is None
    for number in (0, 1, 2):
        assert gateway.states(ids[number]) == all_in("blocked") | {"segment": "ready"}
    assert gateway.states(ids[3]) == all_in("succeeded")
    assert gateway.states(ids[4]) == {
        "segment": "succeeded",
        "classify": "ready",
        "enhance": "succeeded",
        "restore": "blocked",
    }
    with gateway.sessions() as session:
        for run in session.scalars(select(StageRun).where(StageRun.state == "ready")):
            assert (run.failures, run.crashes, run.next_attempt_at) == (0, 0, 0.0)
            assert (run.error_code, run.error_detail, run.finished_at) == (None, None, None)
            assert run.ready_at is not None
            assert run.shard_limit == (1 if run.recording_id == ids[2] else None)

    # The next attempt has the next number, and its success goes on from there.
    gateway.succeed(ids[0], Stage.SEGMENT)
    detail = gateway.get(f"/v1/recordings/{ids[0]}")
    assert [a["number"] for a in detail["runs"][0]["attempts"]] == [1, 2]
    assert gateway.states(ids[0])["classify"] == "ready"

    again = gateway.client.post(f"/v1/jobs/{job_id}/retry").raise_for_status().json()
    assert again["retried"] == 0


def test_trying_again_without_need_leaves_a_completed_job(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    gateway.complete(job_id)
    answer = gateway.client.post(f"/v1/jobs/{job_id}/retry").raise_for_status().json()
    assert (answer["retried"], answer["job"]["state"]) == (0, "completed")


@pytest.mark.parametrize("action", ["close", "cancel", "retry"])
def test_no_such_job(gateway: Gateway, action: str) -> None:
    problem(gateway.client.post(f"/v1/jobs/nope/{action}"), 404, "not_found")
