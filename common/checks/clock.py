"""Clocks: how far this machine's is from those of the servers.

Leases, deadlines and all times in the database are told by the database's clock, so clocks apart
lose no work. What suffers is what is signed or stamped here: links to the store end early or late,
receivers of webhooks refuse stamps that are minutes off, an S3 server refuses what is signed a
quarter of an hour off, ids and log lines of several machines do not sort by time, and limits of
requests begin their minutes at different moments.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.checks.base import Check, Clock, Status, failed, ok
from common.settings import Settings

CLOCK = "clock"
REFUSED_FROM_S = 300.0  # receivers of webhooks refuse a stamp that is older (Standard Webhooks)
ADVICE = "Have all machines keep their clocks by NTP."


def judge(clocks: Sequence[Clock], settings: Settings) -> Check:
    """Return whether the clocks are close enough."""
    if not clocks:
        return ok(CLOCK, "there is no other clock to compare with")
    apart_s = max(clock.surely_apart_s for clock in clocks)
    if apart_s > settings.max_clock_skew_s:
        off = [words(c) for c in clocks if c.surely_apart_s > settings.max_clock_skew_s]
        detail = f"this machine's clock is {' and '.join(off)}"
        if apart_s > REFUSED_FROM_S:
            return failed(CLOCK, detail, ADVICE, passes=True)
        return Check(CLOCK, Status.WARNING, detail, ADVICE)
    names = ", ".join(clock.of for clock in clocks)
    most_s = max(abs(clock.ahead_s) for clock in clocks)
    return ok(CLOCK, f"within {max(most_s, 0.1):.1f} s of {names}")


def words(clock: Clock) -> str:
    """Return how far apart: ``12 s ahead of the database``."""
    side = "ahead of" if clock.ahead_s > 0 else "behind"
    name = "Redis" if clock.of == "redis" else f"the {clock.of}"
    return f"{abs(clock.ahead_s):.0f} s {side} {name}"
