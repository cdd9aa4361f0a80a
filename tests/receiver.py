"""A real HTTP server on the loopback address that takes in webhooks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Received:
    """One request. Names of headers are lower case."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """What has arrived, and how it is answered: by ``answer``, or with 204."""

    url: str
    authority: str  # as the setting ``egress_allow`` takes it
    received: list[Received] = field(default_factory=list)
    answer: Callable[[Received], int] = lambda received: 204


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # the default resets connections when many come at once


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Run a receiver until the block ends. 3xx answers point to ``/elsewhere``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            received = Received(self.path, headers, body)
            here.received.append(received)
            self.send_response(here.answer(received))
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = Server(("127.0.0.1", 0), Handler)
    authority = f"127.0.0.1:{server.server_port}"
    here = Receiver(f"http://{authority}/hook", authority)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
