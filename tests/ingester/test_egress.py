"""Requests to users' URLs: what may be reached, and what an answer may do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common.addresses import check_url, parse_url, resolve
from common.egress import Egress, request
from common.errors import UrlForbidden, UrlUnreachable
from common.settings import Settings

FORBIDDEN = [
    "http://127.0.0.1/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0.0.0.0/",
    "http://localhost/",
    "http://10.1.2.3/",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://100.64.0.1/",
    "http://224.0.0.1/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://[::1]/",
    "http://[::]/",
    "http://[fe80::1]/",
    "http://[fc00::1]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b:1::1]/",
    "http://[2002:7f00:1::]/",
    "http://[2002:c0a8:101::]/",
    "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",
    "http://[::127.0.0.1]/",
    "ftp://example.org/",
    "file:///etc/passwd",
    "gopher://example.org/",
    "http://user:password@8.8.8.8/",
    "http://8.8.8.8\\@127.0.0.1/",
    "http://8.8.8.8/a b",
    "http://8.8.8.8/a\nHost: x",
    "http:///path",
    "http://8.8.8.8:0/",
    "http://8.8.8.8:99999/",
    "http://[::1/",
    "//example.org/",
    "example.org",
]


def settings(**options: str) -> Settings:
    return Settings(home=Path("/nonexistent"), **options)


@pytest.mark.parametrize("url", FORBIDDEN)
def test_what_is_not_public_is_not_reached(url: str) -> None:
    with pytest.raises(UrlForbidden), request(settings(), "GET", url, timeout_s=1):
        pytest.fail("was reached")


@pytest.mark.parametrize("host", ["8.8.8.8", "[2001:4860:4860::8888]", "[64:ff9b::808:808]"])
def test_public_addresses_may_be_reached(host: str) -> None:
    target = check_url(settings(), f"http://{host}/a?b")
    assert resolve(settings(), target)
    assert target.path == "/a?b"


def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(2, 1, 6, "", ("8.8.8.8", 80)), (2, 1, 6, "", ("10.0.0.1", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: found)
    with pytest.raises(UrlForbidden):
        resolve(settings(), parse_url("http://two-faces.example/"))


def test_a_path_outside_ascii_is_escaped() -> None:
    assert parse_url("http://bücher.example/ä%20b?q=ö").url == (
        "http://xn--bcher-kva.example/%C3%A4%20b?q=%C3%B6"
    )


@dataclass
class Scripted:
    """A server that answers each connection with prepared bytes, then closes it."""

    port: int
    url: str
    answers: list[list[bytes]] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = Scripted(port, f"http://127.0.0.1:{port}")

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    for answer in server.answers.pop(0):
                        server.requests.append(connection.recv(65536))
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def fetch(server: Scripted, path: str = "/", **options: float) -> tuple[int, bytes]:
    allowed = settings(egress_allow=f"127.0.0.1:{server.port}")
    with request(allowed, "GET", server.url + path, **{"timeout_s": 2, **options}) as response:
        return response.status, b"".join(response.blocks)


def test_an_exempt_address_is_reached(scripted: Scripted) -> None:
    scripted.answers = [[b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"]]
    assert fetch(scripted, "/a") == (200, b"hello")
    assert scripted.requests[0].startswith(b"GET /a HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{scripted.port}\r\n".encode() in scripted.requests[0]


def test_an_exempt_network_is_reached(scripted: Scripted) -> None:
    scripted.answers = [[b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]]
    allowed = settings(egress_allow="example.org:80, 127.0.0.0/8")
    with request(allowed, "GET", scripted.url, timeout_s=2) as response:
        assert response.status == 200


def test_a_redirect_is_checked_anew(scripted: Scripted) -> None:
    moved = b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"
    scripted.answers = [[moved], [moved]]
    with pytest.raises(UrlForbidden):
        fetch(scripted, max_redirects=3)
    assert fetch(scripted)[0] == 302  # not followed unless asked for


def test_redirects_are_followed_up_to_a_number(scripted: Scripted) -> None:
    moved = b"HTTP/1.1 301 Moved\r\nLocation: /next\r\nContent-Length: 0\r\n\r\n"
    scripted.answers = [[moved], [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"]]
    assert fetch(scripted, max_redirects=1) == (200, b"ok")
    scripted.answers = [[moved], [moved]]
    with pytest.raises(UrlUnreachable, match="redirects"):
        fetch(scripted, max_redirects=1)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000 + b"\r\n\r\n",
    ],
    ids=["nothing", "short", "broken chunk", "not HTTP", "many headers", "long header"],
)
def test_a_broken_answer_is_unreachable(scripted: Scripted, answer: bytes) -> None:
    scripted.answers = [[answer]]
    with pytest.raises(UrlUnreachable):
        fetch(scripted)


def test_an_answer_that_ends_with_its_connection(scripted: Scripted) -> None:
    body = bytes(1 << 20)
    scripted.answers = [[b"HTTP/1.0 200 OK\r\n\r\n" + body]]
    assert fetch(scripted) == (200, body)


def test_silence_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, says nothing
        port = listener.getsockname()[1]
        with pytest.raises(UrlUnreachable):
            fetch(Scripted(port, f"http://127.0.0.1:{port}"), timeout_s=0.1)


def test_a_connection_serves_again_and_a_dead_one_is_replaced(scripted: Scripted) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"
    scripted.answers = [[answer + b"1", answer + b"2"], [answer + b"3"]]
    egress = Egress(settings(egress_allow="127.0.0.0/8"))
    read = []
    for _ in range(3):
        with egress.request("GET", scripted.url, timeout_s=2) as response:
            read += response.blocks
    egress.close()
    assert read == [b"1", b"2", b"3"]


def test_the_callers_own_errors_stay_what_they_are(scripted: Scripted) -> None:
    scripted.answers = [[b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"]]
    allowed = settings(egress_allow="127.0.0.0/8")
    with pytest.raises(OSError, match="mine"), request(allowed, "GET", scripted.url, timeout_s=2):
        raise OSError("mine")
