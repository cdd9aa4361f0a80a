"""Redis: can it be reached and written, and does it keep what it is given?

Losing Redis loses no work, since the database is the truth. But what it drops in silence is found
again only after minutes, and done again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from common.checks.base import (
    EXIT_CONFIG,
    EXIT_REFUSED,
    Check,
    Clock,
    Found,
    Status,
    failed,
    first_line,
    ok,
    unknown,
    without_secrets,
)
from common.metrics import count_broker_error
from common.settings import Settings

REDIS, POLICY = "redis", "redis_policy"
TIMEOUT_S = 2.0
NEARLY_FULL = 0.9
KEEPS_ALL = "noeviction"
ADDRESS = "Look at SOUNDMILL_REDIS_URL."
SPECIAL = "Write special characters of the password as %40, %2F and so on."
SET_POLICY = "Set `maxmemory-policy noeviction` in Redis."

Info = dict[str, Any]


class RedisLook:
    """Looks at the Redis of the settings.

    Args:
        now: This machine's clock, seconds since 1970.
    """

    def __init__(self, settings: Settings, now: Callable[[], float]) -> None:
        self._settings = settings
        self._now = now
        self._client: redis.Redis | None = None

    def __call__(self) -> Found:
        try:
            if self._client is None:
                self._client = connect(self._settings)
            where = where_is(self._settings)
        except ValueError:
            detail = "its address cannot be used"
            return _lost(failed(REDIS, detail, f"{ADDRESS} {SPECIAL}", EXIT_CONFIG))
        try:
            return self._look(self._client, where)
        except redis.AuthenticationError as error:
            count_broker_error(error)
            detail = f"{where} refuses the password, or wants one"
            return _lost(failed(REDIS, detail, f"{ADDRESS} {SPECIAL}", EXIT_REFUSED))
        except redis.RedisError as error:
            count_broker_error(error)
            told = first_line(without_secrets(str(error), self._settings))
            if "wrongpass" in told.lower() or "noauth" in told.lower():
                detail = f"{where} refuses the password, or wants one"
                return _lost(failed(REDIS, detail, f"{ADDRESS} {SPECIAL}", EXIT_REFUSED))
            return _lost(failed(REDIS, _words(error, told, where), ADDRESS, passes=True))

    def _look(self, client: redis.Redis, where: str) -> Found:
        client.ping()
        clock = self._clock(client)
        try:
            info: Info = client.info()
        except redis.ResponseError as error:  # managed ones forbid it now and then
            why = f"INFO is not allowed ({first_line(str(error))})"
            return Found((ok(REDIS, f"answers, {where}"), unknown(POLICY, why)), clock)
        return Found((_state(info, where), policy(info, _saves(client))), clock)

    def _clock(self, client: redis.Redis) -> Clock | None:
        before = self._now()
        try:
            seconds, micros = client.time()
        except redis.ResponseError:  # forbidden, and nothing but this look needs it
            return None
        after = self._now()
        return Clock("redis", (before + after) / 2 - seconds - micros / 1e6, (after - before) / 2)


def connect(settings: Settings) -> redis.Redis:
    """Return a client that gives up soon and tries nothing twice. Raises ValueError."""
    return redis.Redis.from_url(
        settings.redis_url.get_secret_value(),
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )


def where_is(settings: Settings) -> str:
    """Return what Redis may be called in front of people. Raises ValueError."""
    parts = urlsplit(settings.redis_url.get_secret_value())
    if parts.scheme == "unix":
        return f"socket {parts.path}"
    return f"{parts.hostname}:{parts.port or 6379}"


def policy(info: Info, saves: bool | None) -> Check:
    """Return whether Redis keeps what it is given.

    Args:
        info: The answer to INFO.
        saves: Whether it writes snapshots; None: not known.
    """
    found = str(info.get("maxmemory_policy", ""))
    limited = int(info.get("maxmemory", 0)) > 0
    if not found:
        return unknown(POLICY, "Redis does not tell its policy")
    if found.startswith("allkeys") and limited:
        detail = f"Redis evicts messages when its memory is full ({found})"
        return failed(POLICY, detail, SET_POLICY, EXIT_CONFIG)
    if found != KEEPS_ALL:
        harm = "counters of rate limits when full" if limited else "nothing: maxmemory is not set"
        return Check(POLICY, Status.WARNING, f"policy {found}: evicts {harm}", SET_POLICY)
    if int(info.get("aof_enabled", 0)):
        return ok(POLICY, "evicts nothing, appends to a file")
    if saves is None:
        return unknown(POLICY, "whether messages outlive a restart, as CONFIG is not allowed")
    if saves:
        return ok(POLICY, "evicts nothing, writes snapshots")
    detail = "messages do not outlive a restart: neither append-only file nor snapshots"
    advice = "Set `appendonly yes` in Redis. No work is lost without, but it waits and is repeated."
    return Check(POLICY, Status.WARNING, detail, advice)


def _state(info: Info, where: str) -> Check:
    if info.get("role") == "slave":
        return failed(REDIS, f"{where} is a replica, which only reads", ADDRESS, passes=True)
    if info.get("aof_last_write_status", "ok") != "ok":
        detail = f"{where} cannot write its append-only file and takes no messages"
        return failed(REDIS, detail, "Make room on the disk of Redis.", passes=True)
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if most and used > NEARLY_FULL * most:
        detail = f"{where} has used {used / most:.0%} of its memory"
        return Check(REDIS, Status.WARNING, detail, "Raise `maxmemory` of Redis.")
    return ok(REDIS, f"answers, {where}")


def _saves(client: redis.Redis) -> bool | None:
    try:
        return bool(client.config_get("save").get("save"))
    except redis.RedisError:
        return None


def _lost(check: Check) -> Found:
    return Found((check, unknown(POLICY, "Redis cannot be used")))


def _words(error: redis.RedisError, told: str, where: str) -> str:
    if isinstance(error, redis.TimeoutError):
        return f"no answer from {where} within {TIMEOUT_S:.0f} s"
    if isinstance(error, redis.BusyLoadingError):
        return f"{where} is still reading its file"
    if "refused" in told.lower():
        return f"nothing listens at {where}"
    if isinstance(error, redis.ConnectionError):
        return f"{where} cannot be reached ({told})"
    return f"{where} answers with an error: {told}"
