"""Lists with filters: jobs, recordings, rejections; recordings as their owner describes them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from common.domain import Stage
from common.tables import Job, Rejection, Source
from tests.gateway.conftest import STACKS, Gateway, problem

pytestmark = STACKS


def walk(gateway: Gateway, path: str, items: str, limit: int = 2, /, **params: Any) -> list[Any]:
    """Return the items of a list, fetched page by page."""
    found: list[Any] = []
    while True:
        page = gateway.get(path, params={"limit": limit, **params})
        assert len(page[items]) <= limit
        found += page[items]
        if page["next_cursor"] is None:
            return found
        params["cursor"] = page["next_cursor"]


def test_jobs_that_fit(gateway: Gateway) -> None:
    names = ["Tapes 1", "tapes 2", "50% off", "50 off", "a_b", "axb"]
    ids = {
        name: gateway.new_job(name=name, priority="interactive" if "off" in name else "bulk")
        for name in names
    }
    start = datetime(2020, 1, 1, tzinfo=UTC)
    with gateway.sessions.begin() as session:
        for day, name in enumerate(names):
            at = (start + timedelta(days=day)).timestamp()
            session.execute(update(Job).where(Job.id == ids[name]).values(created_at=at))

    def found(**params: Any) -> list[str]:
        return [job["name"] for job in walk(gateway, "/v1/jobs", "jobs", **params)]

    assert found() == names[::-1]
    assert found(name="TAPES") == ["tapes 2", "Tapes 1"]
    assert found(name="50%") == ["50% off"]
    assert found(name="a_b") == ["a_b"]
    assert found(name="nothing") == []
    assert found(priority="interactive") == ["50 off", "50% off"]
    after, before = start + timedelta(days=0.5), start + timedelta(days=3.5)
    assert found(created_after=after.isoformat(), created_before=before.isoformat()) == [
        "50 off",
        "50% off",
        "tapes 2",
    ]
    east = after.astimezone(tz=None).isoformat()
    assert found(created_before=east, state="open") == ["Tapes 1"]
    assert found(created_before=east, state="closed") == []


def test_recordings_that_fit(gateway: Gateway) -> None:
    job_id = gateway.new_job(stages=["segment"])
    path = f"/v1/jobs/{job_id}/recordings"
    names = ["a/1.wav", "a/2.wav", "A/3.wav", "a%4.wav", "b.wav"]
    ids = []
    for number, name in enumerate(names):
        answer = gateway.client.post(
            path, params={"name": name, "custom_id": f"id {number}"}, content=b"x"
        )
        ids.append(answer.raise_for_status().json()["id"])
    for number in (0, 1, 4):
        gateway.fail(ids[number], Stage.SEGMENT)

    def found(**params: Any) -> list[str]:
        return [recording["name"] for recording in walk(gateway, path, "recordings", 1, **params)]

    assert found(name="a/") == ["a/1.wav", "a/2.wav"]
    assert found(name="a%") == ["a%4.wav"]
    assert found(custom_id="id 2") == ["A/3.wav"]
    assert found(custom_id="id") == []
    assert found(error_code="audio_unreadable") == ["a/1.wav", "a/2.wav", "b.wav"]
    assert found(error_code="audio_unreadable", name="b") == ["b.wav"]
    assert found(error_code="audio_unreadable", stage="classify") == []
    assert found(error_code="audio_unreadable", state="ready") == []
    assert found(error_code="audio_empty") == []
    assert found(state="ready", name="a/") == []
    assert found(state="ready", custom_id="id 3") == ["a%4.wav"]


def test_rejections(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    with gateway.sessions.begin() as session:
        source = Source(job_id=job_id, kind="archive", name="a.zip", spec={})
        session.add(source)
        session.flush()
        for entry in range(5):
            session.add(
                Rejection(
                    id=f"{entry:032x}",
                    job_id=job_id,
                    source_id=source.id,
                    entry=entry,
                    name=f"{entry}.wav",
                    custom_id="mine" if entry == 3 else None,
                    error_code="url_status" if entry % 2 else "entry_damaged",
                    error_detail="why",
                    again={"url": "https://example.org/"} if entry % 2 else None,
                )
            )
    path = f"/v1/jobs/{job_id}/rejections"
    found = walk(gateway, path, "rejections")
    assert [rejection["entry"] for rejection in found] == [0, 1, 2, 3, 4]
    assert found[3] == {
        "id": f"{3:032x}",
        "source_id": source.id,
        "entry": 3,
        "name": "3.wav",
        "custom_id": "mine",
        "error_code": "url_status",
        "error_detail": "why",
        "retryable": True,
        "created_at": found[3]["created_at"],
    }
    assert found[2]["retryable"] is False
    some = walk(gateway, path, "rejections", error_code="entry_damaged")
    assert [rejection["entry"] for rejection in some] == [0, 2, 4]


def test_what_the_owner_says_about_a_recording(gateway: Gateway) -> None:
    job_id = gateway.new_job(params={"classify": {"top_k": 3}})
    path = f"/v1/jobs/{job_id}/recordings"
    labels = {"place": "Köln, Dom", "": "x"}
    said = {
        "name": "dog.wav",
        "custom_id": "Nr. 7/b",
        "params": json.dumps({"classify": {"threshold": 0.25}}),
    }

    def post(**params: Any) -> Any:
        return gateway.client.post(path, params={**said, **params}, content=b"x")

    problem(post(labels=json.dumps(labels)), 422, "request_invalid")
    del labels[""]
    facts = post(labels=json.dumps(labels)).raise_for_status().json()
    assert (facts["custom_id"], facts["labels"]) == ("Nr. 7/b", labels)
    assert (facts["source_id"], facts["entry"]) == (None, None)
    detail = gateway.get(f"/v1/recordings/{facts['id']}")
    assert {key: detail[key] for key in facts} == facts
    parameters = {run["stage"]: run["parameters"] for run in detail["runs"]}
    assert parameters["classify"] == {"threshold": 0.25, "top_k": 3}
    (listed,) = gateway.get(path)["recordings"]
    assert (listed["custom_id"], listed["labels"]) == ("Nr. 7/b", labels)
    problem(post(), 409, "custom_id_taken")
    other = gateway.new_job()
    answer = gateway.client.post(f"/v1/jobs/{other}/recordings", params=said, content=b"x")
    assert answer.status_code == 201
    assert gateway.get(f"/v1/recordings/{gateway.upload(other)}")["labels"] == {}
    assert len(gateway.objects()) == 3


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"custom_id": ""}, "request_invalid"),
        ({"custom_id": "x" * 256}, "request_invalid"),
        ({"custom_id": "a\0"}, "request_invalid"),
        ({"labels": "{"}, "request_invalid"),
        ({"labels": "[]"}, "request_invalid"),
        ({"labels": '{"a": 1}'}, "request_invalid"),
        ({"labels": '{"a": "\\u0000"}'}, "request_invalid"),
        ({"labels": '{"a": "\\ud800"}'}, "request_invalid"),
        ({"labels": json.dumps({str(n): "" for n in range(65)})}, "request_invalid"),
        ({"params": "[" * 20_000}, "request_invalid"),
        ({"params": '{"a":' * 4_000}, "request_invalid"),
        ({"params": "null"}, "request_invalid"),
        ({"params": '{"fly": {}}'}, "parameters_invalid"),
        ({"params": '{"classify": 7}'}, "parameters_invalid"),
        ({"params": '{"classify": {"threshold": 2}}'}, "parameters_invalid"),
        ({"params": '{"classify": {"threshold": NaN}}'}, "parameters_invalid"),
        ({"params": '{"classify": {"top_k": ' + "9" * 4000 + "}}"}, "parameters_invalid"),
    ],
)
def test_what_cannot_be_said(gateway: Gateway, params: dict[str, str], code: str) -> None:
    path = f"/v1/jobs/{gateway.new_job()}/recordings"
    answer = gateway.client.post(path, params={"name": "a", **params}, content=b"x")
    problem(answer, 422, code)
    assert gateway.get(path)["recordings"] == []
    assert gateway.objects() == []
