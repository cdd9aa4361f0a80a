"""Who may come in without a key, and what no request may hold.

An embedded stack serves one user on the loopback address. What listens there can be reached by
every web page that the user opens: from scripts of that page, and under a name that its author
lets point to 127.0.0.1. So a request without a key must name a loopback host and must not come
from the page of another site.
"""

from __future__ import annotations

import socket
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urlsplit

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway import problems
from services.gateway.problems import Problem, invalid


def is_loopback(host: str) -> bool:
    """Return whether a gateway that listens on ``host`` is reached from this machine alone."""
    try:
        found = socket.getaddrinfo(host or None, None, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    return all(ip_address(address[0]).is_loopback for *_, address in found)


def check_local(request: Request) -> None:
    """Return if a request without a key comes from this machine and from no other site's page.

    Raises:
        Problem: it does not.
    """
    host = request.headers.get("host", "")
    if not _names_loopback(host):
        raise Problem(
            HTTPStatus.FORBIDDEN,
            "host_forbidden",
            "Without an API key the Host header must name this machine: 127.0.0.1 or localhost.",
        )
    origin = request.headers.get("origin")
    if origin is not None and origin.lower() != f"http://{host.lower()}":
        raise Problem(
            HTTPStatus.FORBIDDEN,
            "origin_forbidden",
            "A page of another site may not use this gateway without an API key.",
        )


def _names_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


class NoNul:
    """Wraps the application: a path that holds a NUL is refused, as PostgreSQL does not take it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "\0" in scope["path"]:
            fault = invalid("request_invalid", "The path holds a NUL character.")
            await problems.respond(Request(scope), fault)(scope, receive, send)
        else:
            await self._app(scope, receive, send)
