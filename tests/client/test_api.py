"""The typed client: both kinds alike, what is sent again, what a broken line costs."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from client.api import AsyncGateway, Gateway, PartAddress, asynchronous, sync
from client.api.events import EventReader
from client.api.tries import Tries
from client.errors import GatewayUnreachable, Problem

JOB = (
    b'{"id": "' + b"ab" * 16 + b'", "name": "harbour", "state": "open", "priority": "bulk",'
    b' "stages": ["segment"], "created_at": "2026-01-01T00:00:00Z", "finished_at": null,'
    b' "recordings": 0, "counts": {}, "audio_s_total": 0, "audio_s_done": 0, "rate": null,'
    b' "eta_s": null, "unheard_of": 1}'
)
RECORDING = b'{"id": "r", "position": 0, "name": "a.wav", "size_bytes": 6}'


@dataclass
class Seen:
    """A request as the server got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Server:
    """A server that gives scripted answers: (status, headers, body), None breaks the line."""

    url: str
    answers: list[tuple[int, dict[str, str], bytes] | None]
    seen: list[Seen] = field(default_factory=list)

    def will(self, *answers: tuple[int, dict[str, str], bytes] | None) -> None:
        self.answers.extend(answers)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = b""
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            found.seen.append(Seen(self.command, self.path, headers, body))
            script = found.answers.pop(0)
            if script is None:
                self.close_connection = True
                return
            status, given, content = script
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **given}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = True

        do_GET = do_POST = do_PUT = answer  # noqa: N815

        def log_message(self, *_args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        found = Server(f"http://127.0.0.1:{http.server_address[1]}", [])
        thread = threading.Thread(target=http.serve_forever, args=[0.01])
        thread.start()
        try:
            yield found
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.api.tries.FIRST_PAUSE_S", 0.001)


JSON = {"Content-Type": "application/json"}
OK = (200, JSON, JOB)
BUSY = (503, {"Retry-After": "0"}, b"")


def problem(status: int, code: str) -> tuple[int, dict[str, str], bytes]:
    kind = {"Content-Type": "application/problem+json"}
    return status, kind, f'{{"code": "{code}", "detail": "because"}}'.encode()


def test_both_kinds_of_gateway_have_the_same_methods() -> None:
    """What they send comes from the same functions, so names and signatures are the same."""
    threads = {n: m.make for n, m in vars(Gateway).items() if isinstance(m, sync.Method)}
    tasks = {n: m.make for n, m in vars(AsyncGateway).items() if isinstance(m, asynchronous.Method)}
    assert threads == tasks
    assert all(name == make.__name__ for name, make in threads.items())
    public = {name for name in vars(Gateway) if not name.startswith("_")}
    assert public == {name for name in vars(AsyncGateway) if not name.startswith("_")}
    with Gateway("http://127.0.0.1:9") as gateway:
        assert list(inspect.signature(gateway.close_job).parameters) == ["job_id"]


def test_every_call_is_documented() -> None:
    for method in vars(Gateway).values():
        if isinstance(method, sync.Method):
            assert method.make.__doc__, method.make


def test_busy_gateway_is_asked_again(server: Server) -> None:
    server.will(BUSY, (429, {"Retry-After": "0"}, b""), None, OK)
    with Gateway(server.url, key="sm_secret") as gateway:
        job = gateway.job("x")
    assert job.name == "harbour"
    assert [seen.headers["authorization"] for seen in server.seen] == ["Bearer sm_secret"] * 4


def test_async_gateway_does_the_same(server: Server, tmp_path: Path) -> None:
    page = b'{"jobs": [' + JOB + b'], "next_cursor": "abc"}'
    last = b'{"jobs": [' + JOB + b'], "next_cursor": null}'
    server.will(BUSY, None, OK, (200, JSON, page), (200, JSON, last), (200, {}, b"mask"))
    server.will(
        (200, {"Content-Type": "text/event-stream"}, b"id: 4\nevent: job.closed\ndata: {}\n\n")
    )
    server.will((201, JSON, RECORDING))

    async def talk() -> None:
        async with AsyncGateway(server.url) as gateway:
            assert (await gateway.job("x")).name == "harbour"
            assert len([job async for job in gateway.jobs(name="harb")]) == 2
            await gateway.download("r", "artifacts/mask", tmp_path / "mask")
            assert [event.id async for event in gateway.events("x", 3)] == [4]
            await gateway.upload("x", "a.wav", lambda: [b"abc", b"def"])

    asyncio.run(talk())
    assert (tmp_path / "mask").read_bytes() == b"mask"
    assert "cursor=abc" in server.seen[4].path
    assert server.seen[6].headers["last-event-id"] == "3"
    assert server.seen[7].body == b"abcdef"


def test_problem_has_the_gateways_code(server: Server) -> None:
    server.will(problem(404, "not_found"), (500, {}, b"<html>"))
    with Gateway(server.url) as gateway:
        with pytest.raises(Problem, match="because") as caught:
            gateway.job("x")
        assert (caught.value.status, caught.value.code) == (404, "not_found")
        with pytest.raises(Problem, match="answered 500"):
            gateway.job("x")
    assert len(server.seen) == 2


@pytest.mark.parametrize(("key", "times"), [("once", 3), (None, 1)])
def test_upload_is_repeated_only_under_a_key(server: Server, key: str | None, times: int) -> None:
    server.will(None, None, (201, JSON, RECORDING))
    opened = []

    def blocks() -> list[bytes]:
        opened.append(1)
        return [b"abc", b"def"]

    def send(gateway: Gateway) -> None:
        gateway.upload("x", "a.wav", blocks, idempotency_key=key)

    with Gateway(server.url) as gateway:
        if key is None:
            with pytest.raises(GatewayUnreachable, match="broke"):
                send(gateway)
        else:
            send(gateway)
    assert len(opened) == times
    assert [seen.body for seen in server.seen] == [b"abcdef"] * times
    assert {seen.headers.get("idempotency-key") for seen in server.seen} == {key}


def test_new_jobs_are_made_once(server: Server) -> None:
    server.will(None, OK)
    with Gateway(server.url) as gateway:
        gateway.create_job("harbour")
    first, second = (seen.headers["idempotency-key"] for seen in server.seen)
    assert first == second


def test_errors_of_the_blocks_come_through(server: Server) -> None:
    def blocks() -> Iterator[bytes]:
        yield b"abc"
        raise ValueError("no longer there")

    with Gateway(server.url) as gateway, pytest.raises(ValueError, match="no longer there"):
        gateway.upload("x", "a.wav", blocks, idempotency_key="k")


def test_download_that_breaks_begins_again(server: Server, tmp_path: Path) -> None:
    server.will((200, {"Content-Length": "9"}, b"half"), (200, {}, b"the whole"))
    with Gateway(server.url) as gateway:
        gateway.download("r", "artifacts/mask", tmp_path / "mask")
    assert (tmp_path / "mask").read_bytes() == b"the whole"


def test_export_that_breaks_off_never_looks_whole(server: Server) -> None:
    server.will((200, {"Content-Length": "9"}, b"half"))
    with Gateway(server.url) as gateway, pytest.raises(GatewayUnreachable, match="broke off"):
        list(gateway.export("x", "events.csv"))


def test_events_go_on_where_the_line_broke(server: Server) -> None:
    kind = {"Content-Type": "text/event-stream"}
    server.will(
        (200, {**kind, "Content-Length": "999"}, b"id: 1\nevent: job.created\ndata: {}\n\nid: 2\n"),
        BUSY,
        (200, kind, b'id: 2\nevent: job.closed\ndata: {"name":\ndata: "x"}\n\n'),
    )
    with Gateway(server.url) as gateway:
        events = list(gateway.events("x"))
    assert [(event.id, event.kind) for event in events] == [(1, "job.created"), (2, "job.closed")]
    assert events[1].data == {"name": "x"}
    assert [seen.headers.get("last-event-id") for seen in server.seen] == [None, "1", "1"]


def test_key_is_told_to_the_gateway_alone(server: Server) -> None:
    """A presigned address belongs to the object store."""
    server.will((200, {}, b""))
    with Gateway("http://127.0.0.1:9", key="sm_secret") as gateway:
        part = PartAddress(number=1, size_bytes=3, url=f"{server.url}/bucket/key?signature=1")
        gateway.put_part(part, lambda: [b"abc"])
    assert server.seen[0].path == "/bucket/key?signature=1"
    assert "authorization" not in server.seen[0].headers
    assert server.seen[0].headers["content-length"] == "3"
    assert "transfer-encoding" not in server.seen[0].headers


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_events_are_read_however_they_are_cut(size: int, end: bytes) -> None:
    lines = [b": hello", b"id: 7", b"event: progress", 'data: {"a": "\u2028"}'.encode(), b"", b""]
    stream = end.join(lines)
    reader = EventReader()
    cut = [stream[k : k + size] for k in range(0, len(stream), size)]
    events = [event for block in cut for event in reader.feed(block)]
    if end == b"\r":  # the last one waits for what follows
        events += reader.feed(b"\n")
    assert [(event.id, event.kind, event.data) for event in events] == [
        (7, "progress", {"a": "\u2028"})
    ]


def answer_of(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers={k.replace("_", "-"): v for k, v in headers.items()})


def test_patience_ends() -> None:
    tries = Tries(patience_s=2.0)
    assert tries.after_answer(answer_of(503)) == pytest.approx(0.001)
    assert tries.after_answer(answer_of(503, Retry_After="1")) == 1.0
    assert tries.after_answer(answer_of(503, Retry_After="1")) is None


@pytest.mark.parametrize(
    ("error", "again"),
    [(httpx.ConnectError("refused"), True), (httpx.ReadError("reset"), False)],
)
def test_what_may_have_arrived_is_not_repeated(error: httpx.HTTPError, again: bool) -> None:
    tries = Tries(patience_s=2.0, repeatable=False)
    assert (tries.after_error(error) is not None) == again
    assert (tries.after_answer(answer_of(502)) is not None) is False
    assert tries.after_answer(answer_of(503)) is not None
