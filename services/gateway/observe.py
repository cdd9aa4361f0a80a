"""What the gateway tells about itself: a request id, one log line and metrics per request."""

from __future__ import annotations

import re
import time
from http import HTTPStatus

from fastapi import Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common import logs, traces
from common.db import new_id
from common.metrics import NAMESPACE, REQUEST_BUCKETS_S
from common.traces import Kind, Span
from services.gateway import problems

log = logs.get_logger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
QUIET_ROUTES = frozenset({"/health", "/ready", "/metrics"})
FORM, RAW, MULTIPART = WAYS = ("form", "raw", "multipart")
CLIENT_GONE = 499  # in logs and metrics only: nobody is there to be told


class HttpMetrics:
    """Requests by method, route template and status; what they brought."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "http_requests",
            "Requests answered.",
            ["method", "route", "status"],
            namespace=NAMESPACE,
            registry=registry,
        )
        self.seconds = Histogram(
            "http_request_seconds",
            "Time from the first byte of a request to the last of its response.",
            ["method", "route"],
            namespace=NAMESPACE,
            registry=registry,
            buckets=REQUEST_BUCKETS_S,
        )
        self.in_progress = Gauge(
            "http_requests_in_progress",
            "Requests that are being answered.",
            namespace=NAMESPACE,
            registry=registry,
        )
        self.upload_bytes = Counter(
            "upload_bytes",
            "Bytes of request bodies whose recordings were stored.",
            namespace=NAMESPACE,
            registry=registry,
        )
        self.recordings_stored = Counter(
            "recordings_stored",
            "Files stored: by a form, as a raw body, or in parts (these may be archives).",
            ["way"],
            namespace=NAMESPACE,
            registry=registry,
        )
        for way in WAYS:
            self.recordings_stored.labels(way)


async def bind_ids(request: Request) -> None:
    """Add the ids in a request's path (``job_id``, ``recording_id``) to its log lines."""
    logs.bind_on(**_path_ids(request))


class Observed:
    """Wraps the application: every request gets ids, a log line, metrics, a span, and an answer.

    The trace id is that of a valid ``traceparent``, else a new one; the answer tells it in
    ``traceresponse``. An error that nobody foresaw is logged here with the ids that the answer
    holds.
    """

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        given = request.headers.get("x-request-id", "")
        request.state.request_id = given if REQUEST_ID.fullmatch(given) else new_id()
        above = traces.from_headers(request.headers.getlist("traceparent"))
        status = 0

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                ids = [
                    (b"x-request-id", request.state.request_id.encode()),
                    (b"traceresponse", str(span.trace).encode()),
                ]
                message["headers"] = [*message.get("headers", []), *ids]
            await send(message)

        started = time.perf_counter()
        with (
            traces.span(
                request.method, above, Kind.SERVER, sent=scope["path"] not in QUIET_ROUTES
            ) as span,
            logs.bind(request_id=request.state.request_id, trace_id=span.trace.trace_id),
            self._metrics.in_progress.track_inprogress(),
        ):
            try:
                await self._app(scope, receive, send_observed)
            except ClientDisconnect:
                status = CLIENT_GONE
            except Exception as error:
                log.error("request failed", path=request.url.path, exc_info=error)
                if not status:
                    response = problems.respond(request, problems.internal_error())
                    await response(scope, receive, send_observed)
            finally:
                self._record(request, status, time.perf_counter() - started, span)

    def _record(self, request: Request, status: int, seconds: float, span: Span) -> None:
        method = request.method if request.method in METHODS else "OTHER"
        route = getattr(request.scope.get("route"), "path", "unmatched")
        self._metrics.requests.labels(method, route, str(status or "none")).inc()
        self._metrics.seconds.labels(method, route).observe(seconds)
        ids = _path_ids(request)
        tell = log.debug if route in QUIET_ROUTES and status < HTTPStatus.BAD_REQUEST else log.info
        tell(
            "request",
            method=method,
            path=request.url.path,
            route=route,
            status=status,
            seconds=round(seconds, 4),
            **ids,
        )
        span.rename(f"{method} {route}")
        span.note(
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status or None,
                "soundmill.request_id": request.state.request_id,
                **{f"soundmill.{name}": value for name, value in ids.items()},
            }
        )
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            span.fail(str(status))


def _path_ids(request: Request) -> dict[str, str]:
    """Return the ids in a path, as far as they look like some."""
    return {
        name: value
        for name, value in request.path_params.items()
        if name.endswith("_id") and isinstance(value, str) and REQUEST_ID.fullmatch(value)
    }
