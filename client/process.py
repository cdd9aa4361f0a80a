"""``soundmill process`` and ``soundmill results``: from paths to a folder of results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from client import control
from client.api import Gateway, Job
from client.errors import ClientError, NotRunning
from client.fetch import fetch_all
from client.follow import Display, Follower, pace
from client.home import Home
from client.names import safe_name
from client.report import Report
from client.sources import Listing, describe
from client.stack import Options
from client.submit import NotSent, Submission, send_all
from common.domain import Priority, Stage, with_needs
from common.errors import SoundmillError

SHORT_ID = 8


class Interrupted(ClientError):
    """Ctrl-C while a job was followed; the job goes on."""

    exit_code = 130


@dataclass(frozen=True)
class Request:
    """What to do with the recordings."""

    name: str
    priority: Priority
    stages: list[Stage]
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where the gateway is: at ``url``, or that of the stack in ``home``, started if needed."""

    home: Home
    url: str = ""
    options: Options = field(default_factory=Options)
    keep: bool = False

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


@contextmanager
def connected(place: Place, console: Console) -> Iterator[Gateway]:
    """Connect to the gateway; a stack that was started for this is stopped at the end.

    It stays when it was to be kept, when the user interrupted (the job goes on), and when it has
    other work to do.
    """
    if place.url:
        with Gateway(place.url) as gateway:
            yield gateway
        return
    if control.find(place.home) is None:
        console.print("Starting Soundmill on this machine ...", highlight=False)
    running = control.ensure_running(place.home, place.options)
    stop_it = running.started_here and not place.keep
    try:
        with Gateway(running.state.url) as gateway:
            try:
                yield gateway
            except Interrupted:
                stop_it = False
                raise
            if stop_it and any(not job.is_finished for job in gateway.jobs()):
                console.print("Soundmill stays up: it has other jobs to do.")
                stop_it = False
    finally:
        if stop_it:
            stop_quietly(place.home)


def stop_quietly(home: Home) -> None:
    with control.shielded():
        try:
            control.stop(home)
        except NotRunning:
            return


def process(
    place: Place, listing: Listing, request: Request, out: Path | None, console: Console
) -> Report:
    """Send the recordings, follow the job, fetch its results and return the report."""
    if listing.skipped:
        console.print(describe(listing.skipped).capitalize() + ".", highlight=False)
    stages = with_needs(set(request.stages))
    with connected(place, console) as gateway:
        job = gateway.create_job(
            request.name, priority=request.priority, stages=stages, params=request.params
        )
        console.print(f"Job {job.id}: {len(listing.sources)} recordings", highlight=False)
        submission = Submission(len(listing.sources))
        try:
            with Display(console, len(listing.sources), stages) as display:
                follower = Follower(gateway, job, display, place.local_folder)
                try:
                    send_all(
                        gateway, job.id, listing, submission, lambda: follower.tick(submission.sent)
                    )
                except BaseException:
                    with suppress(SoundmillError):
                        gateway.close_job(job.id)
                    raise
                gateway.close_job(job.id)
                job = follower.until_finished(submission.sent)
            return collect(gateway, job, out, console, submission.not_sent)
        except KeyboardInterrupt:
            raise Interrupted(goes_on(place, job, submission)) from None


def goes_on(place: Place, job: Job, submission: Submission) -> str:
    """Return what to say when the user stops waiting."""
    lines = [f"Interrupted. Job {job.id} goes on in the background."]
    missing = submission.total - submission.sent - len(submission.not_sent)
    if missing:
        lines.append(f"{missing} recordings had not been sent yet and are not part of it.")
    lines.append(f"How far it is:   soundmill status {job.id}{place.arguments}")
    lines.append(f"Its results:     soundmill results {job.id}{place.arguments}")
    if not place.url:
        lines.append(f"Stop Soundmill:  soundmill down{place.arguments}")
    return "\n".join(lines)


def collect(
    gateway: Gateway, job: Job, out: Path | None, console: Console, not_sent: list[NotSent]
) -> Report:
    """Fetch what a job has produced so far and return the report."""
    folder = out or Path("soundmill-results") / f"{safe_name(job.name)}-{job.id[-SHORT_ID:]}"
    report = Report(job, job.stages, folder.absolute())
    with console.status("Fetching the results ..."):
        fetch_all(gateway, gateway.recordings(job.id), report.folder, report.add)
    report.add_not_sent(not_sent)
    report.write_csv()
    return report


def find_job(gateway: Gateway, text: str) -> Job:
    """Return the job with this id, the end of an id, a name, or the newest for ``last``.

    Raises:
        ClientError: when there is none, or an end of an id fits several.
    """
    if len(text) == 32:
        return gateway.job(text)
    found = []
    for job in gateway.jobs():
        if text in ("last", job.name):
            return job
        if job.id.endswith(text):
            found.append(job)
    if len(found) != 1:
        raise ClientError(f"{'No' if not found else 'More than one'} job fits {text!r}.")
    return found[0]


def describe_job(job: Job) -> str:
    """Return a job in one line."""
    done = {stage: job.done(stage) for stage in job.stages}
    stages = ", ".join(f"{stage} {number}/{job.recordings}" for stage, number in done.items())
    speed = "" if job.is_finished else f"; {pace(job)}"
    return f"{job.id}  {job.state:<9}  {job.name}: {stages}{speed}"
