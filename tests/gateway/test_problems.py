"""Every error is a problem document with a stable code."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from common.errors import DiskFull, StoreUnavailable
from common.storage import DirectoryStore, S3Store
from services.gateway import job_queries, uploads
from tests.gateway.conftest import STACKS, Gateway, problem

pytestmark = STACKS


def test_addresses_and_methods(gateway: Gateway) -> None:
    client = gateway.client
    for path in ("/", "/nope", "/v1", "/v1/nope", "/v2/jobs", "/v1/jobs/nope"):
        problem(client.get(path), 404, "not_found")
    problem(client.get("/v1/recordings/" + "x" * 5000), 404, "not_found")
    answer = client.delete("/v1/jobs")
    problem(answer, 405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) <= {"GET", "POST", "HEAD"}
    problem(client.get("/v1/jobs/x/cancel"), 405, "method_not_allowed")


def test_media_types_and_bodies(gateway: Gateway) -> None:
    def post(content: bytes, media_type: str | None = "application/json") -> Any:
        headers = {} if media_type is None else {"Content-Type": media_type}
        return gateway.client.post("/v1/jobs", content=content, headers=headers)

    problem(post(b"{}", "text/plain"), 415, "unsupported_media_type")
    problem(post(b"{}", None), 415, "unsupported_media_type")
    assert post(b"{}", "Application/JSON; charset=utf-8").status_code == 201
    problem(post(b"{"), 422, "request_invalid")
    problem(post(b"\xff"), 422, "request_invalid")
    problem(post(b"[]"), 422, "request_invalid")
    problem(post(b""), 422, "request_invalid")
    problem(post(b'"' + b"x" * (2 << 20) + b'"'), 413, "too_large")
    assert gateway.job_rows() == 1


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"stages": []}, "stages"),
        ({"stages": ["fly"]}, "stages.0"),
        ({"priority": "now"}, "priority"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": 7}, "name"),
        ({"colour": "red"}, "colour"),
        ({"params": {"classify": {"threshold": 2}}}, "params.classify.threshold"),
        ({"params": {"restore": {"remove": ["unicorn"]}}}, "params.restore.remove.0"),
        ({"params": {"fly": {}}}, "params.fly"),
    ],
)
def test_a_request_at_fault_names_the_field(
    gateway: Gateway, request_: dict[str, Any], field: str
) -> None:
    document = problem(gateway.client.post("/v1/jobs", json=request_), 422, "request_invalid")
    assert field in [error["field"] for error in document["errors"]]
    assert all(error["message"] for error in document["errors"])
    assert gateway.job_rows() == 0


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=501", "limit=x", "state=broken", "cursor=" + "x" * 201]
)
def test_a_query_at_fault(gateway: Gateway, query: str) -> None:
    problem(gateway.client.get(f"/v1/jobs?{query}"), 422, "request_invalid")


def test_an_unforeseen_error_is_logged_under_the_id_that_is_answered(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("the secret reason")

    monkeypatch.setattr(job_queries, "get_job", broken)
    answer = gateway.client.get("/v1/jobs/x")
    document = problem(answer, 500, "internal_error")
    assert "secret" not in answer.text
    (entry,) = [entry for entry in gateway.log if entry["event"] == "request failed"]
    assert entry["request_id"] == document["request_id"]
    assert str(entry["exc_info"]) == "the secret reason"
    assert gateway.client.get("/health").status_code == 200


def test_outages(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = gateway.new_job()

    def fail_with(error: Exception) -> Any:
        def broken(*_: Any, **__: Any) -> None:
            raise error

        return broken

    def upload() -> Any:
        return gateway.client.post(
            f"/v1/jobs/{job_id}/recordings", params={"name": "a"}, content=b"x"
        )

    kind = DirectoryStore if isinstance(gateway.store, DirectoryStore) else S3Store
    with monkeypatch.context() as patched:
        patched.setattr(kind, "put_stream", fail_with(StoreUnavailable("no answer")))
        answer = upload()
        problem(answer, 503, "store_unavailable")
        assert answer.headers["retry-after"]
    with monkeypatch.context() as patched:
        patched.setattr(kind, "put_stream", fail_with(DiskFull("no space left")))
        problem(upload(), 507, "disk_full")
    with monkeypatch.context() as patched:
        lost = OperationalError("INSERT", {}, Exception("connection refused"))
        patched.setattr(uploads.service, "add_recording", fail_with(lost))
        answer = upload()
        assert "refused" not in problem(answer, 503, "database_unavailable")["detail"]
    assert gateway.objects() == []
    assert upload().status_code == 201


def test_request_ids(gateway: Gateway) -> None:
    given = gateway.client.get("/health", headers={"X-Request-ID": "from-the-client_1"})
    assert given.headers["x-request-id"] == "from-the-client_1"
    first, second = (gateway.client.get("/health").headers["x-request-id"] for _ in range(2))
    assert first != second
    for hostile in ("a b", "x" * 65, '"><script>', "a;b"):
        answer = gateway.client.get("/health", headers={"X-Request-ID": hostile})
        assert answer.headers["x-request-id"] != hostile
