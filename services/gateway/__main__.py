"""Runs the gateway until SIGTERM or SIGINT: ``python -m services.gateway``."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI

from common import logs
from common.settings import Settings, get_settings
from services.gateway.app import create_app
from services.gateway.bodies import Receiver

BACKLOG = 2048
KEEP_ALIVE_S = 30
FINISH_S = 5.0  # for uploads to become whole after a signal to end
SHUTDOWN_S = 10
EXIT_NO_PORT = os.EX_UNAVAILABLE


class Server(uvicorn.Server):
    """Ends uploads that will not become whole, rather than waiting for them."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app = self.config.app
        if isinstance(app, FastAPI):
            receiver: Receiver = app.state.surroundings.receiver
            asyncio.get_running_loop().call_later(FINISH_S, receiver.close)
        await super().shutdown(sockets)


def listen(settings: Settings) -> socket.socket:
    """Return a listening socket on the host and port of the settings.

    Raises:
        OSError: the port is in use, or the address is not this machine's.
    """
    family, *_, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return socket.create_server(address[:2], family=family, backlog=BACKLOG)


def main() -> None:
    """Serve. Exits with ``EXIT_NO_PORT`` when the port cannot be had."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    settings = get_settings()
    logs.configure(settings, "gateway")
    log = logs.get_logger(__name__)
    where = f"{settings.host}:{settings.port}"
    try:
        server_socket = listen(settings)
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        reason = "the port is in use" if in_use else error.strerror or str(error)
        print(
            f"soundmill gateway: cannot listen on {where}: {reason}. "
            "Set SOUNDMILL_PORT or SOUNDMILL_HOST to another.",
            file=sys.stderr,
        )
        sys.exit(EXIT_NO_PORT)
    with server_socket:
        host, port = server_socket.getsockname()[:2]
        log.info("gateway listens", host=host, port=port)
        config = uvicorn.Config(
            create_app(settings),
            log_config=None,
            access_log=False,  # the application writes its own
            log_level=settings.log_level.lower(),
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=SHUTDOWN_S,
            server_header=False,
        )
        try:
            Server(config).run(sockets=[server_socket])
        finally:
            log.info("gateway stopped")


def _leave(_signal: int, _frame: FrameType | None) -> None:
    """End well. While it serves, uvicorn handles signals, and raises them again at its end."""
    sys.exit(0)


if __name__ == "__main__":
    main()
