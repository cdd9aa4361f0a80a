"""What a process without an HTTP server of its own tells: /metrics, /health and /ready.

Daemon threads that serve GET and HEAD alone, one request per connection, a bounded number at once
and each for a bounded time, so that whoever reaches the port cannot hold the process up. Watching
never stops the work: when the port is taken, the log says so, and the monitor tries again.
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from common import forking, logs
from common.metrics import Exposition
from common.settings import Settings

log = logs.get_logger(__name__)

MOST_AT_ONCE = 16
REQUEST_S = 10.0  # from the connection to the end of the answer
BIND_AGAIN_S = 5.0
POLL_S = 0.1
CHECK_TIMEOUT_S = 3.0
CHECKS_FRESH_S = 1.0
OK = "ok"

Expose = Callable[[], Exposition]
Alive = Callable[[], str | None]
Checks = Callable[[], Mapping[str, str]]


class Pulse:
    """Tells whether a loop still turns: it calls ``beat`` now and then, others ask ``why_not``."""

    def __init__(self, of: str, longest_s: float) -> None:
        self._of = of
        self._longest_s = longest_s
        self._last = time.monotonic()

    def beat(self) -> None:
        """Note that the loop turns."""
        self._last = time.monotonic()

    def why_not(self) -> str | None:
        """Return None while the loop turns, otherwise a sentence."""
        silent_s = time.monotonic() - self._last
        if silent_s <= self._longest_s:
            return None
        return f"{self._of} has not turned for {silent_s:.0f} s"


def healthy() -> None:
    """Stand for a process that has no loop of its own: it is alive when it answers."""


def is_well(found: str) -> bool:
    """Whether what a check found is no reason to be unready: ``ok``, or ``ok, but ...``."""
    return found == OK or found.startswith(f"{OK}, but ")


def unchecked() -> Mapping[str, str]:
    """Stand for a process that leans on nothing."""
    return {}


class Monitor:
    """Serves on ``metrics_host:metrics_port``, once started; on nothing where that is None.

    Args:
        expose: Makes the page of metrics.
        alive: Returns None, or a sentence why the process does not get on with its work.
        checks: Returns by name "ok", "ok, but ..." or what is wrong. Called by one thread at a
            time; what takes longer than ``CHECK_TIMEOUT_S`` counts as wrong.
    """

    def __init__(
        self,
        settings: Settings,
        expose: Expose,
        alive: Alive = healthy,
        checks: Checks = unchecked,
    ) -> None:
        self._host = settings.metrics_host
        self._port = settings.metrics_port
        self._pages = _Pages(expose, alive, _Checker(checks))
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    @property
    def port(self) -> int | None:
        """The port that is listened on; None while there is none."""
        return None if self._server is None else int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to serve. A port that is taken is tried again every few seconds."""
        if self._port is None:
            return
        self._bind(tell=True)
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._serve,), name="monitor", daemon=True
        )
        self._thread.start()
        this = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forget(this()))

    def stop(self) -> None:
        """Serve no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Monitor:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def _serve(self) -> None:
        while self._server is None:
            if self._stop.wait(BIND_AGAIN_S):
                return
            self._bind(tell=False)
        with self._server as server:
            server.timeout = POLL_S
            while not self._stop.is_set():
                server.handle_request()
                server.service_actions()
        self._server = None

    def _bind(self, tell: bool) -> None:
        where: dict[str, Any] = {"host": self._host, "port": self._port}
        try:
            family, *_, address = socket.getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._server = _Server((str(address[0]), int(address[1])), family, self._pages)
        except OSError as error:
            if tell:
                log.error(
                    "metrics are not served: cannot listen, trying again",
                    **where,
                    detail=error.strerror or str(error),
                )
        else:
            log.info("monitor listens", **where | {"port": self.port})

    def forget(self) -> None:
        """Close the listening socket without a word: a forked child does not serve."""
        if self._server is not None:
            self._server.socket.close()
        self._server = self._thread = None


def _forget(monitor: Monitor | None) -> None:
    if monitor is not None:
        monitor.forget()


@dataclass(frozen=True)
class _Answer:
    status: HTTPStatus
    media_type: str
    body: bytes


class _Checker:
    """Runs the checks in a thread of its own, so that one that hangs holds up nobody else."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks
        self._changed = threading.Condition()
        self._running = False
        self._found: Mapping[str, str] = {}
        self._found_at = float("-inf")

    def results(self) -> Mapping[str, str]:
        """Return by name "ok" or what is wrong."""
        with self._changed:
            asked_at = time.monotonic() - CHECKS_FRESH_S
            if self._found_at < asked_at and not self._running:
                self._running = True
                forking.start_thread("checks", partial(copy_context().run, self._run))
            fresh = self._changed.wait_for(lambda: self._found_at >= asked_at, CHECK_TIMEOUT_S)
            if fresh:
                return self._found
            return {"checks": f"no answer within {CHECK_TIMEOUT_S:.0f} s"}

    def _run(self) -> None:
        try:
            found = self._checks()
        except Exception as error:  # whatever a driver raises: its kind says enough
            log.warning("checks failed", exc_info=error)
            found = {"checks": type(error).__name__}
        with self._changed:
            self._running = False
            self._found, self._found_at = found, time.monotonic()
            self._changed.notify_all()


