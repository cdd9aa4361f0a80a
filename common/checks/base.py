"""What a check finds, in words for people, and what follows from it for a process."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from common.settings import Settings

# A process that finds one of these at its start ends with it: they go on doing harm.
EXIT_SCHEMA = os.EX_DATAERR  # 65: tables are missing, or older than the code
EXIT_REFUSED = os.EX_NOPERM  # 77: a server does not accept our name, password or key
EXIT_CONFIG = os.EX_CONFIG  # 78: a setting, ours or of a server, that cannot be right

OK = "ok"


class Status(StrEnum):
    """How well something is."""

    OK = "ok"
    WARNING = "warning"  # works, but somebody should know
    FAILED = "failed"  # does not work, or would do harm


@dataclass(frozen=True)
class Check:
    """What one question brought to light. ``detail`` and ``advice`` are plain words, no secrets."""

    name: str
    status: Status
    detail: str
    advice: str = ""
    exit_code: int | None = None  # a process that finds this at its start ends with it
    passes: bool = False  # it may be well in a moment: worth waiting for

    @property
    def text(self) -> str:
        """One line for the page of readiness: ``ok``, ``ok, but ...``, or what is wrong."""
        if self.status is Status.OK:
            return OK
        return f"{OK}, but {self.detail}" if self.status is Status.WARNING else self.detail


@dataclass(frozen=True)
class Clock:
    """How far this machine's clock is ahead of another's, give or take ``error_s``."""

    of: str
    ahead_s: float
    error_s: float

    @property
    def surely_apart_s(self) -> float:
        """The least that the two can be apart."""
        return max(0.0, abs(self.ahead_s) - self.error_s)


@dataclass(frozen=True)
class Disk:
    """The room of a file system, and the folder by which it is known."""

    place: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Found:
    """What looking at one server or at the disks brought to light."""

    checks: tuple[Check, ...]
    clock: Clock | None = None
    disks: tuple[Disk, ...] = ()


@dataclass(frozen=True)
class Report:
    """What looking at everything brought to light."""

    checks: tuple[Check, ...]
    clocks: tuple[Clock, ...] = ()
    disks: tuple[Disk, ...] = ()

    @property
    def is_well(self) -> bool:
        """Whether nothing failed."""
        return not any(check.status is Status.FAILED for check in self.checks)


def ok(name: str, detail: str) -> Check:
    """Return the check of something that is well."""
    return Check(name, Status.OK, detail)


def unknown(name: str, why: str) -> Check:
    """Return the check of something that cannot be looked at."""
    return Check(name, Status.WARNING, f"it cannot be told: {why}")


def failed(
    name: str, detail: str, advice: str = "", exit_code: int | None = None, passes: bool = False
) -> Check:
    """Return the check of something that does not work."""
    return Check(name, Status.FAILED, detail, advice, exit_code, passes)


def first_line(text: str) -> str:
    """Return the first line of a message, without a full stop."""
    return next(iter(text.strip().splitlines()), "").strip().rstrip(".")


def without_secrets(text: str, settings: Settings) -> str:
    """Return ``text`` with every secret of the settings blotted out."""
    for secret in secrets_of(settings):
        text = text.replace(secret, "***")
    return text


def secrets_of(settings: Settings) -> Iterable[str]:
    """Yield what no message may hold: passwords in addresses, keys of the store."""
    for url in (settings.database_url, settings.redis_url):
        try:
            password = make_url(url.get_secret_value()).password
        except (ArgumentError, ValueError):
            continue
        if password:
            yield str(password)
    for key in (settings.s3_secret_key, settings.s3_access_key):
        if key.get_secret_value():
            yield key.get_secret_value()
