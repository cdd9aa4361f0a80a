"""A job's own settings: deadline, retention, priority, dry run; what they look like in answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from common.db import DbNow
from common.domain import JobState, RunState, SourceState, Stage
from common.tables import Job, JobEvent, Source
from tests.gateway.conftest import STACKS, Gateway, problem

pytestmark = STACKS

NOW = datetime.now(UTC).replace(microsecond=0)
TOMORROW = NOW + timedelta(days=1)


def change(gateway: Gateway, job_id: str, **changes: Any) -> Any:
    return gateway.client.patch(f"/v1/jobs/{job_id}", json=changes)


def set_job(gateway: Gateway, job_id: str, **values: Any) -> Any:
    with gateway.sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(**values))
    return gateway.get(f"/v1/jobs/{job_id}")


def test_settings_come_back_as_they_went_in(gateway: Gateway) -> None:
    zone = TOMORROW.astimezone().isoformat()
    job = gateway.get(
        f"/v1/jobs/{gateway.new_job(deadline_at=zone, retention_s=3600, dry_run=True)}"
    )
    assert datetime.fromisoformat(job["deadline_at"]) == TOMORROW
    assert (job["retention_s"], job["dry_run"], job["paused"]) == (3600.0, True, False)
    plain = gateway.get(f"/v1/jobs/{gateway.new_job()}")
    for field in ("deadline_at", "retention_s", "estimate", "on_track", "eta_s"):
        assert plain[field] is None
    assert (plain["dry_run"], plain["sources"], plain["errors"]) == (False, {}, [])


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"deadline_at": (NOW - timedelta(hours=1)).isoformat()}, "deadline_invalid"),
        ({"deadline_at": "9999-12-31T23:59:59-12:00"}, "deadline_invalid"),
        ({"deadline_at": "0001-01-01T00:00:00+14:00"}, "deadline_invalid"),
        ({"deadline_at": TOMORROW.replace(tzinfo=None).isoformat()}, "request_invalid"),
        ({"deadline_at": "soon"}, "request_invalid"),
        ({"deadline_at": 1e300}, "request_invalid"),
        ({"retention_s": -1}, "request_invalid"),
        ({"retention_s": 1e300}, "request_invalid"),
        ({"retention_s": "NaN"}, "request_invalid"),
        ({"name": "a\0b"}, "request_invalid"),
        ({"priority": None}, "request_invalid"),
        ({"name": None}, "request_invalid"),
        ({"stages": 7}, "request_invalid"),
    ],
)
def test_settings_at_fault(gateway: Gateway, fields: dict[str, Any], code: str) -> None:
    problem(gateway.client.post("/v1/jobs", json=fields), 422, code)
    assert gateway.job_rows() == 0
    job_id = gateway.new_job(name="as it was")
    before = gateway.get(f"/v1/jobs/{job_id}")
    problem(change(gateway, job_id, **fields), 422, code)
    assert gateway.get(f"/v1/jobs/{job_id}") == before


def test_changing_a_job(gateway: Gateway) -> None:
    job_id = gateway.new_job(name="old", deadline_at=TOMORROW.isoformat(), retention_s=60)
    ids = [gateway.upload(job_id) for _ in range(5)]
    gateway.succeed(ids[0], Stage.SEGMENT)
    before = gateway.get(f"/v1/jobs/{job_id}")
    assert change(gateway, job_id).json() == before
    assert change(gateway, job_id, name="new").json() == before | {"name": "new"}
    job = change(gateway, job_id, deadline_at=None, retention_s=None).json()
    assert (job["deadline_at"], job["retention_s"], job["name"]) == (None, None, "new")
    job = change(gateway, job_id, priority="interactive", retention_s=0).json()
    assert (job["priority"], job["retention_s"]) == ("interactive", 0.0)
    problem(change(gateway, "nope", name="x"), 404, "not_found")


def test_an_expired_job_gets_another_deadline(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    set_job(gateway, job_id, state="expired", deadline_at=DbNow() - 5.0, finished_at=DbNow())
    problem(gateway.client.post(f"/v1/jobs/{job_id}/close"), 409, "conflict")
    problem(gateway.client.post(f"/v1/jobs/{job_id}/retry"), 409, "deadline_passed")
    assert change(gateway, job_id, deadline_at=TOMORROW.isoformat()).status_code == 200
    answer = gateway.client.post(f"/v1/jobs/{job_id}/retry").raise_for_status().json()
    assert (answer["retried"], answer["entries"], answer["job"]["state"]) == (0, 0, "closed")


def test_pausing_resuming_deleting(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    recording_id = gateway.upload(job_id)
    post = gateway.client.post
    for action, paused in (("pause", True), ("pause", True), ("resume", False), ("resume", False)):
        job = post(f"/v1/jobs/{job_id}/{action}").raise_for_status().json()
        assert (job["paused"], job["state"]) == (paused, "open")
    answer = gateway.client.delete(f"/v1/jobs/{job_id}")
    assert (answer.status_code, answer.content) == (202, b"")
    for path in (f"/v1/jobs/{job_id}", f"/v1/recordings/{recording_id}"):
        problem(gateway.client.get(path), 404, "not_found")
    problem(gateway.client.delete(f"/v1/jobs/{job_id}"), 404, "not_found")
    assert gateway.get("/v1/jobs")["jobs"] == []
    ended = gateway.new_job()
    gateway.complete(ended)
    for action in ("pause", "resume"):
        problem(post(f"/v1/jobs/{ended}/{action}"), 409, "conflict")
    with gateway.sessions() as session:
        kinds = session.scalars(
            select(JobEvent.kind).where(JobEvent.job_id == job_id).order_by(JobEvent.id)
        ).all()
        assert kinds[:3] == ["job.created", "job.paused", "job.resumed"]


def test_a_dry_run_takes_no_recordings(gateway: Gateway) -> None:
    job_id = gateway.new_job(dry_run=True)
    path = f"/v1/jobs/{job_id}/recordings?name=a.wav"
    problem(gateway.client.post(path, content=b"x"), 422, "dry_run")
    files = {"file": ("a.wav", b"x"), "dry_run": (None, "true")}
    problem(gateway.client.post("/v1/jobs", files=files), 422, "dry_run")
    assert (gateway.job_rows(), gateway.objects()) == (1, [])
    estimate = {
        "files": 3,
        "size_bytes": 300,
        "audio_s": 2.5,
        "unknown_length": 1,
        "would_fail": {"entry_damaged": 1},
        "eta_s": None,
    }
    assert set_job(gateway, job_id, estimate=estimate)["estimate"] == estimate


def test_the_funnel_and_the_sources(gateway: Gateway) -> None:
    job_id = gateway.new_job(stages=["classify"])
    with gateway.sessions.begin() as session:
        for state in (SourceState.DONE, SourceState.DONE, SourceState.PENDING):
            session.add(Source(job_id=job_id, kind="urls", name="a", spec={}, state=state.value))
    error = {
        "stage": "segment",
        "code": "audio_empty",
        "count": 4,
        "recording_id": "r",
        "name": "a",
        "detail": "no samples",
    }
    one_each = {state.value: 1 for state in RunState}
    job = set_job(
        gateway,
        job_id,
        counts={"segment": one_each, "classify": {"succeeded": 2}},
        errors=[error],
        rejected=3,
        size_bytes=5_000_000_000,
    )
    assert job["sources"] == {"done": 2, "pending": 1}
    assert job["funnel"]["segment"] == {
        "waiting": 3,
        "running": 1,
        "succeeded": 1,
        "failed": 2,
        "skipped": 1,
        "cancelled": 1,
    }
    assert sum(job["funnel"]["classify"].values()) == job["funnel"]["classify"]["succeeded"] == 2
    assert job["errors"] == [error]
    assert (job["rejected"], job["size_bytes"]) == (3, 5_000_000_000)


def test_on_track(gateway: Gateway) -> None:
    job_id = gateway.new_job(deadline_at=TOMORROW.isoformat())
    assert gateway.get(f"/v1/jobs/{job_id}")["on_track"] is None
    counted = {"counted_at": DbNow(), "audio_s_total": 100.0, "audio_s_done": 40.0}
    job = set_job(gateway, job_id, rate=1.0, **counted)
    assert (job["audio_s_left"], job["eta_s"], job["on_track"]) == (60.0, 60.0, True)
    assert set_job(gateway, job_id, rate=1e-4, **counted)["on_track"] is False
    assert set_job(gateway, job_id, rate=None)["on_track"] is None
    assert set_job(gateway, job_id, rate=1.0, paused_at=DbNow())["on_track"] is None
    for state, on_track in (("completed", True), ("expired", False), ("cancelled", None)):
        job = set_job(gateway, job_id, state=JobState(state).value)
        assert (job["on_track"], job["eta_s"]) == (on_track, None)