class _Pages:
    def __init__(self, expose: Expose, alive: Alive, checker: _Checker) -> None:
        self._expose = expose
        self._alive = alive
        self._checker = checker

    def answer(self, path: str) -> _Answer:
        """Return the page at a path."""
        if path == "/metrics":
            page = self._expose()
            return _Answer(HTTPStatus.OK, page.media_type, page.body)
        if path == "/health":
            reason = self._alive()
            if reason is None:
                return _json(HTTPStatus.OK, {"status": OK})
            return _json(HTTPStatus.SERVICE_UNAVAILABLE, {"status": "stuck", "detail": reason})
        if path == "/ready":
            checks = dict(self._checker.results())
            if all(map(is_well, checks.values())):
                return _json(HTTPStatus.OK, {"status": "ready", "checks": checks})
            return _json(HTTPStatus.SERVICE_UNAVAILABLE, {"status": "not_ready", "checks": checks})
        return _json(HTTPStatus.NOT_FOUND, {"status": "not_found"})


def _json(status: HTTPStatus, content: dict[str, Any]) -> _Answer:
    return _Answer(status, "application/json", json.dumps(content).encode())


class _Server(socketserver.ThreadingTCPServer):
    """Takes a bounded number of connections and cuts off those that last too long."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = MOST_AT_ONCE

    def __init__(self, address: tuple[str, int], family: int, pages: _Pages) -> None:
        self.address_family = family
        self.pages = pages
        self._lock = threading.Lock()
        self._since: dict[Any, float] = {}
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            full = len(self._since) >= MOST_AT_ONCE
            if not full:
                self._since[request] = time.monotonic()
        if full:
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread could be started
            self._forget(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def service_actions(self) -> None:
        """Cut off who takes too long, however busily: called several times a second."""
        too_old = time.monotonic() - REQUEST_S
        with self._lock:
            late = [request for request, since in self._since.items() if since < too_old]
        for request in late:
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("monitor connection lost", exc_info=True)

    def _forget(self, request: Any) -> None:
        with self._lock:
            self._since.pop(request, None)


class _Handler(BaseHTTPRequestHandler):
    """One request per connection (HTTP/1.0)."""

    server: _Server
    timeout = REQUEST_S
    server_version = "soundmill"
    sys_version = ""

    def do_GET(self) -> None:
        self._respond(with_body=True)

    def do_HEAD(self) -> None:
        self._respond(with_body=False)

    def _respond(self, with_body: bool) -> None:
        try:
            with forking.kept_away():
                answer = self.server.pages.answer(self.path.partition("?")[0])
        except Exception as error:
            log.error("page of the monitor failed", path=self.path, exc_info=error)
            answer = _json(HTTPStatus.INTERNAL_SERVER_ERROR, {"status": "failed"})
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.media_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("monitor", request=format % args)
