"""``process``: recordings in, results out, in one go."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from client.api.call import sendable
from client.commands.options import (
    DEFAULT_HOME,
    HomeOption,
    JsonOption,
    KeyOption,
    NameOption,
    OutOption,
    ParamsOption,
    PortOption,
    PriorityOption,
    RemoveOption,
    StageOption,
    UrlOption,
    WorkersOption,
)
from client.commands.output import finish, make_console, told_plainly
from client.errors import ClientError
from client.home import Home
from client.place import Place
from client.process import Request
from client.process import process as run_process
from client.sources import clean_name, list_sources
from client.stack import Options
from common.domain import Priority, Stage


def process(
    paths: Annotated[list[Path], typer.Argument(help="Folders, audio files or ZIP archives.")],
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = "",
    key: KeyOption = None,
    out: OutOption = None,
    name: NameOption = "",
    stage: StageOption = None,
    remove: RemoveOption = None,
    params: ParamsOption = None,
    priority: PriorityOption = Priority.BULK,
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
    with told_plainly(as_json):
        listing = list_sources(paths)
        request = Request(
            name=name or job_name(paths[0]),
            priority=priority,
            stages=stage or list(Stage),
            params=read_params(params, remove),
        )
        place = Place(Home.at(home), url, key, Options(port=port, workers=workers))
        finish(run_process(place, listing, request, out, console, keep), console, as_json)


def read_params(path: Path | None, remove: list[str] | None) -> dict[str, Any]:
    """Return the parameters of a job from a JSON file and the options."""
    try:
        params: dict[str, Any] = json.loads(path.read_text()) if path else {}
    except ValueError as error:
        raise ClientError(f"{path} is not JSON: {error}.") from error
    if remove:
        params.setdefault("restore", {})["remove"] = [sendable(text) for text in remove]
    return params


def job_name(path: Path) -> str:
    """Return a name for a job from the path that was given."""
    path = path.resolve()
    return clean_name(path.name if path.is_dir() else path.stem)
