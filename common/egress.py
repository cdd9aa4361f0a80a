"""Requests to URLs that users gave: to fetch a recording, to call a webhook.

Only public addresses are reached (``common.addresses``), also after a redirect; no proxy of the
environment is used; whoever answers too slowly is cut off. How many bytes of an answer are read is
the caller's choice: ``blocks`` yields them as they come.
"""

from __future__ import annotations

import io
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPResponse
from urllib.parse import urljoin

from common.addresses import Target, parse_url, resolve
from common.errors import UrlForbidden, UrlUnreachable
from common.settings import Settings

BLOCK_BYTES = 1 << 16
CONNECT_TIMEOUT_S = 10.0
MIN_BYTES_PER_S = 4_096  # a body may last as long as it comes at least this fast
MAX_IDLE = 32  # connections kept for the next request
REDIRECTS = frozenset({301, 302, 303, 307, 308})
REPEATABLE = frozenset({"GET", "HEAD"})
USER_AGENT = "soundmill"


@dataclass(frozen=True)
class EgressResponse:
    """An answer whose body has yet to be read. Names of ``headers`` are lower case."""

    status: int
    headers: dict[str, str]
    url: str  # after redirects
    blocks: Iterator[bytes]


@contextmanager
def request(
    settings: Settings,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    content: bytes | None = None,
    timeout_s: float,
    max_redirects: int = 0,
) -> Iterator[EgressResponse]:
    """Make one request; see ``Egress.request``."""
    egress = Egress(settings)
    try:
        with egress.request(
            method,
            url,
            headers=headers,
            content=content,
            timeout_s=timeout_s,
            max_redirects=max_redirects,
        ) as response:
            yield response
    finally:
        egress.close()


