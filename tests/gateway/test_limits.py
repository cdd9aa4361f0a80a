"""Rates and quotas of API keys."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update

from common import keys
from common.domain import Scope
from common.tables import Job
from tests.gateway.conftest import STACKS, Gateway, problem
from tests.servers import RedisServer

pytestmark = STACKS
BOTH = (Scope.READ, Scope.SUBMIT)


def test_too_many_requests_of_a_key(gateway_with_keys: Gateway) -> None:
    gateway = gateway_with_keys
    slow, free = gateway.new_key(BOTH, requests_per_minute=5), gateway.new_key(BOTH)
    for _ in range(5):
        assert gateway.client.get("/v1/jobs", headers=slow).status_code == 200
    answer = gateway.client.get("/v1/jobs", headers=slow)
    assert "5" in problem(answer, 429, "rate_limited")["detail"]
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    problem(gateway.client.post("/v1/jobs", json={}, headers=slow), 429, "rate_limited")
    assert gateway.client.get("/v1/jobs", headers=free).status_code == 200
    assert gateway.client.get("/health", headers=slow).status_code == 200
    assert gateway.job_rows() == 0


def test_rates_are_counted_without_redis_too(
    gateway_with_keys: Gateway, redis_server: RedisServer
) -> None:
    gateway = gateway_with_keys
    slow = gateway.new_key(BOTH, requests_per_minute=5)
    redis_server.kill()
    for _ in range(5):
        assert gateway.client.get("/v1/jobs", headers=slow).status_code == 200
    problem(gateway.client.get("/v1/jobs", headers=slow), 429, "rate_limited")
    warnings = [entry for entry in gateway.log if entry["event"] == "rates not counted in Redis"]
    assert len(warnings) == 1


def test_jobs_that_have_not_ended(gateway_with_keys: Gateway) -> None:
    gateway = gateway_with_keys
    client, caller = gateway.client, gateway.new_key(BOTH, max_jobs=2)
    ids = [client.post("/v1/jobs", json={}, headers=caller).json()["id"] for _ in range(2)]
    detail = problem(client.post("/v1/jobs", json={}, headers=caller), 403, "quota_exceeded")
    assert "2 jobs" in detail["detail"]
    files = {"file": ("a.wav", b"x")}
    problem(client.post("/v1/jobs", files=files, headers=caller), 403, "quota_exceeded")
    assert (gateway.job_rows(), gateway.objects()) == (2, [])
    gateway.complete(ids[0])
    assert client.post("/v1/jobs", json={}, headers=caller).status_code == 201
    client.delete(f"/v1/jobs/{ids[1]}", headers=caller).raise_for_status()
    assert client.post("/v1/jobs", json={}, headers=caller).status_code == 201


def test_bytes_and_audio(gateway_with_keys: Gateway) -> None:
    gateway = gateway_with_keys
    second = 44_100 * 4  # bytes of what is taken for a second before decoding

    def upload(caller: dict[str, str], job_id: str, size: int) -> int:
        answer = gateway.client.post(
            f"/v1/jobs/{job_id}/recordings?name=a", content=b"x" * size, headers=caller
        )
        if answer.status_code != 201:
            problem(answer, 403, "quota_exceeded")
        return answer.status_code

    for limits in ({"max_bytes": 3 * second}, {"max_audio_s": 3.0}):
        caller = gateway.new_key(BOTH, **limits)
        one, other = (
            gateway.client.post("/v1/jobs", json={}, headers=caller).json()["id"] for _ in range(2)
        )
        assert upload(caller, one, 2 * second) == 201
        assert upload(caller, other, 2 * second) == 403  # the jobs of a key count together
        assert upload(caller, other, second) == 201
        assert upload(caller, one, 1) == 403
        gateway.client.delete(f"/v1/jobs/{one}", headers=caller).raise_for_status()
        assert upload(caller, other, 2 * second) == 201
    assert len(gateway.objects()) == 6  # nothing of what was refused; the dispatcher removes jobs


def test_two_at_once_do_not_take_the_last_room(gateway_with_keys: Gateway) -> None:
    gateway = gateway_with_keys
    caller = gateway.new_key(BOTH, max_jobs=3)
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: gateway.client.post("/v1/jobs", json={}, headers=caller), range(12))
        )
    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [403] * 9


def test_the_local_user_and_keys_without_limits(gateway: Gateway) -> None:
    with gateway.sessions.begin() as session:
        key = keys.make(session, "free", [Scope.ADMIN]).key
        assert (key.max_jobs, key.max_bytes, key.max_audio_s) == (None, None, None)
    job_id = gateway.new_job()
    with gateway.sessions.begin() as session:
        session.execute(
            update(Job).where(Job.id == job_id).values(size_bytes=1 << 60, audio_s_total=1e12)
        )
    gateway.upload(job_id)


@pytest.mark.parametrize("limit", [0])
def test_a_key_that_may_send_nothing(gateway_with_keys: Gateway, limit: int) -> None:
    caller = gateway_with_keys.new_key(BOTH, requests_per_minute=limit)
    answer = gateway_with_keys.client.get("/v1/jobs", headers=caller)
    problem(answer, 429, "rate_limited")
