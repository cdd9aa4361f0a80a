"""Runs the gateway until SIGTERM or SIGINT: ``python -m services.gateway``."""

from __future__ import annotations

import errno
import os
import socket
import sys

import uvicorn

from common import logs
from common.settings import Settings, get_settings
from services.gateway.app import create_app

BACKLOG = 2048
KEEP_ALIVE_S = 30
SHUTDOWN_S = 10
EXIT_NO_PORT = os.EX_UNAVAILABLE


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
    settings = get_settings()
    logs.configure(settings, "gateway")
    log = logs.get_logger(__name__)
    where = f"{settings.host}:{settings.port}"
    try:
        server_socket = listen(settings)
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"{error.strerror or error}"
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
        uvicorn.Server(config).run(sockets=[server_socket])
    log.info("gateway stopped")


if __name__ == "__main__":
    main()
