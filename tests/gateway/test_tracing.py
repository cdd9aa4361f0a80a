"""One id from upload to result: what the gateway takes, makes, keeps, answers and logs."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from common import traces
from common.domain import Stage
from common.tables import Recording, Source
from tests.gateway.conftest import STACKS, Gateway

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
GIVEN = {"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}
ONE = pytest.mark.parametrize(
    ("database_url", "store_options"), [("sqlite", "directory")], indirect=True
)


def trace_id(answer: httpx.Response) -> str:
    """Return the trace id that an answer tells."""
    told = traces.parse(answer.headers["traceresponse"])
    assert told is not None
    return told.trace_id


def lines(gateway: Gateway, event: str, **fields: Any) -> list[dict[str, Any]]:
    """Return the log lines with these fields."""
    return [
        dict(line)
        for line in gateway.log
        if line["event"] == event and all(line.get(name) == fields[name] for name in fields)
    ]


@STACKS
def test_from_upload_to_result_by_one_id(gateway: Gateway) -> None:
    job_id = gateway.new_job(stages=["classify"])
    answer = gateway.client.post(
        f"/v1/jobs/{job_id}/recordings", params={"name": "a"}, content=b"a", headers=GIVEN
    )
    assert trace_id(answer) == answer.json()["trace_id"] == TRACE_ID
    recording_id = answer.json()["id"]
    (stored,) = lines(gateway, "recording stored")
    (request,) = lines(gateway, "request", trace_id=TRACE_ID)
    for line in (stored, request):
        assert (line["trace_id"], line["job_id"]) == (TRACE_ID, job_id)
        assert line["recording_id"] == recording_id
        assert line["request_id"] == answer.headers["x-request-id"]
    assert gateway.claim(recording_id, Stage.SEGMENT).ids["trace_id"] == TRACE_ID

    listed = gateway.get(f"/v1/jobs/{job_id}/recordings")["recordings"][0]
    assert listed["trace_id"] == TRACE_ID
    for path in (f"/v1/recordings/{recording_id}", f"/v1/recordings/{recording_id}/manifest"):
        fetched = gateway.client.get(path)
        (line,) = lines(gateway, "request", path=path)
        assert line["recording_id"] == recording_id
        assert line["trace_id"] == trace_id(fetched) != TRACE_ID


@ONE
def test_every_way_in_keeps_the_trace(gateway: Gateway) -> None:
    form = gateway.client.post(
        "/v1/jobs", files=[("file", ("a", b"a")), ("file", ("b", b"b"))], headers=GIVEN
    )
    assert form.status_code == 201
    job_id = gateway.new_job()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("a.wav", b"a")
    bodies = [
        ("application/zip", archive.getvalue()),
        ("text/csv", b"url\nhttps://archive.example.org/a.wav\n"),
        ("application/json", b'{"kind": "prefix", "url": "s3://field/2026/"}'),
    ]
    made = set()
    for media_type, body in bodies:
        answer = gateway.client.post(
            f"/v1/jobs/{job_id}/sources",
            content=body,
            headers={"Content-Type": media_type, **GIVEN},
        )
        assert answer.status_code == 201, answer.text
        made.add(answer.json()["id"])
    with gateway.sessions() as session:
        recordings = session.scalars(select(Recording)).all()
        sources = session.scalars(select(Source)).all()
    assert len(recordings) == 2
    assert {recording.trace_id for recording in recordings} == {TRACE_ID}
    assert {traces.trace_id_of(source.traceparent) for source in sources} == {TRACE_ID}
    stored = lines(gateway, "recording stored", trace_id=TRACE_ID)
    assert {line["recording_id"] for line in stored} == {r.id for r in recordings}
    (request,) = lines(gateway, "request", route="/v1/jobs", trace_id=TRACE_ID)
    assert request["job_id"] == form.json()["id"]
    told = lines(gateway, "request", route="/v1/jobs/{job_id}/sources")
    assert {line["source_id"] for line in told} == made == {source.id for source in sources}


@ONE
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("traceparent", "")],
        [("traceparent", f"00-{'0' * 32}-00f067aa0ba902b7-01")],
        [("traceparent", "x" * 10_000)],
        [("traceparent", '{"a": "\\n"}')],
        [("traceparent", GIVEN["traceparent"])] * 2,
    ],
)
def test_without_a_valid_trace_there_is_a_new_one(
    gateway: Gateway, headers: list[tuple[str, str]]
) -> None:
    first, second = (gateway.client.get("/v1/jobs", headers=headers) for _ in range(2))
    assert first.status_code == 200
    assert len({trace_id(first), trace_id(second), TRACE_ID}) == 3
    logged = [line["trace_id"] for line in lines(gateway, "request", route="/v1/jobs")]
    assert logged == [trace_id(first), trace_id(second)]


@ONE
def test_problems_and_strange_paths_have_a_trace_too(gateway: Gateway) -> None:
    for path in ("/v1/recordings/nobody", "/nowhere", "/v1/jobs/a%20b%0Ac", "/health"):
        answer = gateway.client.get(path, headers=GIVEN)
        assert trace_id(answer) == TRACE_ID
    (line,) = lines(gateway, "request", route="/v1/recordings/{recording_id}")
    assert line["recording_id"] == "nobody"
    (line,) = lines(gateway, "request", route="/v1/jobs/{job_id}")
    assert "job_id" not in line  # it does not look like one


@ONE
def test_a_recording_without_a_trace_is_shown_without_one(gateway: Gateway) -> None:
    recording_id = gateway.upload(gateway.new_job())
    with gateway.sessions.begin() as session:  # as it was before there were any
        session.get_one(Recording, recording_id).traceparent = None
    assert gateway.get(f"/v1/recordings/{recording_id}")["trace_id"] is None
    assert gateway.claim(recording_id, Stage.SEGMENT).ids["trace_id"] is None
