"""Examines a gateway that is only reached by its address."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

import httpx

from client.api.connection import Connection
from client.doctor.sections import Section, section, warning
from client.errors import GatewayUnreachable
from common.checks import Check, Clock, Status, clock
from common.checks.base import failed, ok
from common.checks.store import DATE_ERROR_S
from common.settings import Settings

TIMEOUT_S = 15.0
START = "Look at the log of the gateway, or examine it from inside: `soundmill doctor` there."
KEY = "Set SOUNDMILL_API_KEY; `soundmill keys create` on the other side makes one."
OK = "ok"


def examine(url: str, key: str | None, now: Callable[[], float] = time.time) -> list[Section]:
    """Return what can be told from outside.

    Raises:
        GatewayUnreachable: nothing answers at the address.
    """
    connection = Connection(url, key)
    headers = {**connection.options["headers"], **connection._authorization("/")}
    options = {**connection.options, "timeout": TIMEOUT_S, "headers": headers}
    try:
        with httpx.Client(**options) as http:
            before = now()
            health = http.get("/health")
            after = now()
            ready = http.get("/ready")
            jobs = http.get("/v1/jobs", params={"limit": 1})
            metrics = http.get("/metrics")
    except httpx.HTTPError as error:
        raise GatewayUnreachable(f"No Soundmill gateway answers at {connection.url}.") from error
    found = [answering(health, connection.url), *clocks(health, before, after)]
    found += [access(jobs), release(metrics)]
    return [section("Gateway", found), section("What it leans on", leaning(ready))]


def answering(health: httpx.Response, url: str) -> Check:
    """Return whether what answers is a gateway of ours."""
    if health.is_success and document(health).get("status") == OK:
        return ok("gateway", f"answers at {url}")
    detail = f"what answers at {url} is no Soundmill gateway (status {health.status_code})"
    return failed("gateway", detail, "Look at the address, and at the proxy before it.")


def clocks(health: httpx.Response, before: float, after: float) -> Iterator[Check]:
    """Yield how far its clock is from ours, if its answer has a date."""
    try:
        theirs = parsedate_to_datetime(health.headers["Date"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return
    ahead_s = (before + after) / 2 - (theirs + DATE_ERROR_S)
    yield clock.judge([Clock("gateway", ahead_s, (after - before) / 2 + DATE_ERROR_S)], Settings())


def access(jobs: httpx.Response) -> Check:
    """Return whether the key opens anything."""
    if jobs.is_success:
        return ok("key", "it may read jobs")
    told = str(document(jobs).get("detail") or f"status {jobs.status_code}").rstrip(".")
    if jobs.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return failed("key", told, KEY)
    return failed("key", told, START)


def release(metrics: httpx.Response) -> Check:
    """Return whether it is of our release, if it tells."""
    ours = version("soundmill")
    lines = metrics.text.splitlines() if metrics.is_success else []
    for line in lines:
        if line.startswith("soundmill_build_info{"):
            theirs = line.partition('version="')[2].partition('"')[0]
            if theirs == ours:
                return ok("version", f"{ours}, as here")
            return warning("version", f"{theirs}, and {ours} here", "Use the same where you can.")
    return ok("version", f"{ours} here; the gateway does not tell its own")


def leaning(ready: httpx.Response) -> Iterator[Check]:
    """Yield what the gateway says of its own checks."""
    told = document(ready).get("checks")
    if not isinstance(told, dict) or not told:
        yield failed("ready", f"/ready answers with status {ready.status_code}", START)
        return
    for name, text in told.items():
        if text == OK:
            yield ok(name, OK)
        elif str(text).startswith(f"{OK}, but "):
            yield Check(name, Status.WARNING, str(text).removeprefix(f"{OK}, but "))
        else:
            yield failed(name, str(text), START)


def document(answer: httpx.Response) -> dict[str, Any]:
    """Return the JSON object of an answer; an empty one when it has none."""
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
