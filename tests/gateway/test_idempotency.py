"""A request that is sent twice with the same Idempotency-Key makes its resource once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from common.domain import Scope
from common.tables import Job, Recording
from services.gateway.idempotency import REPLAYED
from tests.gateway.conftest import STACKS, Gateway, problem

pytestmark = STACKS


def keyed(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}


def recordings(gateway: Gateway) -> list[str]:
    with gateway.sessions() as session:
        return list(session.scalars(select(Recording.id)))


def send(gateway: Gateway, job_id: str, key: str, data: bytes = b"x", **params: str) -> Any:
    return gateway.client.post(
        f"/v1/jobs/{job_id}/recordings",
        params={"name": "a.wav", **params},
        content=data,
        headers=keyed(key),
    )


def test_a_job_is_made_once(gateway: Gateway) -> None:
    client = gateway.client
    first = client.post("/v1/jobs", json={"name": "a", "stages": ["segment"]}, headers=keyed("k"))
    assert (first.status_code, REPLAYED in first.headers) == (201, False)
    # The same content, written in another way.
    content = b'{"stages":["segment"], "name": "a", "priority": "bulk", "params": {}}'
    headers = {**keyed("k"), "Content-Type": "application/json"}
    again = client.post("/v1/jobs", content=content, headers=headers)
    assert (again.status_code, again.headers[REPLAYED]) == (201, "true")
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    other = client.post("/v1/jobs", json={"name": "b", "stages": ["segment"]}, headers=keyed("k"))
    problem(other, 422, "idempotency_key_reused")
    assert client.post("/v1/jobs", json={"name": "a"}, headers=keyed("l")).status_code == 201
    assert gateway.job_rows() == 2


def test_a_form_is_taken_once(gateway: Gateway) -> None:
    def post(data: bytes) -> httpx.Response:
        files = [("file", ("a.wav", data)), ("file", ("b.wav", b"other"))]
        return gateway.client.post("/v1/jobs", files=files, headers=keyed("form"))

    first, again = post(b"data"), post(b"data")
    assert again.headers[REPLAYED] == "true"
    assert again.json()["id"] == first.json()["id"]
    problem(post(b"changed"), 422, "idempotency_key_reused")
    assert (len(recordings(gateway)), len(gateway.objects()), gateway.job_rows()) == (2, 2, 1)


def test_a_recording_is_added_once(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    first = send(gateway, job_id, "k", custom_id="one")
    gateway.client.post(f"/v1/jobs/{job_id}/close").raise_for_status()
    # Answered although the job takes no more, and its custom_id is taken by itself.
    again = send(gateway, job_id, "k", custom_id="one")
    assert (again.status_code, again.headers[REPLAYED]) == (201, "true")
    assert again.json() == first.json()
    for data, params in ((b"y", {"custom_id": "one"}), (b"x", {}), (b"x", {"name": "b.wav"})):
        problem(send(gateway, job_id, "k", data, **params), 422, "idempotency_key_reused")
    problem(send(gateway, job_id, "new"), 409, "conflict")
    assert len(recordings(gateway)) == len(gateway.objects()) == 1


def test_a_key_belongs_to_one_address(gateway: Gateway) -> None:
    one, other = gateway.new_job(), gateway.new_job()
    assert send(gateway, one, "k").status_code == 201
    problem(send(gateway, other, "k"), 422, "idempotency_key_reused")


def test_what_failed_may_be_sent_again(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    wrong = {"X-Content-SHA256": "0" * 64, **keyed("k")}
    path = f"/v1/jobs/{job_id}/recordings?name=a.wav"
    problem(gateway.client.post(path, content=b"x", headers=wrong), 422, "hash_mismatch")
    answer = send(gateway, job_id, "k")
    assert (answer.status_code, REPLAYED in answer.headers) == (201, False)


def test_many_at_once_make_one(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: send(gateway, job_id, "k"), range(16)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum(REPLAYED not in answer.headers for answer in answers) == 1
    assert len(recordings(gateway)) == len(gateway.objects()) == 1
    assert gateway.get(f"/v1/jobs/{job_id}")["recordings"] == 1


def test_keys_of_two_callers_do_not_meet(gateway_with_keys: Gateway) -> None:
    gateway = gateway_with_keys
    callers = [gateway.new_key([Scope.SUBMIT]) for _ in range(2)]
    ids = set()
    for caller in callers:
        answer = gateway.client.post("/v1/jobs", json={}, headers={**caller, **keyed("same")})
        assert (answer.status_code, REPLAYED in answer.headers) == (201, False)
        ids.add(answer.json()["id"])
    assert len(ids) == 2


def test_what_was_made_and_is_gone(gateway: Gateway) -> None:
    job_id = gateway.client.post("/v1/jobs", json={}, headers=keyed("k")).json()["id"]
    with gateway.sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(deleted_at=1.0))
    problem(gateway.client.post("/v1/jobs", json={}, headers=keyed("k")), 404, "not_found")


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "a\tb", "ä"])
def test_a_key_that_is_none(gateway: Gateway, key: str) -> None:
    headers = {b"Idempotency-Key": key.encode()}
    problem(gateway.client.post("/v1/jobs", json={}, headers=headers), 422, "request_invalid")
    assert gateway.job_rows() == 0
