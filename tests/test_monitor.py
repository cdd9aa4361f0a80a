"""The small server of the processes that are not the gateway, also against hostile clients."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Mapping

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from common import monitor as monitor_module
from common.metrics import Exposition, expose
from common.monitor import MOST_AT_ONCE, Monitor, Pulse
from common.settings import Settings


class Process:
    """Stands for the process that is watched: says what a test wants it to say."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.turns = Counter("turns", "Turns.", registry=self.registry)
        self.stuck: str | None = None
        self.checks: Mapping[str, str] = {"database": "ok"}
        self.may_check = threading.Event()
        self.may_check.set()
        self.checked = 0
        self.fails = False

    def expose(self) -> Exposition:
        if self.fails:
            raise ValueError("no page")
        return expose(self.registry)

    def look(self) -> Mapping[str, str]:
        self.checked += 1
        self.may_check.wait()
        return self.checks

    def monitor(self, port: int = 0) -> Monitor:
        settings = Settings(metrics_port=port)
        return Monitor(settings, self.expose, lambda: self.stuck, self.look)


@pytest.fixture
def process() -> Process:
    return Process()


@pytest.fixture
def client(process: Process) -> Iterator[httpx.Client]:
    with (
        process.monitor() as monitor,
        httpx.Client(base_url=f"http://127.0.0.1:{monitor.port}", timeout=20) as client,
    ):
        yield client


def connect(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20)


def test_metrics_are_those_of_now(process: Process, client: httpx.Client) -> None:
    process.turns.inc(3)
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    total = next(s for s in families["turns"].samples if s.name == "turns_total")
    assert total.value == 3


def test_health_says_why_the_process_is_stuck(process: Process, client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    process.stuck = "the loop has not turned for 99 s"
    answer = client.get("/health")
    assert answer.status_code == 503
    assert answer.json() == {"status": "stuck", "detail": "the loop has not turned for 99 s"}


def test_ready_names_what_is_wrong(process: Process, client: httpx.Client) -> None:
    process.checks = {"database": "ok", "redis": "does not answer"}
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert answer.json() == {"status": "not_ready", "checks": process.checks}


def test_ready_when_all_is_well(client: httpx.Client) -> None:
    answer = client.get("/ready")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "checks": {"database": "ok"}}


def test_checks_that_hang_are_not_started_twice(
    process: Process, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_module, "CHECK_TIMEOUT_S", 0.05)
    process.may_check.clear()
    for _ in range(3):
        answer = client.get("/ready")
        assert answer.status_code == 503
        assert answer.json()["checks"] == {"checks": "no answer within 0 s"}
    assert process.checked == 1
    assert client.get("/health").status_code == 200
    process.may_check.set()


def test_a_page_that_fails_is_an_answer_too(process: Process, client: httpx.Client) -> None:
    process.fails = True
    assert client.get("/metrics").status_code == 500
    process.fails = False
    assert client.get("/metrics").status_code == 200


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/x", "/%00"])
def test_nothing_else_is_there(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_a_query_changes_nothing(client: httpx.Client) -> None:
    assert client.get("/metrics?name=x").status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "X"])
def test_other_methods_are_refused(client: httpx.Client, method: str) -> None:
    assert client.request(method, "/metrics").status_code == 501


def test_head_has_no_body(client: httpx.Client) -> None:
    answer = client.head("/health")
    assert answer.status_code == 200
    assert answer.content == b""
    assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize(
    "words",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 1000 + b"\r\n",
        b"\r\n\r\n",
        b"",
    ],
)
def test_what_is_not_http_ends(client: httpx.Client, words: bytes) -> None:
    with connect(client) as stranger:
        stranger.sendall(words)
        stranger.shutdown(socket.SHUT_WR)
        told = b""
        try:
            while block := stranger.recv(65536):
                told += block
        except ConnectionResetError:
            pass
    assert b" 200 " not in told.split(b"\r\n")[0]
    assert client.get("/health").status_code == 200


def test_a_connection_serves_one_request(client: httpx.Client) -> None:
    with connect(client) as greedy:
        greedy.sendall(b"GET /health HTTP/1.1\r\nConnection: keep-alive\r\n\r\n" * 2)
        told = b""
        try:
            while block := greedy.recv(65536):
                told += block
        except ConnectionResetError:
            pass  # the second request was never read
    assert told.count(b"HTTP/1.0 200") <= 1


def test_who_says_nothing_is_cut_off(
    process: Process, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many silent connections as there are places: they are refused or end, others come in."""
    monkeypatch.setattr(monitor_module, "REQUEST_S", 0.2)
    silent = [connect(client) for _ in range(MOST_AT_ONCE + 4)]
    try:
        for stranger in silent:
            assert stranger.recv(1) == b""
    finally:
        for stranger in silent:
            stranger.close()
    assert client.get("/health").status_code == 200


def test_a_taken_port_is_told_and_tried_again(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_module, "BIND_AGAIN_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        monitor = process.monitor(port)
        monitor.start()
        assert monitor.port is None
    try:
        url = f"http://127.0.0.1:{port}/health"
        transport = httpx.HTTPTransport(retries=8)  # waits in between, longer every time
        with httpx.Client(transport=transport) as client:
            assert client.get(url).status_code == 200
    finally:
        monitor.stop()


def test_an_address_of_another_machine_stops_nothing(process: Process) -> None:
    settings = Settings(metrics_host="192.0.2.1", metrics_port=0)
    with Monitor(settings, process.expose) as monitor:
        assert monitor.port is None


def test_without_a_port_nothing_is_served(process: Process) -> None:
    with Monitor(Settings(), process.expose) as monitor:
        assert monitor.port is None


def test_a_port_is_free_again_after_the_end(process: Process) -> None:
    with process.monitor() as monitor:
        port = monitor.port
        assert port
    with process.monitor(port) as again:
        assert again.port == port


def test_it_ends_also_before_it_has_begun(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = Monitor._serve

    def late(monitor: Monitor) -> None:
        monitor._stop.wait()
        serve(monitor)

    monkeypatch.setattr(Monitor, "_serve", late)
    monitor = process.monitor()
    monitor.start()
    stopping = threading.Thread(target=monitor.stop, daemon=True)
    stopping.start()
    stopping.join(10)
    assert not stopping.is_alive()


def test_a_forked_child_lets_go_of_the_port(process: Process) -> None:
    """What forks (Celery's parents do) must not leave the port with its children."""
    child_may_end, end_child = os.pipe()
    monitor = process.monitor()
    monitor.start()
    port = monitor.port
    assert port
    child = os.fork()
    if not child:
        os.close(end_child)
        os.read(child_may_end, 1)
        os._exit(0)
    try:
        monitor.stop()
        with process.monitor(port) as again:
            assert again.port == port
    finally:
        os.close(end_child)
        os.close(child_may_end)
        os.waitpid(child, 0)


def test_a_pulse_that_stops_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(monitor_module.time, "monotonic", lambda: now)
    pulse = Pulse("the dispatcher", longest_s=60.0)
    now = 160.0
    assert pulse.why_not() is None
    now = 161.0
    assert pulse.why_not() == "the dispatcher has not turned for 61 s"
    pulse.beat()
    assert pulse.why_not() is None
