"""One id from upload to result: W3C trace context, and OpenTelemetry spans where they are wanted.

Every request has a trace id; recordings and sources keep it, so that the logs of all services can
be joined by it. Spans are sent only where the extra ``otel`` is installed and
``OTEL_EXPORTER_OTLP_ENDPOINT`` is set; otherwise a span is its ids and nothing else. A process that
forks makes the exporter in its children, at their first span.

Source: W3C Trace Context, https://www.w3.org/TR/trace-context/ (version 00).
"""

from __future__ import annotations

import importlib.util
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from common import logs

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logs.get_logger(__name__)

TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
SAMPLED = 0x01
NO_TRACE = "0" * 32
NO_SPAN = "0" * 16
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PACKAGES = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")
FLUSH_S = 3.0  # at most, when a process ends

Attributes = Mapping[str, str | int | float | bool | None]


class Kind(StrEnum):
    """Which side of a call a span is, in the words of OpenTelemetry."""

    SERVER = "SERVER"
    CONSUMER = "CONSUMER"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True)
class Trace:
    """A place in a trace: ``str`` of it is the header ``traceparent``."""

    trace_id: str  # 32 hexadecimal digits
    span_id: str  # 16
    sampled: bool = False  # its spans are sent to somebody

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{SAMPLED if self.sampled else 0:02x}"


_here: ContextVar[Trace | None] = ContextVar("trace", default=None)


def parse(header: str | None) -> Trace | None:
    """Return what a ``traceparent`` says; None when it is missing or not exactly as it must be."""
    match = TRACEPARENT.fullmatch(header or "")
    if match is None:
        return None
    trace_id, span_id, flags = match.groups()
    if trace_id == NO_TRACE or span_id == NO_SPAN:
        return None
    return Trace(trace_id, span_id, bool(int(flags, 16) & SAMPLED))


def from_headers(values: Sequence[str]) -> Trace | None:
    """Return the trace of a request that holds these ``traceparent`` headers: one, or none."""
    return parse(values[0]) if len(values) == 1 else None


def trace_id_of(traceparent: str | None) -> str | None:
    """Return the trace id in a stored ``traceparent``."""
    found = parse(traceparent)
    return None if found is None else found.trace_id


def new() -> Trace:
    """Return the beginning of a new trace."""
    return Trace(_random(16), _random(8))


def child_of(parent: Trace | None) -> Trace:
    """Return a new place in the same trace; in a new trace without a parent."""
    if parent is None:
        return new()
    return Trace(parent.trace_id, _random(8), parent.sampled)


def current() -> str | None:
    """Return the ``traceparent`` of the span that is open here, in this thread or task."""
    here = _here.get()
    return None if here is None else str(here)


def _random(size_bytes: int) -> str:
    """Return random digits that are not all zero."""
    while not any(found := os.urandom(size_bytes)):
        pass
    return found.hex()


class Span:
    """A stretch of work that is being traced."""

    def __init__(self, trace: Trace, recorded: Any = None) -> None:
        self.trace = trace
        self._recorded = recorded  # OpenTelemetry's own; None when nothing is sent

    def rename(self, name: str) -> None:
        """Name it again, when more is known."""
        if self._recorded is not None:
            self._recorded.update_name(name)

    def note(self, attributes: Attributes) -> None:
        """Add attributes. Those that are None are left out."""
        if self._recorded is not None:
            self._recorded.set_attributes(_present(attributes))

    def fail(self, why: str) -> None:
        """Mark it as failed. ``why`` is short and names no secret."""
        if self._recorded is not None:
            from opentelemetry.trace import Status, StatusCode

            self._recorded.set_status(Status(StatusCode.ERROR, why))


@contextmanager
def span(
    name: str,
    parent: Trace | None,
    kind: Kind = Kind.INTERNAL,
    attributes: Attributes | None = None,
    *,
    sent: bool = True,
) -> Iterator[Span]:
    """Open a span around the block; what escapes from the block marks it as failed.

    Args:
        sent: False gives it ids, but sends nothing.
    """
    tracer = _tracer() if sent else None
    opened = (
        Span(child_of(parent))
        if tracer is None
        else _open(tracer, name, parent, kind, _present(attributes or {}))
    )
    before = _here.set(opened.trace)
    try:
        yield opened
    except BaseException as error:
        opened.fail(type(error).__name__)
        raise
    finally:
        _here.reset(before)
        if opened._recorded is not None:
            opened._recorded.end()


