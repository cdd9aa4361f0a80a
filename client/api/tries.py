"""Whether a request may be sent again, and after which pause. Neither sends nor waits."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx

from client.errors import Problem

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 5.0  # Ctrl-C waits for the pauses of other threads
PATIENCE_S = 8.0  # in all pauses together, for somebody who waits
UNATTENDED_PATIENCE_S = 300.0  # for a submission that runs over night
NOT_DONE = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
NOT_KNOWN = {HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT}  # a proxy lost the gateway


@dataclass
class Tries:
    """The tries of one request. ``repeatable``: again also when nobody knows if it arrived."""

    patience_s: float
    repeatable: bool = True
    _number: int = 0
    _paused_s: float = 0.0

    def after_error(self, error: httpx.HTTPError) -> float | None:
        """Return the pause before the next try, None when there is none."""
        if not self.repeatable and not isinstance(error, httpx.ConnectError):
            return None
        return self._pause(0.0)

    def after_answer(self, response: httpx.Response) -> float | None:
        """Return the pause before the next try, None when this answer is the last."""
        status = response.status_code
        if status in NOT_DONE or (self.repeatable and status in NOT_KNOWN):
            return self._pause(retry_after_s(response))
        return None

    def begin_anew(self) -> None:
        """Forget the failures so far: something got through."""
        self._number, self._paused_s = 0, 0.0

    def _pause(self, least_s: float) -> float | None:
        pause_s = max(min(FIRST_PAUSE_S * 2.0**self._number, LONGEST_PAUSE_S), least_s)
        if self._paused_s + pause_s > self.patience_s:
            return None
        self._number += 1
        self._paused_s += pause_s
        return pause_s


def retry_after_s(response: httpx.Response) -> float:
    """Return what ``Retry-After`` asks for in seconds, 0 when it does not or gives a date."""
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0


def raise_problem(response: httpx.Response) -> None:
    """Return if the request succeeded. The body of a failed one has been read.

    Raises:
        Problem: with the gateway's own code and sentence.
    """
    if response.is_success:
        return
    try:
        document = response.json()
        raise Problem(response.status_code, document["code"], document["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"The gateway answered {response.status_code} {response.reason_phrase}."
        raise Problem(response.status_code, "http_error", detail) from None


def content_of(response: httpx.Response) -> Any:
    """Return the decoded JSON of an answer, None when it is none."""
    is_json = response.headers.get("Content-Type", "").startswith("application/json")
    return response.json() if is_json and response.content else None
