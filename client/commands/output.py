"""What every command does with its results and its errors."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer
from rich.console import Console

from client.api import Job
from client.errors import JOB_ENDED_EARLY, SOME_FAILED
from client.report import Report
from common.domain import JobState
from common.errors import SoundmillError


@contextmanager
def told_plainly(as_json: bool = False) -> Iterator[None]:
    """Print expected errors as one sentence on standard error and leave with their exit code.

    With ``--json`` it is an object with the stable code as well.
    """
    try:
        yield
    except SoundmillError as error:
        fail(str(error), getattr(error, "exit_code", 1), as_json, error.code)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            name = error.filename or "a file"
            fail(f"The disk is full: {name} could not be written.", 1, as_json, "disk_full")
        fail(str(error), 1, as_json, "os_error")
    except KeyboardInterrupt:
        fail("interrupted", 130, as_json, "interrupted")


def fail(message: str, exit_code: int, as_json: bool = False, code: str = "error") -> None:
    """Print an error and leave."""
    if as_json:
        typer.echo(json.dumps({"error": {"code": code, "detail": message}}), err=True)
    else:
        typer.echo(f"soundmill: {message}", err=True)
    raise typer.Exit(exit_code)


def make_console(as_json: bool) -> Console:
    """Return the console for people; with JSON on standard output it is standard error."""
    console = Console(stderr=as_json)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 100  # a log or a file, wide enough for the table
    return console


def say(message: str) -> None:
    """Print a line at once; a closed pipe or a full disk is no reason to stop."""
    with suppress(OSError, ValueError):
        print(message, flush=True)


def say_json(content: Any) -> None:
    """Print JSON at once."""
    say(json.dumps(content, indent=1, default=str))


def say_job(job: Job, as_json: bool, text: str) -> None:
    """Print what became of a job: all of it as JSON, or one line."""
    if as_json:
        say_json(job.model_dump(mode="json"))
    else:
        say(text)


def finish(report: Report, console: Console, as_json: bool) -> None:
    """Print a report; leave with 3 when a recording failed."""
    if as_json:
        say_json(report.as_json())
    else:
        report.print(console)
    if report.failures:
        raise typer.Exit(SOME_FAILED)
    leave_as(report.job)


def leave_as(job: Job) -> None:
    """Leave with the exit code that an ended job stands for; return when all is well."""
    if job.state in (JobState.CANCELLED, JobState.EXPIRED):
        raise typer.Exit(JOB_ENDED_EARLY)
    if job.is_finished and job.has_failures:
        raise typer.Exit(SOME_FAILED)
