"""Trace ids: what is taken from a header, what is made, and spans while nothing is sent."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import traces
from common.traces import Trace

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
GIVEN = f"00-{TRACE_ID}-{SPAN_ID}-01"  # the example of the standard


def test_the_example_of_the_standard() -> None:
    assert traces.parse(GIVEN) == Trace(TRACE_ID, SPAN_ID, sampled=True)
    assert str(traces.parse(GIVEN)) == GIVEN
    assert traces.parse(GIVEN[:-2] + "00") == Trace(TRACE_ID, SPAN_ID, sampled=False)
    assert traces.parse(GIVEN[:-2] + "02") == Trace(TRACE_ID, SPAN_ID, sampled=False)
    assert traces.trace_id_of(GIVEN) == TRACE_ID


@pytest.mark.parametrize(
    "hostile",
    [
        None,
        "",
        TRACE_ID,
        GIVEN.upper(),
        GIVEN + "\n",
        " " + GIVEN,
        GIVEN + "-extra",
        GIVEN.replace("00-", "ff-", 1),
        GIVEN.replace("00-", "01-", 1),
        GIVEN.replace("00-", "0-", 1),
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID[:-1]}g-{SPAN_ID}-01",
        f"00-{TRACE_ID[:-1]}-{SPAN_ID}-01",
        f"00-{TRACE_ID}{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-1",
        f"00-{TRACE_ID}-{SPAN_ID}-zz",
        GIVEN.replace("4", "\u0664"),  # a digit of another script
        "'; DROP TABLE recording; --" + GIVEN,
        GIVEN * 10_000,
    ],
)
def test_anything_else_is_no_trace(hostile: str | None) -> None:
    assert traces.parse(hostile) is None
    assert traces.trace_id_of(hostile) is None


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    assert traces.parse(text) is None or re.fullmatch(r"00-\w{32}-\w{16}-\w\w", text)


def test_of_several_headers_none_is_believed() -> None:
    assert traces.from_headers([GIVEN]) == traces.parse(GIVEN)
    assert traces.from_headers([]) is None
    assert traces.from_headers([GIVEN, GIVEN]) is None


def test_what_is_made_can_be_read() -> None:
    made = {traces.new() for _ in range(100)}
    assert len({trace.trace_id for trace in made}) == 100
    assert all(traces.parse(str(trace)) == trace for trace in made)


def test_without_opentelemetry_a_span_is_its_ids() -> None:
    assert traces.current() is None
    above = traces.parse(GIVEN)
    with traces.span("outer", above) as outer:
        assert outer.trace.trace_id == TRACE_ID
        assert outer.trace.span_id != SPAN_ID
        assert outer.trace.sampled
        assert traces.current() == str(outer.trace)
        with traces.span("inner", outer.trace) as inner:
            inner.note({"anything": 1})
            inner.fail("a reason")
            assert traces.current() == str(inner.trace)
        assert traces.current() == str(outer.trace)
    assert traces.current() is None
    traces.record("over", above, traces.Kind.CONSUMER, traces.Stretch(0.0, 1.0, {"a": 1.0}), {})
    with pytest.raises(KeyError), traces.span("fails", None):
        raise KeyError("x")
    assert traces.current() is None


PROGRAM = """
import sys
for name in {hidden}:
    sys.modules[name] = None  # as if it were not installed
from common import logs, traces
from common.settings import Settings
logs.configure(Settings(), "gateway")
traces.configure("gateway")
with traces.span("work", None):
    pass
traces.shutdown()
loaded = [name for name in sys.modules if name.startswith("opentelemetry.sdk")]
print("loaded" if loaded else "nothing loaded")
"""


def run(tmp_path: Path, hidden: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "SOUNDMILL_HOME": str(tmp_path), **environment}
    command = [sys.executable, "-c", PROGRAM.format(hidden=hidden)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True)


def test_without_an_endpoint_nothing_is_loaded(tmp_path: Path) -> None:
    done = run(tmp_path, [])
    assert done.stdout == "nothing loaded\n"
    assert done.stderr == ""


def test_settings_that_opentelemetry_refuses_stop_no_work(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk")
    done = run(
        tmp_path,
        [],
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
        OTEL_BSP_MAX_EXPORT_BATCH_SIZE="1000000",
    )
    (line,) = done.stderr.splitlines()
    told = json.loads(line)
    assert told["event"] == "no traces are sent: OpenTelemetry does not start"
    assert "max_export_batch_size" in told["detail"]


def test_an_endpoint_without_the_packages_is_told_once(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        ["opentelemetry.sdk", "opentelemetry.exporter"],
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4318",
    )
    (line,) = map(json.loads, done.stderr.splitlines())
    assert line["level"] == "warning"
    assert "soundmill[otel]" in line["event"]
    assert line["service"] == "gateway"
