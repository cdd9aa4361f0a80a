"""Follows a job to its end: told by the gateway, or by asking when it cannot tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from client.api import Gateway, Job, JobEvent
from client.errors import GatewayUnreachable, Problem

POLL_S = 2.0
LEAST_PAUSE_S = 0.3  # between two looks at the job, however much happens


def through(job: Job) -> int:
    """Return how many recordings every stage is through with."""
    return min((job.done(stage) for stage in job.stages), default=0)


def watch(gateway: Gateway, job: Job, update: Callable[[Job], None]) -> Job:
    """Return the job once it has ended; ``update`` is called with what is new about it."""
    for _event in happenings(gateway, job):
        job = gateway.job(job.id)
        update(job)
        if job.is_finished:
            return job
        time.sleep(LEAST_PAUSE_S)
    raise AssertionError("happenings do not end")


def happenings(gateway: Gateway, job: Job) -> Iterator[JobEvent | None]:
    """Yield the events of a job for ever; None when it is time to look without one.

    The stream of events may end, or not be there at all: too many listeners, or a proxy between.
    """
    last: int | None = None
    yield None
    while True:
        with suppress(Problem, GatewayUnreachable):
            for event in gateway.events(job.id, last):
                last = last if event.id is None else event.id
                yield event
        yield None
        time.sleep(POLL_S)
