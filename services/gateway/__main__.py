"""Runs the gateway until SIGTERM or SIGINT: ``python -m services.gateway``."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI
from sqlalchemy.exc import DBAPIError

from common import keys, logs, traces
from common.checks.start import require
from common.db import make_engine, make_readers
from common.settings import Settings, get_settings
from services.gateway.app import create_app
from services.gateway.context import Surroundings
from services.gateway.guard import is_loopback

BACKLOG = 2048
KEEP_ALIVE_S = 30
FINISH_S = 5.0  # for uploads to become whole after a signal to end
SHUTDOWN_S = 10
EXIT_NO_PORT = EXIT_NO_DATABASE = os.EX_UNAVAILABLE
EXIT_NO_KEY = os.EX_CONFIG


class Server(uvicorn.Server):
    """Ends what would not end by itself, rather than waiting for it: streams, stalled uploads."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app = self.config.app
        if isinstance(app, FastAPI):
            around: Surroundings = app.state.surroundings
            around.streams.close()
            asyncio.get_running_loop().call_later(FINISH_S, around.receiver.close)
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


def require_key(settings: Settings) -> None:
    """Exit when other machines could reach a gateway that nobody holds a key of."""
    if is_loopback(settings.host):
        return
    engine = make_engine(settings)
    try:
        with make_readers(engine)() as session:
            protected = keys.has_active(session)
    except DBAPIError as error:
        _exit(EXIT_NO_DATABASE, f"cannot read the API keys: {str(error.orig).strip()}.")
    finally:
        engine.dispose()
    if not protected:
        _exit(
            EXIT_NO_KEY,
            f"will not listen on {settings.host}: other machines reach it, and there is no API key."
            " Make one first: soundmill keys create.",
        )


def main() -> None:
    """Serve. Exits with a sentence when it may not or cannot: see ``common.checks.start``."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    settings = get_settings()
    logs.configure(settings, "gateway")
    log = logs.get_logger(__name__)
    require(settings, "gateway", await_database=not is_loopback(settings.host))
    require_key(settings)
    where = f"{settings.host}:{settings.port}"
    try:
        server_socket = listen(settings)
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        reason = "the port is in use" if in_use else error.strerror or str(error)
        _exit(
            EXIT_NO_PORT,
            f"cannot listen on {where}: {reason}. Set SOUNDMILL_PORT or SOUNDMILL_HOST to another.",
        )
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
        traces.configure("gateway")
        try:
            Server(config).run(sockets=[server_socket])
        finally:
            traces.shutdown()
            log.info("gateway stopped")


def _exit(code: int, why: str) -> NoReturn:
    print(f"soundmill gateway: {why}", file=sys.stderr)
    sys.exit(code)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    """End well. While it serves, uvicorn handles signals, and raises them again at its end."""
    sys.exit(0)


if __name__ == "__main__":
    main()
