"""Hostile requests: a problem document with a stable code, nothing left behind, nothing broken."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from common.domain import Stage
from common.settings import Settings
from services.gateway.app import create_app
from tests.gateway.conftest import STACKS, Gateway, problem

ONE_STACK = pytest.mark.parametrize(
    ("database_url", "store_options"), [("sqlite", "directory")], indirect=True
)
JSON_ROUTES = (
    ("POST", "/v1/jobs"),
    ("PATCH", "/v1/jobs/{job_id}"),
    ("POST", "/v1/jobs/{job_id}/sources"),
    ("POST", "/v1/uploads"),
    ("POST", "/v1/webhooks"),
)
LISTS = (
    "/v1/jobs",
    "/v1/jobs/{job_id}/recordings",
    "/v1/jobs/{job_id}/rejections",
    "/v1/jobs/{job_id}/sources",
)


@ONE_STACK
def test_no_route_reads_a_body_without_a_bound(gateway_settings: Settings) -> None:
    """The framework would read a body whole, however long, before it asks who sent it."""
    routes = [r for r in iter_route_contexts(create_app(gateway_settings).routes) if r.methods]
    assert [r.path for r in routes if getattr(r, "body_field", None) is not None] == []


@STACKS
def test_json_that_is_too_much(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    hostile: dict[str, tuple[bytes, int, str]] = {
        "deep": (b'{"params":' * 900, 422, "request_invalid"),
        "lists": (b"[" * 9_000, 422, "request_invalid"),
        "huge number": (b'{"name": ' + b"9" * 9_000 + b"}", 422, "request_invalid"),
        "unknown field": (b'{"' + b"x" * 9_000 + b'": 1}', 422, "request_invalid"),
        "many fields": (
            json.dumps({str(n): n for n in range(900)}).encode(),
            422,
            "request_invalid",
        ),
        "surrogate": (b'{"name": "\\ud800"}', 422, "request_invalid"),
        "a surrogate as key": (b'{"\\ud800": 1}', 422, "request_invalid"),
        "NUL": (b'{"name": "a\\u0000"}', 422, "request_invalid"),
        "twice": (b'{"name": "a"} {"name": "b"}', 422, "request_invalid"),
        "not UTF-8": (b'{"name": "\xff"}', 422, "request_invalid"),
        "huge": (b'"' + b"x" * (33 << 20) + b'"', 413, "too_large"),
    }
    before = gateway.get(f"/v1/jobs/{job_id}")
    for method, path in JSON_ROUTES:
        for name, (content, status, code) in hostile.items():
            answer = gateway.client.request(
                method,
                path.format(job_id=job_id),
                content=content,
                headers={"Content-Type": "application/json"},
            )
            assert (answer.status_code, name, path) == (status, name, path)
            problem(answer, status, code)
            assert len(answer.content) < 50_000
    assert gateway.get(f"/v1/jobs/{job_id}") == before
    assert (gateway.job_rows(), gateway.objects()) == (1, [])


@STACKS
@pytest.mark.parametrize(
    "params",
    [
        "[" * 60_000,
        '{"a":' * 10_000,
        '{"\\ud800": 1}',
        '{"classify": {"threshold": NaN}}',
        "1" * 9_999,
    ],
    ids=["lists", "objects", "surrogate", "nan", "number"],
)
def test_parameters_in_a_form(gateway: Gateway, params: str) -> None:
    files: dict[str, Any] = {"params": (None, params), "file": ("a.wav", b"x")}
    problem(gateway.client.post("/v1/jobs", files=files), 422, "request_invalid")
    assert (gateway.job_rows(), gateway.objects()) == (0, [])


@STACKS
def test_nul_wherever_text_goes(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    recordings = f"/v1/jobs/{job_id}/recordings"
    for path in ("/v1/jobs/a%00b", "/v1/recordings/%00", "/v1/jobs/%00/events", "/%00"):
        problem(gateway.client.get(path), 422, "request_invalid")
    for path in (
        "/v1/jobs?name=a%00",
        "/v1/jobs?cursor=%00",
        f"{recordings}?name=%00",
        f"{recordings}?custom_id=%00",
        f"{recordings}?error_code=%00",
        f"/v1/jobs/{job_id}/rejections?error_code=%00",
        f"/v1/jobs/{job_id}/search?text=%00",
    ):
        assert gateway.client.get(path).status_code == 422, path
    for query in ("name=%00", "name=a&custom_id=%00", "name=a&labels=%00"):
        assert gateway.client.post(f"{recordings}?{query}", content=b"x").status_code == 422
    assert gateway.objects() == []


@STACKS
@pytest.mark.parametrize("path", LISTS)
def test_cursors(gateway: Gateway, path: str) -> None:
    address = path.format(job_id=gateway.new_job())
    for cursor in ("?", "_", "AA", "w7w", "\u00e4", "YQo"):
        answer = gateway.client.get(address, params={"cursor": cursor})
        problem(answer, 422, "cursor_invalid")
    problem(gateway.client.get(address, params={"cursor": "x" * 201}), 422, "request_invalid")


@STACKS
def test_queries_out_of_any_range(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    for query in (
        "limit=" + "9" * 5000,
        "limit=-1",
        "limit=1e3",
        "limit=%C2%B2",
        "created_after=yesterday",
        "created_after=2026-01-01T00:00:00",
        "created_before=99999999999999999999",
        "priority=urgent",
        "name=",
        "name=" + "x" * 501,
    ):
        problem(gateway.client.get(f"/v1/jobs?{query}"), 422, "request_invalid")
    for query in ("state=gone", "stage=fly", "limit=501", "custom_id="):
        answer = gateway.client.get(f"/v1/jobs/{job_id}/recordings?{query}")
        problem(answer, 422, "request_invalid")
    for path in (f"/v1/jobs/{'9' * 4000}", "/v1/jobs/-1", "/v1/jobs/%2e%2e", "/v1/jobs/%F0%28"):
        problem(gateway.client.get(path), 404, "not_found")


def raw(gateway: Gateway, head: str, body: bytes = b"") -> tuple[int, str]:
    """Send bytes as they are; return the status and the whole answer."""
    address = httpx.URL(gateway.url)
    with socket.create_connection((address.host, address.port or 80), timeout=30) as sender:
        lines = head.strip().splitlines()
        lines.insert(1, f"Host: {address.host}:{address.port}")
        sender.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode() + body)
        answer = sender.makefile("rb").read().decode()
    return int(answer.split()[1]), answer


@ONE_STACK
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("Content-Length: 5\nContent-Length: 6", 400),
        ("Content-Length: -5", 400),
        ("Content-Length: 5x", 400),
        ("Content-Length: 99999999999999999999999", 400),
        ("Content-Length: 9999999999999999", 413),
        ("Transfer-Encoding: gzip", 400),
        ("Host: other.example", 400),
        ("Content-Length: 5\nX Bad: 1", 400),
        ("Content-Length: 5\nX-Content-SHA256: short", 422),
    ],
)
def test_header_tricks(gateway: Gateway, headers: str, status: int) -> None:
    job_id = gateway.new_job()
    path = f"/v1/jobs/{job_id}/recordings?name=a.wav"
    found, answer = raw(gateway, f"POST {path} HTTP/1.1\n{headers}", b"12345")
    assert found == status, answer
    assert gateway.get(f"/v1/jobs/{job_id}")["recordings"] == 0
    assert gateway.objects() == []


@ONE_STACK
def test_a_body_that_says_its_length_twice_and_ends_early(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    path = f"/v1/jobs/{job_id}/recordings?name=a.wav"
    same = "Content-Length: 5\nContent-Length: 5"
    assert raw(gateway, f"POST {path} HTTP/1.1\n{same}", b"12345")[0] == 201
    both = "Content-Length: 3\nTransfer-Encoding: chunked"  # the chunks count
    status, answer = raw(gateway, f"POST {path} HTTP/1.1\n{both}", b"5\r\n12345\r\n0\r\n\r\n")
    assert status == 201
    assert '"size_bytes":5' in answer


@STACKS
@pytest.mark.parametrize(
    "value",
    [
        "bytes=0-",
        "bytes=-0",
        "bytes=99999999999999999999-",
        "bytes=" + "0-1," * 5000,
        "bytes=5-1",
        "bytes=a-b",
        "lines=1-2",
        "bytes=" + "9" * 9000 + "-",
    ],
)
def test_absurd_ranges(gateway: Gateway, value: str) -> None:
    recording_id = gateway.upload(gateway.new_job())
    gateway.succeed(recording_id, Stage.SEGMENT)
    answer = gateway.client.get(
        f"/v1/recordings/{recording_id}/artifacts/mask", headers={"Range": value}
    )
    if answer.status_code == 416:
        problem(answer, 416, "range_not_satisfiable")
    else:
        assert answer.content == b"mask" * 100
