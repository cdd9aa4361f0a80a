"""The ``soundmill`` command."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from client import control
from client.errors import AlreadyRunning, ClientError, NotRunning
from client.home import Home
from client.process import (
    Place,
    Request,
    collect,
    connected,
    describe_job,
    find_job,
)
from client.process import (
    process as run_process,
)
from client.report import Report
from client.sources import clean_name, list_sources
from client.stack import Options, Supervisor
from common.domain import Priority, Stage
from common.errors import SoundmillError

SOME_FAILED = 3

app = typer.Typer(
    name="soundmill",
    help="Finds out what sounds in an archive of recordings, cleans it, and takes sounds out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

HomeOption = Annotated[
    Path,
    typer.Option("--home", envvar="SOUNDMILL_HOME", help="Folder of database, objects and logs."),
]
UrlOption = Annotated[
    str, typer.Option("--url", help="Use the gateway at this address instead of a local one.")
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for the results. Default: soundmill-results/JOB."),
]
WorkersOption = Annotated[
    int,
    typer.Option("--workers", min=0, help="Copies of each worker. Default: one per four cores."),
]
PortOption = Annotated[
    int | None,
    typer.Option("--port", min=1, max=65535, help="Default: 8420, or a free one if it is taken."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
DEFAULT_HOME = Path("~/.soundmill")


@contextmanager
def told_plainly() -> Iterator[None]:
    """Print expected errors as one sentence on standard error and leave with their exit code."""
    try:
        yield
    except SoundmillError as error:
        fail(str(error), getattr(error, "exit_code", 1))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fail(f"The disk is full: {error.filename or 'a file'} could not be written.", 1)
        fail(str(error), 1)
    except KeyboardInterrupt:
        fail("interrupted", 130)


def make_console(as_json: bool) -> Console:
    """Return the console for people; with JSON on standard output it is standard error."""
    console = Console(stderr=as_json)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 100  # a log or a file, wide enough for the table
    return console


def fail(message: str, exit_code: int) -> None:
    typer.echo(f"soundmill: {message}", err=True)
    raise typer.Exit(exit_code)


def say(message: str) -> None:
    """Print a line at once; a closed pipe or a full disk is no reason to stop."""
    with suppress(OSError, ValueError):
        print(message, flush=True)


@app.command()
def up(
    home: HomeOption = DEFAULT_HOME,
    port: PortOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    workers: WorkersOption = 0,
    detach: Annotated[bool, typer.Option("--detach", help="Run in the background.")] = False,
) -> None:
    """Run all of Soundmill on this machine until Ctrl-C (or `soundmill down`)."""
    place, options = Home.at(home), Options(host, port, workers)
    with told_plainly():
        try:
            if detach:
                state = control.start_detached(place, options)
                say(f"Soundmill is up at {state.url}. Stop it with `soundmill down`.")
            else:
                Supervisor(place, options, say).run()
        except AlreadyRunning as error:
            say(f"{error} It is left as it is.")


@app.command()
def down(home: HomeOption = DEFAULT_HOME) -> None:
    """Stop what `soundmill up` started."""
    with told_plainly():
        try:
            state = control.stop(Home.at(home))
            say(f"Soundmill at {state.url} is stopped.")
        except NotRunning as error:
            say(str(error))


@app.command()
def process(
    paths: Annotated[list[Path], typer.Argument(help="Folders, audio files or ZIP archives.")],
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = "",
    out: OutOption = None,
    name: Annotated[str, typer.Option(help="Name of the job. Default: that of the path.")] = "",
    stage: Annotated[
        list[Stage] | None,
        typer.Option("--stage", help="Only this stage and those it needs. May be repeated."),
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option("--remove", help="Label that the restorer takes out. May be repeated."),
    ] = None,
    params: Annotated[
        Path | None, typer.Option(help="JSON file with parameters per stage.")
    ] = None,
    priority: Annotated[Priority, typer.Option()] = Priority.BULK,
    workers: WorkersOption = 0,
    port: PortOption = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave Soundmill up afterwards.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Process recordings and fetch the results. Starts Soundmill if it is not up.

    Exit code 0: every recording succeeded; 3: some did not; 2: no audio found.
    """
    console = make_console(as_json)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the same as Ctrl-C
    with told_plainly():
        listing = list_sources(paths)
        request = Request(
            name=name or job_name(paths[0]),
            priority=priority,
            stages=stage or list(Stage),
            params=read_params(params, remove),
        )
        place = Place(Home.at(home), url, Options(port=port, workers=workers), keep)
        finish(run_process(place, listing, request, out, console), console, as_json)


@app.command()
def status(
    job: Annotated[str, typer.Argument(help="Id, end of an id, name, or `last`.")] = "",
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show how far a job is, or list the jobs."""
    with told_plainly():
        place = Place(Home.at(home), url)
        if not url and control.find(place.home) is None:
            raise NotRunning(f"Nothing runs in {place.home.folder}. `soundmill up` starts it.")
        with connected(place, Console(stderr=True)) as gateway:
            jobs = [find_job(gateway, job)] if job else list(gateway.jobs())
        if as_json:
            say(json.dumps([found.model_dump(mode="json") for found in jobs], indent=1))
            return
        for found in jobs:
            say(describe_job(found))
        if not jobs:
            say("There are no jobs yet.")


@app.command()
def results(
    job: Annotated[str, typer.Argument(help="Id, end of an id, name, or `last`.")],
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = "",
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch the results of a job, as far as there are any."""
    console = make_console(as_json)
    with told_plainly():
        with connected(Place(Home.at(home), url), console) as gateway:
            report = collect(gateway, find_job(gateway, job), out, console, [])
        finish(report, console, as_json)


def read_params(path: Path | None, remove: list[str] | None) -> dict[str, Any]:
    """Return the parameters of a job from a JSON file and the options."""
    try:
        params: dict[str, Any] = json.loads(path.read_text()) if path else {}
    except ValueError as error:
        raise ClientError(f"{path} is not JSON: {error}.") from error
    if remove:
        params.setdefault("restore", {})["remove"] = remove
    return params


def job_name(path: Path) -> str:
    """Return a name for a job from the path that was given."""
    path = path.resolve()
    return clean_name(path.name if path.is_dir() else path.stem)


def finish(report: Report, console: Console, as_json: bool) -> None:
    """Print a report; leave with 3 when a recording failed."""
    if as_json:
        say(json.dumps(report.as_json(), indent=1))
    else:
        report.print(console)
    if report.failures:
        raise typer.Exit(SOME_FAILED)


if __name__ == "__main__":
    app()
