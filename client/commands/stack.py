"""``up`` and ``down``: all of Soundmill on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from client import control
from client.commands.options import DEFAULT_HOME, HomeOption, JsonOption, PortOption, WorkersOption
from client.commands.output import say, say_json, told_plainly
from client.errors import AlreadyRunning, NotRunning
from client.home import Home
from client.stack import Options, Supervisor


def up(
    home: HomeOption = DEFAULT_HOME,
    port: PortOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    workers: WorkersOption = 0,
    detach: Annotated[bool, typer.Option("--detach", help="Run in the background.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run all of Soundmill on this machine until Ctrl-C (or `soundmill down`).

    Listening on an address that other machines reach needs a key: `soundmill keys create`.
    """
    place, options = Home.at(home), Options(host, port, workers)
    with told_plainly(as_json):
        try:
            if detach:
                state = control.start_detached(place, options)
                if as_json:
                    say_json({"url": state.url, "home": str(place.folder), "pid": state.pid})
                else:
                    say(f"Soundmill is up at {state.url}. Stop it with `soundmill down`.")
            else:
                Supervisor(place, options, say).run()
        except AlreadyRunning as error:
            say(f"{error} It is left as it is.")


def down(home: HomeOption = DEFAULT_HOME) -> None:
    """Stop what `soundmill up` started."""
    with told_plainly():
        try:
            state = control.stop(Home.at(home))
            say(f"Soundmill at {state.url} is stopped.")
        except NotRunning as error:
            say(str(error))