class Egress:
    """Makes requests and keeps connections for the next ones. Threads may share it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._idle: OrderedDict[_Connection, None] = OrderedDict()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            while self._idle:
                self._idle.popitem()[0].close()

    @contextmanager
    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        timeout_s: float,
        max_redirects: int = 0,
    ) -> Iterator[EgressResponse]:
        """Make a request; the answer's body is read inside the ``with`` block.

        Args:
            timeout_s: Until the headers are there; a body may pause no longer than that.
            max_redirects: How many are followed, for GET and HEAD; the answer is else the redirect.

        Raises:
            UrlForbidden: no URL that is followed, there or after a redirect.
            UrlUnreachable: no address, no connection, no HTTP, too slow, or too many redirects;
                also while ``blocks`` is read.
        """
        for _ in range(max_redirects + 1):
            target = parse_url(url)
            with ExitStack() as stack:
                with _errors(target):  # and of nothing that the caller does
                    answer = stack.enter_context(
                        self._send(target, method, headers, content, timeout_s)
                    )
                fields = {name.lower(): value for name, value in answer.getheaders()}
                location = fields.get("location")
                if answer.status in REDIRECTS and location and max_redirects:
                    url = urljoin(target.url, location)
                    if parse_url(url).authority != target.authority:
                        headers = None  # they were meant for the first host
                    continue
                yield EgressResponse(answer.status, fields, target.url, _blocks(target, answer))
                return
        raise UrlUnreachable(f"more than {max_redirects} redirects")

    @contextmanager
    def _send(
        self,
        target: Target,
        method: str,
        headers: Mapping[str, str] | None,
        content: bytes | None,
        timeout_s: float,
    ) -> Iterator[HTTPResponse]:
        sent = {
            "Host": target.authority,
            "User-Agent": USER_AGENT,
            "Accept-Encoding": "identity",
            **(headers or {}),
        }
        connection = self._take(target) if method in REPEATABLE else None
        answer = None
        if connection is not None:
            try:
                answer = connection.ask(method, target.path, content, sent, timeout_s)
            except (OSError, HTTPException):  # closed by the other side while it was idle
                connection.close()
        if connection is None or answer is None:
            connection = _Connection(target, resolve(self._settings, target), timeout_s)
            try:
                answer = connection.ask(method, target.path, content, sent, timeout_s)
            except BaseException:
                connection.close()
                raise
        whole = False
        try:
            yield answer
            whole = answer.isclosed() and not answer.will_close
        finally:
            if whole:
                self._keep(connection)
            else:
                answer.close()
                connection.close()

    def _take(self, target: Target) -> _Connection | None:
        with self._lock:
            for connection in reversed(self._idle):
                if connection.serves(target):
                    del self._idle[connection]
                    return connection
        return None

    def _keep(self, connection: _Connection) -> None:
        with self._lock:
            self._idle[connection] = None
            if len(self._idle) > MAX_IDLE:
                self._idle.popitem(last=False)[0].close()


class _Connection(HTTPConnection):
    """A connection to a checked address of a target."""

    def __init__(self, target: Target, addresses: list[str], timeout_s: float) -> None:
        super().__init__(target.host, target.port)
        self._target = target
        plain = _connect(addresses, target.port, min(CONNECT_TIMEOUT_S, timeout_s))
        try:
            if target.scheme == "https":
                plain = _tls().wrap_socket(plain, server_hostname=target.host)
        except BaseException:
            plain.close()
            raise
        self._timed = _TimedSocket(plain)
        self.sock = self._timed
        self.auto_open = 0  # never to the name, which was not checked

    def serves(self, target: Target) -> bool:
        mine = self._target
        return (mine.scheme, mine.host, mine.port) == (target.scheme, target.host, target.port)

    def ask(
        self,
        method: str,
        path: str,
        content: bytes | None,
        headers: dict[str, str],
        timeout_s: float,
    ) -> HTTPResponse:
        """Send a request; return the answer once its headers are there."""
        self._timed.start(timeout_s)
        self.request(method, path, content, headers)
        answer = self.getresponse()
        self._timed.in_body = True
        return answer


class _TimedSocket:
    """A socket for ``http.client`` that bounds not each read but all of them together."""

    def __init__(self, plain: socket.socket) -> None:
        self._plain = plain
        self._readers = 0
        self._closing = False
        self.start(CONNECT_TIMEOUT_S)

    def start(self, timeout_s: float) -> None:
        self._timeout_s, self._started = timeout_s, time.monotonic()
        self._received, self.in_body = 0, False

    def sendall(self, data: bytes) -> None:
        self._plain.settimeout(self._timeout_s)
        self._plain.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        self._readers += 1
        return io.BufferedReader(_TimedReader(self), BLOCK_BYTES)

    def receive(self, buffer: memoryview) -> int:
        left_s = self._timeout_s - (time.monotonic() - self._started)
        if self.in_body:
            left_s += self._received / MIN_BYTES_PER_S
        if left_s <= 0:
            raise TimeoutError("too slow")
        self._plain.settimeout(min(left_s, self._timeout_s))
        count = self._plain.recv_into(buffer)
        self._received += count
        return count

    def close(self) -> None:
        """Close as sockets do: once what ``makefile`` gave is closed as well."""
        self._closing = True
        if self._readers == 0:
            self._plain.close()

    def released(self) -> None:
        self._readers -= 1
        if self._closing and self._readers == 0:
            self._plain.close()


class _TimedReader(io.RawIOBase):
    def __init__(self, timed: _TimedSocket) -> None:
        self._timed = timed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return self._timed.receive(buffer)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._timed.released()


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _connect(addresses: list[str], port: int, timeout_s: float) -> socket.socket:
    failure: OSError = OSError("no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout_s)
        except OSError as error:
            failure = error
    raise failure


def _blocks(target: Target, answer: HTTPResponse) -> Iterator[bytes]:
    with _errors(target):
        while block := answer.read(BLOCK_BYTES):
            yield block
        if answer.length:
            raise UrlUnreachable(f"{target.host}: the answer ended {answer.length} bytes early")
        answer.close()


@contextmanager
def _errors(target: Target) -> Iterator[None]:
    """Turn the errors of sockets and of ``http.client`` into those of our tree."""
    try:
        yield
    except (UrlForbidden, UrlUnreachable):
        raise
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UrlUnreachable(f"{target.host}: {reason}") from error
