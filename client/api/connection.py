"""What both kinds of ``Gateway`` know about their connection: address, key, patience, headers."""

from __future__ import annotations

import os
from ipaddress import ip_address
from typing import Any

import httpx

from client.api.call import Call
from client.api.events import EventReader
from client.api.tries import PATIENCE_S, Tries
from client.errors import GatewayUnreachable

TIMEOUT = httpx.Timeout(300.0, connect=10.0)
STREAM_TIMEOUT = httpx.Timeout(60.0, connect=10.0)  # the gateway's heartbeats come more often
KEY_VARIABLE = "SOUNDMILL_API_KEY"


class Connection:
    """Where the gateway is and how it is spoken to.

    Args:
        url: Address of the gateway, ``https://mill.example``.
        key: API key, by default that in ``SOUNDMILL_API_KEY``. It is sent to the gateway alone.
        patience_s: How long to try again, in pauses, while the gateway does not answer.
    """

    def __init__(self, url: str, key: str | None = None, patience_s: float | None = None) -> None:
        self.url = url.rstrip("/")
        self._key = os.environ.get(KEY_VARIABLE, "") if key is None else key
        self.patience_s = PATIENCE_S if patience_s is None else patience_s

    @property
    def options(self) -> dict[str, Any]:
        """The options of an ``httpx`` client."""
        return {
            "base_url": self.url,
            "timeout": TIMEOUT,
            "trust_env": not is_loopback(self.url),  # a proxy cannot reach this machine's loopback
            "headers": {"User-Agent": "soundmill"},
        }

    def tries(self, repeatable: bool = True) -> Tries:
        """Return the tries of a new request."""
        return Tries(self.patience_s, repeatable)

    def options_of(self, call: Call[Any]) -> dict[str, Any]:
        """Return the options of one request, but for its content."""
        headers = {**self._authorization(call.path), **call.headers}
        params = dict(call.params) or None  # an empty one would cut off the signature of a link
        return {"params": params, "json": call.json, "headers": headers}

    def stream_options(self, path: str, reader: EventReader | None) -> dict[str, Any]:
        """Return the options of a request for a stream of bytes, or of events."""
        if reader is None:
            return {"headers": self._authorization(path)}
        headers = {**self._authorization(path), **reader.headers}
        return {"headers": headers, "timeout": STREAM_TIMEOUT}

    def pause_after(
        self, error: httpx.HTTPError, tries: Tries, call: Call[Any] | None = None
    ) -> float:
        """Return the pause before the next try.

        Raises:
            GatewayUnreachable: there is none.
        """
        pause_s = tries.after_error(error)
        if pause_s is not None:
            return pause_s
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) or call is None:
            raise GatewayUnreachable(f"No Soundmill gateway answers at {self.url}.") from error
        raise GatewayUnreachable(
            f"The connection to {self.url} broke: {error or type(error).__name__}."
        ) from error

    def broke_off(self) -> GatewayUnreachable:
        """Return the error of bytes that end in the middle."""
        return GatewayUnreachable(f"What came from {self.url} broke off in the middle.")

    def _authorization(self, path: str) -> dict[str, str]:
        is_ours = path.startswith("/")
        return {"Authorization": f"Bearer {self._key}"} if self._key and is_ours else {}


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine's loopback."""
    host = httpx.URL(url).host
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
