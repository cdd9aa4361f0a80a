"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.home import Home
from client.place import Place
from common.domain import Priority, Stage
from common.errors import SoundmillError

DEFAULT_HOME = Path("~/.soundmill")
COMPLETED_JOBS = 50
COMPLETION_PATIENCE_S = 0.0

HomeOption = Annotated[
    Path,
    typer.Option("--home", envvar="SOUNDMILL_HOME", help="Folder of database, objects and logs."),
]
UrlOption = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="SOUNDMILL_URL",
        help="Use the gateway at this address instead of a local one.",
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        help="API key. Better in SOUNDMILL_API_KEY, where others cannot see it.",
    ),
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
NameOption = Annotated[str, typer.Option(help="Name of the job. Default: that of the path.")]
StageOption = Annotated[
    list[Stage] | None,
    typer.Option("--stage", help="Only this stage and those it needs. May be repeated."),
]
RemoveOption = Annotated[
    list[str] | None,
    typer.Option(
        "--remove", help="What the restorer takes out: a label, or words. May be repeated."
    ),
]
ParamsOption = Annotated[Path | None, typer.Option(help="JSON file with parameters per stage.")]
PriorityOption = Annotated[Priority, typer.Option()]


def complete_job(context: typer.Context, incomplete: str) -> list[str]:
    """Return ids of jobs for the shell: quickly, and nothing when there is no gateway."""
    home = Home.at(Path(context.params.get("home") or DEFAULT_HOME))
    place = Place(home, context.params.get("url") or "", context.params.get("key"))
    try:
        with place.gateway(COMPLETION_PATIENCE_S) as gateway:
            newest = (job for _, job in zip(range(COMPLETED_JOBS), gateway.jobs(), strict=False))
            return [job.id for job in newest if job.id.startswith(incomplete)]
    except (SoundmillError, OSError):
        return []


JobArgument = Annotated[
    str,
    typer.Argument(help="Id, end of an id, name, or `last`.", autocompletion=complete_job),
]
