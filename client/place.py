"""Where the gateway is: elsewhere at an address, or that of the stack on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from client import control
from client.api import Gateway, Job
from client.api.connection import is_loopback
from client.errors import Interrupted, NoSuchJob, NotRunning
from client.home import Home, StackState
from client.stack import Options
from common.domain import JobState

ID_LENGTH = 32


@dataclass(frozen=True)
class Place:
    """A gateway at ``url``, or that of the stack in ``home``.

    ``key`` None is the key of the environment, but a stack that only this machine reaches needs
    none and is told none: the one in the environment is for somewhere else.
    """

    home: Home
    url: str = ""
    key: str | None = None
    options: Options = field(default_factory=Options)

    @property
    def local_folder(self) -> Path | None:
        """The home of the stack on this machine, None for a gateway elsewhere."""
        return None if self.url else self.home.folder

    @property
    def arguments(self) -> str:
        """Return the command-line options that lead back here."""
        if self.url:
            return f" --url {self.url}"
        return "" if self.home == Home.at(Path("~/.soundmill")) else f" --home {self.home.folder}"

    def gateway(self, patience_s: float | None = None) -> Gateway:
        """Return a connection to the gateway at ``url``, or of the stack that runs in ``home``.

        Raises:
            NotRunning: there is none in ``home``.
        """
        if self.url:
            return Gateway(self.url, self.key, patience_s)
        state = control.find(self.home)
        if state is None:
            raise NotRunning(f"Nothing runs in {self.home.folder}. `soundmill up` starts it.")
        return self.local_gateway(state, patience_s)

    def local_gateway(self, state: StackState, patience_s: float | None = None) -> Gateway:
        """Return a connection to the gateway of a stack on this machine."""
        key = "" if self.key is None and is_loopback(state.url) else self.key
        return Gateway(state.url, key, patience_s)


@contextmanager
def started(
    place: Place, console: Console, *, keep: bool, patience_s: float | None = None
) -> Iterator[Gateway]:
    """Connect to the gateway; start a stack when there is none, and stop that one at the end.

    It stays when it is to be kept, when the user interrupted (the job goes on), and when it has
    other work to do.
    """
    if place.url:
        with place.gateway(patience_s) as gateway:
            yield gateway
        return
    if control.find(place.home) is None:
        console.print("Starting Soundmill on this machine ...", highlight=False)
    running = control.ensure_running(place.home, place.options)
    stop_it = running.started_here and not keep
    try:
        with place.local_gateway(running.state, patience_s) as gateway:
            try:
                yield gateway
            except Interrupted:
                stop_it = False
                raise
            if stop_it and has_work(gateway):
                console.print("Soundmill stays up: it has other jobs to do.")
                stop_it = False
    finally:
        if stop_it:
            stop_quietly(place.home)


def has_work(gateway: Gateway) -> bool:
    """Whether a job has not ended."""
    unfinished = (JobState.OPEN, JobState.CLOSED)
    return any(True for state in unfinished for _job in gateway.jobs(state=state))


def stop_quietly(home: Home) -> None:
    with control.shielded():
        try:
            control.stop(home)
        except NotRunning:
            return


def find_job(gateway: Gateway, text: str) -> Job:
    """Return the job with this id, the end of an id, a name, or the newest for ``last``.

    A dry run is never the last: it has no results.

    Raises:
        NoSuchJob: when there is none, or an end of an id fits several.
    """
    if len(text) == ID_LENGTH and set(text) <= set("0123456789abcdef"):
        return gateway.job(text)
    found = []
    for job in gateway.jobs():
        if text == job.name or (text == "last" and not job.dry_run):
            return job
        if job.id.endswith(text):
            found.append(job)
    if len(found) != 1:
        raise NoSuchJob(f"{'No' if not found else 'More than one'} job fits {text!r}.")
    return found[0]
