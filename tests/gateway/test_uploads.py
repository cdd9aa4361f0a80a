"""Recordings on their way in: streamed, hashed, stored whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import func, select

from common.domain import Stage
from common.tables import Job, Recording, StageRun
from services.gateway import bodies
from tests.gateway.conftest import STACKS, Gateway, problem

pytestmark = STACKS

MIB = 1 << 20


def blocks_of(data: bytes, size: int = 50_000) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def nothing_is_left(gateway: Gateway, recordings: int = 0) -> bool:
    """Return whether there is no object, no half-written file and no row too many."""
    partial = gateway.settings.home / "objects" / ".partial"
    with gateway.sessions() as session:
        rows = session.scalar(select(func.count()).select_from(Recording))
    return (
        len(gateway.objects()) == recordings
        and rows == recordings
        and (not partial.exists() or not any(partial.iterdir()))
    )


def eventually(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


@pytest.mark.parametrize("size", [0, 1, 100_000, 9 * MIB])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_raw_body_is_stored_and_hashed(gateway: Gateway, size: int, chunked: bool) -> None:
    data = os.urandom(size)
    job_id = gateway.new_job()
    answer = gateway.client.post(
        f"/v1/jobs/{job_id}/recordings",
        params={"name": "a.wav"},
        content=blocks_of(data) if chunked else data,
        headers={"X-Content-SHA256": hashlib.sha256(data).hexdigest().upper()},
    )
    assert answer.status_code == 201
    facts = answer.json()
    assert facts["sha256"] == hashlib.sha256(data).hexdigest()
    assert (facts["size_bytes"], facts["name"], facts["position"]) == (size, "a.wav", 0)
    assert answer.headers["location"] == f"/v1/recordings/{facts['id']}"
    (key,) = gateway.objects()
    with gateway.store.open(key) as blocks:
        assert b"".join(blocks) == data
    assert gateway.states(facts["id"]) == {
        "segment": "ready",
        "classify": "blocked",
        "enhance": "blocked",
        "restore": "blocked",
    }


def test_stages_bring_what_they_need(gateway: Gateway) -> None:
    job_id = gateway.new_job(stages=["enhance"], priority="interactive")
    recording_id = gateway.upload(job_id)
    assert gateway.states(recording_id) == {"segment": "ready", "enhance": "blocked"}
    with gateway.sessions() as session:
        found = session.scalars(select(StageRun.priority)).all()
    assert set(found) == {"interactive"}


def test_a_form_is_a_whole_job(gateway: Gateway) -> None:
    files = {f"{n}.wav": os.urandom(n * 10_000) for n in range(5)}
    answer = gateway.client.post(
        "/v1/jobs",
        data={"name": "five", "stages": ["classify", "enhance"], "priority": "interactive"}
        | {"params": json.dumps({"classify": {"threshold": 0.25}})},
        files=[("file", (name, data, "audio/wav")) for name, data in files.items()],
    )
    assert answer.status_code == 201, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["name"], job["state"], job["recordings"]) == ("five", "closed", 5)
    assert job["stages"] == ["segment", "classify", "enhance"]
    assert job["params"]["classify"] == {"threshold": 0.25, "top_k": 5}
    page = gateway.get(f"/v1/jobs/{job['id']}/recordings")
    assert [r["name"] for r in page["recordings"]] == list(files)
    for recording, data in zip(page["recordings"], files.values(), strict=True):
        assert recording["sha256"] == hashlib.sha256(data).hexdigest()
        assert recording["size_bytes"] == len(data)
    assert len(gateway.objects()) == 5


def form(*parts: tuple[str, str | None, bytes], end: bool = True) -> tuple[bytes, dict[str, str]]:
    """Return the body of a form and its headers, made by hand."""
    body = b""
    for name, filename, data in parts:
        extra = "" if filename is None else f'; filename="{filename}"'
        body += b"--xyz\r\n"
        body += f'Content-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode()
        body += data + b"\r\n"
    body += b"--xyz--\r\n" if end else b""
    return body, {"Content-Type": "multipart/form-data; boundary=xyz"}


def test_fields_may_follow_files(gateway: Gateway) -> None:
    body, headers = form(
        ("file", "a.wav", b"one"), ("stages", None, b"segment"), ("name", None, b"later")
    )
    answer = gateway.client.post("/v1/jobs", content=body, headers=headers)
    assert answer.status_code == 201, answer.text
    assert (answer.json()["name"], answer.json()["stages"]) == ("later", ["segment"])


@pytest.mark.parametrize(
    ("parts", "status", "code"),
    [
        ([("name", None, b"x")], 422, "no_recordings"),
        ([("file", "a.wav", b"x"), ("stages", None, b"fly")], 422, "request_invalid"),
        ([("file", "a.wav", b"x"), ("params", None, b"{")], 422, "request_invalid"),
        ([("file", "a.wav", b"x"), ("colour", None, b"red")], 422, "request_invalid"),
        ([("file", "a.wav", b"x"), ("name", None, b"y" * 70_000)], 422, "request_invalid"),
        ([("file", "a.wav", b"x"), ("file", "a\tb.wav", b"x")], 422, "name_invalid"),
        ([("file", "a.wav", b"x"), ("file", None, b"x")], 422, "name_invalid"),
        ([("file", "a.wav", b"x"), ("file", "b.wav", bytes(20 * MIB + 1))], 413, "too_large"),
        ([("stages", None, b"fly"), ("file", "a.wav", b"x")], 422, "request_invalid"),
    ],
)
def test_a_form_that_cannot_be_followed_leaves_nothing(
    gateway: Gateway, parts: list[Any], status: int, code: str
) -> None:
    body, headers = form(*parts)
    answer = gateway.client.post("/v1/jobs", content=body, headers=headers)
    problem(answer, status, code)
    assert nothing_is_left(gateway)
    assert gateway.job_rows() == 0


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(("file", "a.wav", b"x"), end=False)[0], "multipart/form-data; boundary=xyz"),
        (form(("file", "a.wav", b"x"))[0], "multipart/form-data; boundary=other"),
        (form(("file", "a.wav", b"x"))[0], "multipart/form-data"),
        (form(("file", "a.wav", b"x"))[0], f"multipart/form-data; boundary={'b' * 300}"),
        (b"", "multipart/form-data; boundary=xyz"),
        (b"--xyz\r\n\r\nno headers\r\n--xyz--\r\n", "multipart/form-data; boundary=xyz"),
        (b"--xyz\r\nX: " + b"y" * 100_000, "multipart/form-data; boundary=xyz"),
        (
            b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="\xff"\r\n\r\nx'
            b"\r\n--xyz--\r\n",
            "multipart/form-data; boundary=xyz",
        ),
        (os.urandom(100_000), "multipart/form-data; boundary=xyz"),
        (form(("file", "a", b"x"))[0] + bytes(2 * MIB), "multipart/form-data; boundary=xyz"),
    ],
)
def test_what_is_no_form_is_said_so(gateway: Gateway, body: bytes, content_type: str) -> None:
    answer = gateway.client.post("/v1/jobs", content=body, headers={"Content-Type": content_type})
    problem(answer, 400, "form_malformed")
    assert nothing_is_left(gateway)
    assert gateway.job_rows() == 0


def test_a_wrong_hash_leaves_nothing(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    path, params = f"/v1/jobs/{job_id}/recordings", {"name": "a.wav"}
    wrong = {"X-Content-SHA256": hashlib.sha256(b"other").hexdigest()}
    answer = gateway.client.post(path, params=params, content=b"data", headers=wrong)
    assert hashlib.sha256(b"data").hexdigest() in problem(answer, 422, "hash_mismatch")["detail"]
    no_hash = {"X-Content-SHA256": "no hash"}
    answer = gateway.client.post(path, params=params, content=b"data", headers=no_hash)
    problem(answer, 422, "request_invalid")
    assert nothing_is_left(gateway)


@pytest.mark.parametrize("chunked", [False, True])
def test_too_much_leaves_nothing(gateway: Gateway, chunked: bool) -> None:
    job_id = gateway.new_job()
    data = bytes(20 * MIB + 1)
    answer = gateway.client.post(
        f"/v1/jobs/{job_id}/recordings",
        params={"name": "a.wav"},
        content=blocks_of(data, MIB) if chunked else data,
    )
    problem(answer, 413, "too_large")
    assert nothing_is_left(gateway)


def test_where_no_recording_may_go(gateway: Gateway) -> None:
    path = "/v1/jobs/{}/recordings"
    options: dict[str, Any] = {"params": {"name": "a.wav"}, "content": bytes(3 * MIB)}
    problem(gateway.client.post(path.format("nope"), **options), 404, "not_found")
    closed = gateway.new_job()
    gateway.client.post(f"/v1/jobs/{closed}/close").raise_for_status()
    problem(gateway.client.post(path.format(closed), **options), 409, "conflict")
    job_id = gateway.new_job()
    answer = gateway.client.post(path.format(job_id), content=b"x")
    assert problem(answer, 422, "request_invalid")["errors"][0]["field"] == "query.name"
    with gateway.sessions.begin() as session:
        session.get_one(Job, job_id).recordings = 1000
    problem(gateway.client.post(path.format(job_id), **options), 409, "conflict")
    assert nothing_is_left(gateway)


def test_many_uploads_at_once(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda n: gateway.upload(job_id, b"x" * n, f"{n}.wav"), range(40)))
    assert len(set(ids)) == 40
    with gateway.sessions() as session:
        positions = session.scalars(select(Recording.position).order_by(Recording.position)).all()
        assert positions == list(range(40))
        assert session.get_one(Job, job_id).recordings == 40
        assert session.scalar(select(func.count()).select_from(StageRun)) == 40 * len(Stage)


def cut_off(gateway: Gateway, path: str, headers: dict[str, str], data: bytes) -> None:
    """Send the beginning of a body that claims to be longer, then go away."""
    parts = urlsplit(gateway.url)
    lines = [f"POST {path} HTTP/1.1", f"Host: {parts.netloc}", "Content-Length: 19000000"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    with socket.create_connection((parts.hostname, parts.port)) as sender:
        sender.sendall("\r\n".join([*lines, "", ""]).encode() + data)


@pytest.mark.parametrize("sent", [1000, 18 * MIB])
def test_a_sender_that_goes_away_leaves_nothing(gateway: Gateway, sent: int) -> None:
    job_id = gateway.new_job()
    cut_off(gateway, f"/v1/jobs/{job_id}/recordings?name=a", {}, bytes(sent))
    body, headers = form(("file", "whole.wav", b"whole"), ("file", "cut.wav", bytes(sent)))
    cut_off(gateway, "/v1/jobs", headers, body[: len(body) - 500])
    requests = 'soundmill_http_requests_total{method="POST",route="/v1/jobs'
    eventually(
        lambda: (
            sum(
                float(line.rpartition(" ")[2])
                for line in gateway.client.get("/metrics").text.splitlines()
                if line.startswith(requests)
            )
            == 3.0
        )
    )
    assert nothing_is_left(gateway)
    assert gateway.job_rows() == 1
    assert gateway.get(f"/v1/jobs/{job_id}")["recordings"] == 0


def test_a_sender_that_stalls_is_let_go(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "STALLED_AFTER_S", 0.3)
    monkeypatch.setattr(bodies, "MAX_DRAIN_S", 0.3)
    job_id = gateway.new_job()

    def slowly() -> Iterator[bytes]:
        yield b"some"
        time.sleep(1.5)
        yield b"more"

    answer = gateway.client.post(
        f"/v1/jobs/{job_id}/recordings", params={"name": "a"}, content=slowly()
    )
    problem(answer, 408, "upload_stalled")
    assert nothing_is_left(gateway)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "../../etc/passwd"),
        ("/etc/passwd", "/etc/passwd"),
        ("archive/1987/tape 3.wav", "archive/1987/tape 3.wav"),
        ("C:\\tapes\\1.wav", "C:\\tapes\\1.wav"),
        ("cafe\u0301.wav", "caf\u00e9.wav"),
        ("\U0001f436 '\"; DROP TABLE job; --.wav", "\U0001f436 '\"; DROP TABLE job; --.wav"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("%2e%2e%2f", "%2e%2e%2f"),
        ("  a.wav ", "a.wav"),
        ("x" * 500, "x" * 500),
        ("x" * 501, None),
        ("", None),
        ("   ", None),
        ("a\0.wav", None),
        ("a\r\nSet-Cookie: b.wav", None),
        ("a\x1b[31m.wav", None),
        ("a\u2028b.wav", None),
        ("gpj.\u202ewav", None),
    ],
)
def test_a_name_is_data_and_never_a_path(
    gateway: Gateway, tmp_path: Path, given: str, kept: str | None
) -> None:
    job_id = gateway.new_job()
    answer = gateway.client.post(
        f"/v1/jobs/{job_id}/recordings", params={"name": given}, content=b"data"
    )
    if kept is None:
        problem(answer, 422, "name_invalid")
        assert nothing_is_left(gateway)
        return
    assert answer.status_code == 201, answer.text
    recording_id = answer.json()["id"]
    assert gateway.get(f"/v1/recordings/{recording_id}")["name"] == kept
    assert gateway.objects() == [f"recordings/{job_id}/{recording_id}"]
    manifest = gateway.client.get(f"/v1/recordings/{recording_id}/manifest")
    offered = manifest.headers["content-disposition"]
    assert offered.isascii()
    assert not set('/\\<>:|?*%\r\n"') & set(offered.split('"')[1])
