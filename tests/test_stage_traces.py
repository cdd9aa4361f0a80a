"""What is sent of attempts: to a real receiver, in OTLP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from common import stage_traces, traces
from common.domain import Stage
from common.runs import Claim
from tests.e2e.test_tracing import facts, length_s, read_spans
from tests.receiver import Receiver, receiver
from tests.servers import free_port

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
ABOVE = "00f067aa0ba902b7"
BEGAN_S = 1_795_000_000.25


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiver() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{running.authority}")
        traces.configure("segmenter")
        yield running
        traces.shutdown()


def claim(run: str, traceparent: str | None) -> Claim:
    return Claim(
        stage_run_id=run,
        fence=2,
        stage=Stage.SEGMENT,
        job_id="job",
        recording_id="recording",
        name="a.wav",
        object_key="key",
        sha256="0" * 64,
        params={},
        failures=1,
        earlier_key=None,
        shard_id="shard",
        traceparent=traceparent,
        queue_wait_s=0.5,
    )


def row(run: str, outcome: str, **columns: Any) -> dict[str, Any]:
    """Return the columns of an attempt as they are committed."""
    phases = {f"{phase}_s": None for phase in stage_traces.PHASES}
    measured = {"error_code": None, "device": "cpu", "audio_s": None}
    times = {"started_at": BEGAN_S, "finished_at": BEGAN_S + 2.0}
    return {"run": run, "fence": 2, "outcome": outcome, **times, **measured, **phases, **columns}


def sent(collector: Receiver) -> list[Span]:
    """End what sends, as a process does; return what has arrived."""
    traces.shutdown()
    found = [pair for received in collector.received for pair in read_spans(received.body)]
    assert {service for service, _ in found} <= {"segmenter"}
    return [span for _, span in found]


def test_a_success_with_its_phases(collector: Receiver) -> None:
    phases = {"download_s": 0.125, "infer_s": 1.5, "upload_s": 0.25}
    given = traces.parse(f"00-{TRACE_ID}-{ABOVE}-01")
    stage_traces.tell_ends(
        [claim("run", str(given))], [row("run", "succeeded", audio_s=4.0, **phases)]
    )
    attempt, *below = sorted(sent(collector), key=lambda span: span.name in stage_traces.PHASES)
    assert attempt.name == "segment attempt"
    assert (attempt.trace_id.hex(), attempt.parent_span_id.hex()) == (TRACE_ID, ABOVE)
    assert attempt.start_time_unix_nano == int(BEGAN_S * 1e9)
    assert length_s(attempt) == 2.0
    assert facts(attempt) == {
        "soundmill.shard_id": "shard",
        "soundmill.job_id": "job",
        "soundmill.recording_id": "recording",
        "soundmill.stage_run_id": "run",
        "soundmill.attempt": 2,
        "soundmill.stage": "segment",
        "soundmill.outcome": "succeeded",
        "soundmill.device": "cpu",
        "soundmill.audio_s": 4.0,
        "soundmill.queue_wait_s": 0.5,
    }
    assert attempt.status.code == Status.STATUS_CODE_UNSET
    assert {span.parent_span_id for span in below} == {attempt.span_id}
    in_order = sorted(below, key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in in_order] == ["download", "infer", "upload"]
    assert [length_s(span) for span in in_order] == pytest.approx([0.125, 1.5, 0.25], abs=1e-6)


def test_a_failure_names_its_code(collector: Receiver) -> None:
    stage_traces.tell_ends(
        [claim("run", None)], [row("run", "transient", error_code="store_unavailable")]
    )
    (attempt,) = sent(collector)
    assert attempt.parent_span_id == b""
    assert attempt.status.code == Status.STATUS_CODE_ERROR
    assert attempt.status.message == facts(attempt)["error.type"] == "store_unavailable"
    assert facts(attempt)["soundmill.outcome"] == "transient"


def test_what_was_not_begun_or_not_sampled_is_not_sent(collector: Receiver) -> None:
    stage_traces.tell_ends(
        [claim("waited", None), claim("unsampled", f"00-{TRACE_ID}-{ABOVE}-00")],
        [row("waited", "transient", started_at=None), row("unsampled", "succeeded")],
    )
    assert sent(collector) == []


def test_a_collector_that_is_gone_costs_nothing_but_spans(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")  # seconds, less than we wait for it
    traces.configure("gateway")
    with traces.span("work", None) as span:
        assert span.trace.sampled
    traces.shutdown()
    assert "spans batch" in caplog.text
