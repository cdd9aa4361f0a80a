"""One recording followed through every service: by the ids in their logs, and as spans.

The stack sends its spans to a real OTLP receiver here, and only when its processes end.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from common.domain import SERVICE_OF, Stage
from tests.e2e.conftest import STOP_TIMEOUT_S, Stack
from tests.e2e.test_recovery import make_recordings
from tests.receiver import Receiver, receiver

UPLOADED = "4bf92f3577b34da6a3ce929d0e0e4736"
ARCHIVED = "0af7651916cd43dd8448eb211c80319c"
CLIENT_SPAN = "00f067aa0ba902b7"
ROOT = Path(__file__).resolve().parents[2]
WORKERS = set(SERVICE_OF.values())
PHASES = ("download", "decode", "infer", "encode", "upload")

Line = dict[str, Any]


def header(trace_id: str) -> dict[str, str]:
    return {"traceparent": f"00-{trace_id}-{CLIENT_SPAN}-01"}


@pytest.fixture(scope="module")
def collector() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


@pytest.fixture(scope="module")
def stack_settings(collector: Receiver) -> Iterator[dict[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{collector.authority}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", str(3600 * 1000))  # never before the end
        yield {}


@pytest.fixture(scope="module")
def jobs(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By trace id, jobs that have completed: one recording uploaded, one from an archive."""
    uploaded, archived = make_recordings(tmp_path_factory.mktemp("audio") / "r", 2, seed=11)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(archived, "in the archive.wav")
    http = stack.http
    found = {}
    for trace_id, path, options in (
        (
            UPLOADED,
            "recordings",
            {"params": {"name": "uploaded.wav"}, "content": uploaded.read_bytes()},
        ),
        (ARCHIVED, "sources", {"content": packed.getvalue()}),
    ):
        job_id = http.post("/v1/jobs", json={"name": path}).raise_for_status().json()["id"]
        headers = {"Content-Type": "application/zip", **header(trace_id)}
        answer = http.post(f"/v1/jobs/{job_id}/{path}", headers=headers, **options)
        assert answer.raise_for_status().headers["traceresponse"].split("-")[1] == trace_id
        http.post(f"/v1/jobs/{job_id}/close").raise_for_status()
        found[trace_id] = job_id
    for job_id in found.values():
        job = stack.wait(job_id)
        assert job["counts"] == {stage.value: {"succeeded": 1} for stage in Stage}
    return found


def log_lines(stack: Stack) -> list[Line]:
    """Return what every process of ours has logged; each line is JSON and names its service."""
    services = {"gateway", "dispatcher", "ingester", *WORKERS}
    lines = []
    for path in sorted(stack.home.logs.glob("*.log")):
        if path.stem.partition("-")[0] in services:
            text = path.read_text()
            assert text, path
            lines += [json.loads(line) for line in text.splitlines()]
    assert {line["service"] for line in lines} == services
    return lines


def only(lines: list[Line], **fields: Any) -> list[Line]:
    return [
        line for line in lines if all(line.get(name) == value for name, value in fields.items())
    ]


def follow_through_the_workers(lines: list[Line], trace_id: str) -> Line:
    """Go from a trace id to one line of each worker, and on to the dispatcher; return the ids."""
    of_the_trace = only(lines, trace_id=trace_id)
    done = only(of_the_trace, event="stage run succeeded")
    assert {line["service"] for line in done} == WORKERS
    assert len(done) == len(WORKERS)
    (ids,) = {(line["recording_id"], line["job_id"]) for line in done}
    for line in done:
        assert line["attempt"] == 1
        assert line["stage_run_id"]
        (published,) = only(lines, event="shard published", shard_id=line["shard_id"])
        assert published["service"] == "dispatcher"
        assert published["job_id"] == line["job_id"]
        assert SERVICE_OF[Stage(published["stage"])] == line["service"]
    return {"recording_id": ids[0], "job_id": ids[1]}


def test_an_upload_is_followed_to_its_result(stack: Stack, jobs: dict[str, str]) -> None:
    lines = log_lines(stack)
    (stored,) = only(lines, trace_id=UPLOADED, event="recording stored")
    assert stored["service"] == "gateway"
    (request,) = only(lines, trace_id=UPLOADED, event="request")
    assert request["recording_id"] == stored["recording_id"]
    ids = follow_through_the_workers(lines, UPLOADED)
    assert ids == {"recording_id": stored["recording_id"], "job_id": jobs[UPLOADED]}
    recording = stack.http.get(f"/v1/recordings/{ids['recording_id']}").json()
    assert recording["trace_id"] == UPLOADED

    result = stack.http.get(f"/v1/recordings/{ids['recording_id']}/artifacts/enhanced")
    result.raise_for_status()
    route = "/v1/recordings/{recording_id}/artifacts/{kind}"
    (fetched,) = stack.until(lambda: only(log_lines(stack), route=route, status=200))
    assert fetched["recording_id"] == ids["recording_id"]
    assert fetched["trace_id"] == result.headers["traceresponse"].split("-")[1] != UPLOADED