@dataclass(frozen=True)
class Stretch:
    """Work that is over, and how long its parts took. ``began_at_s`` is in seconds since 1970."""

    began_at_s: float
    took_s: float
    parts_s: Mapping[str, float] = field(default_factory=dict)


def record(
    name: str,
    parent: Trace | None,
    kind: Kind,
    stretch: Stretch,
    attributes: Attributes,
    error: str | None = None,
) -> None:
    """Send a span for work that is over, and one below it for each of its parts.

    The parts may have taken turns many times; they are shown one after the other, each as long as
    it took in all.
    """
    tracer = _tracer()
    if tracer is None:
        return
    from opentelemetry.trace import set_span_in_context

    done = _open(tracer, name, parent, kind, _present(attributes), stretch.began_at_s)
    if error is not None:
        done.fail(error)
    within = set_span_in_context(done._recorded)
    at_s = stretch.began_at_s
    for part, took_s in stretch.parts_s.items():
        shown = tracer.start_span(part, within, start_time=_nanoseconds(at_s))
        at_s += took_s
        shown.end(_nanoseconds(at_s))
    done._recorded.end(_nanoseconds(stretch.began_at_s + stretch.took_s))


def _open(
    tracer: Any,
    name: str,
    parent: Trace | None,
    kind: Kind,
    attributes: dict[str, Any],
    began_at_s: float | None = None,
) -> Span:
    from opentelemetry import trace as otel
    from opentelemetry.context import Context

    context = Context()
    if parent is not None:
        flags = otel.TraceFlags(SAMPLED if parent.sampled else 0)
        above = otel.SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), True, flags)
        context = otel.set_span_in_context(otel.NonRecordingSpan(above), context)
    at = None if began_at_s is None else _nanoseconds(began_at_s)
    recorded = tracer.start_span(name, context, otel.SpanKind[kind], attributes, start_time=at)
    found = recorded.get_span_context()
    trace = Trace(
        f"{found.trace_id:032x}", f"{found.span_id:016x}", bool(found.trace_flags & SAMPLED)
    )
    return Span(trace, recorded)


def _present(attributes: Attributes) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


class _Exporting:
    """The tracer of this process, made at its first span."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._pid = 0  # of the process that the provider was made in
        self._provider: TracerProvider | None = None
        self._tracer: Any = None

    def tracer(self) -> Any:
        """Return a tracer whose exporter's thread lives in this process, not in its parent."""
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    self._provider = self._make()
                    self._tracer = self._provider.get_tracer("soundmill")
                    self._pid = os.getpid()
        return self._tracer

    def shutdown(self) -> None:
        """Send what waits, for a bounded time: a collector that is gone must not hold us up."""
        if self._pid != os.getpid() or self._provider is None:
            return
        sender = threading.Thread(target=self._provider.shutdown, daemon=True)
        sender.start()
        sender.join(FLUSH_S)

    def _make(self) -> TracerProvider:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create(
            {"service.name": self._service, "service.namespace": "soundmill"}
        )
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return provider


_exporting: _Exporting | None = None


def configure(service: str, *, forks: bool = False) -> None:
    """Send this process's spans from now on, where the environment says so.

    Args:
        forks: The work is done in child processes: each makes its own exporter.
    """
    global _exporting
    _exporting = None
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or not any(os.environ.get(name, "").strip() for name in ENDPOINTS):
        return
    if not all(_is_installed(package) for package in PACKAGES):
        log.warning(
            "no traces are sent: OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not"
            " installed; install soundmill[otel]"
        )
        return
    _exporting = _Exporting(service)
    if not forks:
        _tracer()


def shutdown() -> None:
    """Send what waits and send nothing more. Every process that may have spans ends with it."""
    global _exporting
    if _exporting is not None:
        _exporting.shutdown()
        _exporting = None


def _tracer() -> Any:
    global _exporting
    if _exporting is None:
        return None
    try:
        return _exporting.tracer()
    except Exception as error:  # a variable of OpenTelemetry's own that it cannot use
        _exporting = None
        log.error("no traces are sent: OpenTelemetry does not start", detail=str(error))
        return None


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False
