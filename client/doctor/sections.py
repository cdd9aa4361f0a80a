"""What the doctor hands over: sections of checks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from common.checks import Check, Status


@dataclass(frozen=True)
class Section:
    """Checks that belong together, under one heading."""

    title: str
    checks: tuple[Check, ...]


def section(title: str, checks: Iterable[Check]) -> Section:
    """Return a section of any number of checks."""
    return Section(title, tuple(checks))


def count(sections: Iterable[Section], status: Status) -> int:
    """Return how many checks ended so."""
    return sum(check.status is status for one in sections for check in one.checks)


def warning(name: str, detail: str, advice: str = "") -> Check:
    """Return the check of something that works, but somebody should know."""
    return Check(name, Status.WARNING, detail, advice)
