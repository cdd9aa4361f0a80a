"""Sends the recordings of a listing to an open job, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus

from client.api import Gateway
from client.errors import Problem, SendingBroke
from client.sources import Listing, Source, Unreadable

FATAL = {HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.SERVICE_UNAVAILABLE}
"""Answers that hold for the recordings that follow as well: the job is gone or takes no more."""


@dataclass(frozen=True)
class NotSent:
    """A recording that did not reach the gateway, and why."""

    name: str
    reason: str


@dataclass
class Submission:
    """How far the sending is."""

    total: int
    sent: int = 0
    not_sent: list[NotSent] = field(default_factory=list)


def send_all(
    gateway: Gateway,
    job_id: str,
    listing: Listing,
    submission: Submission,
    tick: Callable[[], None],
) -> None:
    """Send every recording and note in ``submission`` how far that is; ``tick`` is called often.

    A recording that cannot be read here, or that the gateway refuses, is noted and left out.

    Raises:
        Problem: the gateway takes no more recordings at all.
        GatewayUnreachable: it does not answer.
    """
    for source in listing.sources:
        try:
            gateway.upload(job_id, source.name, partial(ticking, source, tick))
            submission.sent += 1
        except Unreadable as error:
            submission.not_sent.append(NotSent(source.name, str(error)))
        except Problem as problem:
            if problem.status in FATAL:
                raise
            submission.not_sent.append(NotSent(source.name, str(problem)))
        except SendingBroke as error:
            submission.not_sent.append(NotSent(source.name, str(error)))
        tick()


def ticking(source: Source, tick: Callable[[], None]) -> Iterator[bytes]:
    """Yield the blocks of a recording, calling ``tick`` before each."""
    for block in source.blocks():
        tick()
        yield block
