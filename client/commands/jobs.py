"""``ls``, ``status``, ``watch``, and what changes a job."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console

from client.api import Gateway, Job
from client.commands.options import (
    DEFAULT_HOME,
    HomeOption,
    JobArgument,
    JsonOption,
    KeyOption,
    UrlOption,
    complete_job,
)
from client.commands.output import leave_as, make_console, say, say_job, say_json, told_plainly
from client.errors import Interrupted
from client.follow import Display, describe_job
from client.home import Home
from client.place import Place, find_job
from client.watch import through
from client.watch import watch as watch_job
from common.domain import JobState, Priority

Time = datetime | None


def ls(
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = "",
    key: KeyOption = None,
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs whose name holds this.")] = None,
    priority: Annotated[Priority | None, typer.Option(help="Only this class.")] = None,
    after: Annotated[Time, typer.Option(help="Only those made at or after this time.")] = None,
    before: Annotated[Time, typer.Option(help="Only those made before this time.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first."""
    with told_plainly(as_json):
        with Place(Home.at(home), url, key).gateway() as gateway:
            found = gateway.jobs(
                state=state,
                name=name,
                priority=priority,
                created_after=local(after),
                created_before=local(before),
            )
            jobs = [job for _, job in zip(range(limit), found, strict=False)]
        show_jobs(jobs, as_json)


def status(
    job: Annotated[
        str,
        typer.Argument(help="Id, end of an id, name, or `last`.", autocompletion=complete_job),
    ] = "",
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = "",
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how far a job is and what failed, or list the jobs."""
    with told_plainly(as_json), Place(Home.at(home), url, key).gateway() as gateway:
        if job:
            found = find_job(gateway, job)
            show_jobs([found], as_json)
            if not as_json:
                show_errors(found)
        else:
            show_jobs(list(gateway.jobs()), as_json)
            targets = Home.at(home).targets_path
            if not url and not as_json and targets.exists():
                say(f"Metrics of every process: {targets}")


def watch(
    job: JobArgument,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = "",
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow a job until it ends. With --json: one line of JSON whenever something changed.

    Exit code 0: every recording succeeded; 3: some did not; 4: it was cancelled or expired.
    """
    with told_plainly(as_json), Place(Home.at(home), url, key).gateway() as gateway:
        found = find_job(gateway, job)
        try:
            if as_json:
                ended = watch_job(gateway, found, lambda now: say(now.model_dump_json()))
            else:
                ended = watch_on_screen(gateway, found, make_console(False))
        except KeyboardInterrupt:
            raise Interrupted(f"Interrupted. Job {found.id} goes on.") from None
        if not as_json:
            say(describe_job(ended))
            show_errors(ended)
        leave_as(ended)


def watch_on_screen(gateway: Gateway, job: Job, console: Console) -> Job:
    """Follow a job with bars."""
    with Display(console, job.recordings, job.stages, first="done") as display:
        return watch_job(gateway, job, lambda now: display.update(through(now), now))


def retry(
    job: JobArgument,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = "",
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put what failed in a job back to work, and that alone."""
    with told_plainly(as_json), Place(Home.at(home), url, key).gateway() as gateway:
        found = gateway.retry_job(find_job(gateway, job).id)
        if as_json:
            say_json(found.model_dump(mode="json"))
        else:
            entries = f", {found.entries} entries read again" if found.entries else ""
            sources = f", {found.sources} sources read on" if found.sources else ""
            back = f"{found.retried} stage runs put back to work{entries}{sources}"
            say(f"Job {found.job.id}: {back}.")


def cancel(
    job: JobArgument,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = "",
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give up what a job has not done yet, running work included. Results stay."""
    place = Place(Home.at(home), url, key)
    change(place, job, as_json, "is cancelled", lambda gateway, job_id: gateway.cancel_job(job_id))


def pause(
    job: JobArgument,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = "",
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Begin nothing new of a job; what runs is finished."""
    place = Place(Home.at(home), url, key)
    change(place, job, as_json, "is paused", lambda gateway, job_id: gateway.pause_job(job_id))


def resume(
    job: JobArgument,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = "",
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go on with a paused job."""
    place = Place(Home.at(home), url, key)
    change(place, job, as_json, "goes on", lambda gateway, job_id: gateway.resume_job(job_id))


def close(
    job: JobArgument,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = "",
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say that no more recordings will come to a job that was left open."""
    place = Place(Home.at(home), url, key)
    change(
        place,
        job,
        as_json,
        "takes no more recordings",
        lambda gateway, job_id: gateway.close_job(job_id),
    )


def delete(
    job: JobArgument,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = "",
    key: KeyOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete a job with its recordings and all results."""
    with told_plainly(as_json), Place(Home.at(home), url, key).gateway() as gateway:
        found = find_job(gateway, job)
        question = f"Delete job {found.id} ({found.name}, {found.recordings} recordings)?"
        if not yes and not typer.confirm(question, err=True):
            raise typer.Exit(1)
        gateway.delete_job(found.id)
        say_job(found, as_json, f"Job {found.id} is deleted.")


def change(
    place: Place, job: str, as_json: bool, said: str, do: Callable[[Gateway, str], Job]
) -> None:
    """Change a job and say so."""
    with told_plainly(as_json), place.gateway() as gateway:
        changed = do(gateway, find_job(gateway, job).id)
        say_job(changed, as_json, f"Job {changed.id} {said}.")


def show_jobs(jobs: list[Job], as_json: bool) -> None:
    """Print jobs, one line each."""
    if as_json:
        say_json([found.model_dump(mode="json") for found in jobs])
        return
    for found in jobs:
        say(describe_job(found))
    if not jobs:
        say("There are no jobs.")


def show_errors(job: Job, err: bool = False) -> None:
    """Print what failed in a job, by kind, with an example each; ``err``: on standard error."""
    for error in job.errors:
        example = f", first {error.name}" if error.name else ""
        detail = f": {error.detail}" if error.detail else ""
        line = f"  {error.stage} {error.code}: {error.count}{example}{detail}"
        typer.echo(line, err=err)


def local(time: datetime | None) -> datetime | None:
    """Return a time that was given without a zone as one of this machine's zone."""
    return None if time is None else time.astimezone()
