"""``submit``: give work to Soundmill and leave."""

from __future__ import annotations

import signal
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.api import Estimate, Job
from client.commands.jobs import local, show_errors, watch_on_screen
from client.commands.keys import parse_duration_s
from client.commands.options import (
    DEFAULT_HOME,
    HomeOption,
    JsonOption,
    KeyOption,
    NameOption,
    ParamsOption,
    PriorityOption,
    RemoveOption,
    StageOption,
    UrlOption,
)
from client.commands.output import leave_as, make_console, say, say_json, told_plainly
from client.commands.process import job_name, read_params
from client.errors import SOME_FAILED, InputInvalid, Interrupted
from client.estimate import estimate_files, pace_of, together
from client.follow import clock
from client.home import Home
from client.inputs import Inputs, read_inputs
from client.journal import find_request
from client.place import Place, started
from client.sources import describe
from client.submission import Submission
from client.submissions import Order, Submitted, journal_folder, require_something
from client.submissions import submit as run_submit
from client.submit import Sender
from client.watch import watch
from client.watched import watch_folder as run_watch_folder
from common.domain import Priority, Stage, with_needs


def submit(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders, audio files, archives (.zip, .tar, .tar.gz, .tar.zst), manifests"
            " (.jsonl, .csv), https:// and s3:// addresses."
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = "",
    key: KeyOption = None,
    name: NameOption = "",
    stage: StageOption = None,
    remove: RemoveOption = None,
    params: ParamsOption = None,
    priority: PriorityOption = Priority.BULK,
    deadline: Annotated[
        datetime | None, typer.Option(help="Give up what has not been done by then.")
    ] = None,
    retention: Annotated[
        str, typer.Option(help="Delete the job so long after its end: 12h, 90d, 8w.")
    ] = "",
    job: Annotated[str, typer.Option("--job", help="Add to this open job.")] = "",
    left_open: Annotated[
        bool, typer.Option("--open", help="Leave the job open for more: `soundmill close` ends it.")
    ] = False,
    resume: Annotated[
        str, typer.Option("--resume", metavar="JOB", help="Go on with an interrupted submission.")
    ] = "",
    anew: Annotated[
        bool, typer.Option("--new", help="A new job, though the same was interrupted before.")
    ] = False,
    watch_folder: Annotated[
        Path | None,
        typer.Option("--watch-folder", help="Send what turns up in this folder, until Ctrl-C."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--watch", help="Then follow the job to its end.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it comes to and what would fail.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Send recordings to a job and leave; the work goes on. Prints the job.

    The same command goes on where it was interrupted. Exit code 0: everything was sent; 3: some
    could not be.
    """
    console = make_console(as_json)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the same as Ctrl-C
    with told_plainly(as_json):
        place = Place(Home.at(home), url, key)
        if resume:
            order = Order(**find_request(journal_folder(place), resume))
        else:
            folder = [str(watch_folder)] if watch_folder else []
            paths = [as_absolute(text) for text in (what or []) + folder]
            if not paths or (what and watch_folder):
                raise InputInvalid("Say what to submit: paths and addresses, or --watch-folder.")
            order = Order(
                where=url or str(place.home.folder),
                inputs=paths,
                name=name or name_for(paths[0]),
                stages=[str(one) for one in with_needs(set(stage or list(Stage)))],
                priority=str(priority),
                params=read_params(params, remove),
                deadline_at=None if deadline is None else str(local(deadline)),
                retention_s=parse_duration_s(retention) if retention else None,
                into=job,
                left_open=left_open,
                watched=watch_folder is not None,
            )
        if order.watched:
            run_watch_folder(place, order, console, say)
        inputs = read_inputs(order.inputs)
        require_something(inputs)
        if inputs.skipped:
            console.print(describe(inputs.skipped).capitalize() + ".", highlight=False)
        if dry_run:
            show_estimate(estimate(place, order, inputs, console), as_json)
            return
        done = run_submit(place, order, inputs, console, anew=anew)
        if follow:
            done = replace(done, job=follow_up(place, done.job, console))
        show(done, as_json)
        leave_as(done.job)
    if done.submission.not_sent:
        raise typer.Exit(SOME_FAILED)


def show(done: Submitted, as_json: bool) -> None:
    """Print what was sent and what was not."""
    if as_json:
        say_json(done.as_json())
        return
    for failure in done.submission.not_sent:
        typer.echo(f"not sent: {failure.name}: {failure.reason}", err=True)
    say(done.job.id)


def follow_up(place: Place, job: Job, console: Console) -> Job:
    """Follow a job and return it at its end."""
    console.print(f"Job {job.id}", highlight=False)
    with place.gateway() as gateway:
        try:
            ended = watch_on_screen(gateway, job, console)
        except KeyboardInterrupt:
            raise Interrupted(f"Interrupted. Job {job.id} goes on.") from None
    show_errors(ended, err=True)
    return ended


def estimate(place: Place, order: Order, inputs: Inputs, console: Console) -> Estimate:
    """Return what an order comes to; nothing is processed."""
    here = estimate_files(inputs.files)
    there = Estimate()
    with started(place, console, keep=False) as gateway:
        if inputs.bundles or inputs.urls or inputs.prefixes:
            job = order.request.create(gateway, dry_run=True)
            submission = Submission(len(inputs.bundles))
            sender = Sender(gateway, job.id, submission, lambda: None)
            sender.send_inputs(inputs.without_files())
            gateway.close_job(job.id)
            ended = watch(gateway, job, lambda _now: None)
            show_errors(ended, err=True)
            there = ended.estimate or there
        return together(here, there, pace_of(gateway, order.stages))


def show_estimate(found: Estimate, as_json: bool) -> None:
    """Print an estimate."""
    if as_json:
        say_json(found.model_dump(mode="json"))
        return
    say(f"{found.files} recordings, {found.size_bytes / 1e9:.3f} GB")
    unknown = f" besides {found.unknown_length} of unknown length" if found.unknown_length else ""
    say(f"{found.audio_s / 3600.0:.2f} hours of audio{unknown}")
    for code, number in found.would_fail.items():
        say(f"would fail: {number} ({code})")
    known = "not known: nothing like it was done yet" if found.eta_s is None else clock(found.eta_s)
    say(f"time to process: {known}")


def as_absolute(text: str) -> str:
    """Return a path so that it means the same from everywhere; an address as it is."""
    return text if "://" in text else str(Path(text).absolute())


def name_for(text: str) -> str:
    """Return a name for a job from what is submitted first."""
    return job_name(Path(text.rstrip("/").rpartition("/")[2] if "://" in text else text))