def test_the_commands_of_the_page(stack: Stack, jobs: dict[str, str], tmp_path: Path) -> None:
    """``docs/tracing.md`` shows how: its commands find the same."""
    page = (ROOT / "docs" / "tracing.md").read_text().partition("## In OpenTelemetry")[0]
    script = "\n".join(re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    (done,) = {
        line["recording_id"]
        for line in only(log_lines(stack), trace_id=UPLOADED, event="stage run succeeded")
    }
    stack.http.get(f"/v1/recordings/{done}/artifacts/mask").raise_for_status()
    stack.until(lambda: only(log_lines(stack), recording_id=done, status=200))
    told = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "LOGS": str(stack.home.logs), "TRACE": UPLOADED},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    lines = [json.loads(line) for line in told.stdout.splitlines()]
    assert {line["service"] for line in only(lines, event="stage run succeeded")} == WORKERS
    assert len(only(lines, event="shard published", service="dispatcher")) == len(WORKERS)
    assert only(lines, event="request", service="gateway", recording_id=done, status=200)


def test_an_entry_of_an_archive_is_followed_from_its_source(
    stack: Stack, jobs: dict[str, str]
) -> None:
    lines = log_lines(stack)
    (request,) = only(lines, trace_id=ARCHIVED, service="gateway")
    read = only(lines, trace_id=ARCHIVED, service="ingester")
    assert {line["event"] for line in read} == {"recordings stored", "source read"}
    assert {line["source_id"] for line in read} == {request["source_id"]}
    ids = follow_through_the_workers(lines, ARCHIVED)
    assert ids["job_id"] == request["job_id"] == read[0]["job_id"] == jobs[ARCHIVED]
    recording = stack.http.get(f"/v1/recordings/{ids['recording_id']}").json()
    assert recording["source_id"] == request["source_id"]
    assert recording["trace_id"] == ARCHIVED


def test_the_spans_arrive_when_the_processes_end(
    stack: Stack, jobs: dict[str, str], collector: Receiver
) -> None:
    """Last: it stops the stack, as an upgrade would."""
    assert collector.received == []
    supervisor = psutil.Process(stack.state.pid)
    os.kill(stack.state.pid, signal.SIGTERM)
    supervisor.wait(STOP_TIMEOUT_S)
    assert {received.path for received in collector.received} == {"/v1/traces"}
    spans = [found for received in collector.received for found in read_spans(received.body)]
    for trace_id, route in (
        (UPLOADED, "POST /v1/jobs/{job_id}/recordings"),
        (ARCHIVED, "POST /v1/jobs/{job_id}/sources"),
    ):
        found = [(service, span) for service, span in spans if span.trace_id.hex() == trace_id]
        ((service, request),) = [pair for pair in found if pair[1].kind == Span.SPAN_KIND_SERVER]
        assert (service, request.name) == ("gateway", route)
        assert request.parent_span_id.hex() == CLIENT_SPAN
        assert facts(request)["http.response.status_code"] == 201
        assert facts(request)["http.route"] in route
        below = [pair for pair in found if pair[1].parent_span_id == request.span_id]
        check_attempts(stack, jobs[trace_id], [p for p in below if p[0] != "ingester"], spans)
        reads = [span for service, span in below if service == "ingester"]
        assert len(reads) == (trace_id == ARCHIVED)
        for span in reads:
            assert span.name == "read source"
            assert facts(span)["soundmill.outcome"] == "done"
            assert facts(span)["soundmill.recordings"] == 1


def check_attempts(
    stack: Stack, job_id: str, found: list[tuple[str, Span]], spans: list[tuple[str, Span]]
) -> None:
    """Compare the spans of a job's attempts with what the database holds of them."""
    columns = ", ".join(f"a.{phase}_s" for phase in PHASES)
    rows = stack.rows(
        f"SELECT r.stage, r.id, a.audio_s, a.finished_at - a.started_at, {columns}"
        " FROM attempt a JOIN stage_run r ON r.id = a.stage_run_id WHERE r.job_id = ?",
        job_id,
    )
    assert len(found) == len(rows) == len(WORKERS)
    by_service = dict(found)
    for stage, run_id, audio_s, took_s, *phases_s in rows:
        span = by_service[SERVICE_OF[Stage(stage)]]
        assert span.kind == Span.SPAN_KIND_CONSUMER
        assert span.status.code == Status.STATUS_CODE_UNSET
        told = facts(span)
        assert told["soundmill.stage_run_id"] == run_id
        assert told["soundmill.stage"] == stage
        assert told["soundmill.outcome"] == "succeeded"
        assert told["soundmill.device"] == "cpu"
        assert told["soundmill.audio_s"] == audio_s
        assert length_s(span) == pytest.approx(took_s, abs=1e-5)
        below = {s.name: length_s(s) for _, s in spans if s.parent_span_id == span.span_id}
        measured = {p: s for p, s in zip(PHASES, phases_s, strict=True) if s is not None}
        assert below == pytest.approx(measured, abs=1e-5)
        assert {"download", "decode", "upload"} <= set(below)


def read_spans(body: bytes) -> list[tuple[str, Span]]:
    """Return the spans of a request in OTLP, each with the service it is of."""
    found = []
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        told = {item.key: item.value.string_value for item in group.resource.attributes}
        assert told["service.namespace"] == "soundmill"
        found += [(told["service.name"], span) for part in group.scope_spans for span in part.spans]
    return found


def facts(span: Span) -> dict[str, Any]:
    """Return the attributes of a span."""
    return {
        item.key: getattr(item.value, str(item.value.WhichOneof("value")))
        for item in span.attributes
    }


def length_s(span: Span) -> float:
    return float(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
