"""``results``: what came out of a job."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from client.api import Gateway, Job
from client.commands.options import (
    DEFAULT_HOME,
    HomeOption,
    JobArgument,
    JsonOption,
    KeyOption,
    OutOption,
    UrlOption,
)
from client.commands.output import finish, make_console, say, say_json, told_plainly
from client.errors import InputInvalid
from client.exports import ExportFormat, Table, name_of_export, write_export
from client.home import Home
from client.place import Place, find_job, started
from client.process import collect
from common.domain import ArtifactKind


def results(
    job: JobArgument,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = "",
    key: KeyOption = None,
    out: OutOption = None,
    format: Annotated[
        ExportFormat | None,
        typer.Option("--format", help="One file for the whole job instead of a folder."),
    ] = None,
    table: Annotated[Table, typer.Option(help="Which table, with --format.")] = Table.EVENTS,
    kind: Annotated[
        list[ArtifactKind] | None,
        typer.Option("--kind", help="A ZIP of the outputs of this kind. May be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch the results of a job, as far as there are any.

    A folder per recording and a table; or one file: --format, or --kind. With --out - it goes to
    standard output, else into the current folder or to --out.
    """
    console = make_console(as_json)
    with told_plainly(as_json):
        if format is not None and kind:
            raise InputInvalid("Give --format or --kind, not both.")
        with started(Place(Home.at(home), url, key), console, keep=False) as gateway:
            found = find_job(gateway, job)
            if format is not None or kind:
                export(gateway, found, out, format, table, kind or [], as_json)
                return
            report = collect(gateway, found, out, console, [])
        finish(report, console, as_json)


def export(
    gateway: Gateway,
    job: Job,
    out: Path | None,
    format: ExportFormat | None,
    table: Table,
    kinds: list[ArtifactKind],
    as_json: bool,
) -> None:
    """Write one file with results of the whole job."""
    what = name_of_export(job, format, table, kinds)
    blocks = gateway.export(job.id, what.path, **what.options)
    if out == Path("-"):
        with suppress(BrokenPipeError):
            for block in blocks:
                sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
            return
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads: be quiet
        return
    path = out / what.file_name if out is not None and out.is_dir() else out or Path(what.file_name)
    size_bytes = write_export(blocks, path)
    if as_json:
        say_json({"job": job.id, "file": str(path.absolute()), "size_bytes": size_bytes})
    else:
        say(f"{path} ({size_bytes} bytes)")
