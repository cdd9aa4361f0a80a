"""``backup`` and ``restore``: database and objects of this deployment, into a folder and back.

They work on the database and the store of the settings, as ``keys`` does, not through a gateway.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from sqlalchemy.exc import SQLAlchemyError

from client.commands.options import DEFAULT_HOME, HomeOption, JsonOption
from client.commands.output import make_console, say, say_json, told_plainly
from client.errors import SOME_FAILED, ClientError
from client.home import Home
from common.settings import Settings

if TYPE_CHECKING:
    from common.backup.make import Step
    from common.backup.manifest import Backup

FolderArgument = Annotated[Path, typer.Argument(help="Folder of the backup.")]
MIB = 1 << 20
SHOWN = 10


def backup(
    folder: FolderArgument,
    home: HomeOption = DEFAULT_HOME,
    check: Annotated[
        bool, typer.Option("--check", help="Only look at every byte of the backup in FOLDER.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Back up database and object store while everything goes on.

    Into a new folder, or one with an earlier backup: what has not changed is not copied again.
    The folder holds recordings and secrets: only its owner may read it. Exit code 3: objects that
    the database names were missing or changed in the store.
    """
    with told_plainly(as_json), prepared():
        from common.backup.make import make_backup
        from common.backup.restore import check_backup

        folder = folder.expanduser().absolute()
        if check:
            with Bars(make_console(as_json)) as bars:
                found = check_backup(folder, bars.tell)
            report(found, as_json, f"The backup in {folder} is whole")
            return
        with Bars(make_console(as_json)) as bars:
            made = make_backup(Settings(home=Home.at(home).folder), folder, bars.tell)
        report(
            made.backup,
            as_json,
            f"Backed up to {folder}",
            copied=made.copied,
            copied_bytes=made.copied_bytes,
            kept=made.kept,
        )
        flaws = made.backup.manifest.flaws
        for flaw in flaws[:SHOWN]:
            typer.echo(f"  {flaw.key}: {flaw.why} in the object store", err=True)
        if flaws:
            raise typer.Exit(SOME_FAILED)


def restore(
    folder: FolderArgument,
    home: HomeOption = DEFAULT_HOME,
    disable_webhooks: Annotated[
        bool, typer.Option("--disable-webhooks", help="Tell nobody: for a drill.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Put a backup into a new, empty database and object store, of the same kind or the other.

    Nothing may run on them meanwhile. Work that was in progress begins anew afterwards.
    """
    settings = Settings(home=Home.at(home).folder)
    with told_plainly(as_json), prepared(), at_rest(Home.at(home), settings):
        from common.backup.restore import restore_backup

        with Bars(make_console(as_json)) as bars:
            done = restore_backup(
                settings,
                folder.expanduser().absolute(),
                bars.tell,
                disable_webhooks=disable_webhooks,
            )
        report(
            done.backup,
            as_json,
            "Restored",
            runs_begun_anew=done.revived.runs,
            sources_begun_anew=done.revived.sources,
            uploads_given_up=done.revived.uploads,
            jobs_deleted=done.revived.deleted_jobs,
        )


@contextmanager
def prepared() -> Iterator[None]:
    """Say plainly what keeps the database from being used."""
    if find_spec("alembic") is None:
        raise ClientError("Backups need the extra soundmill[gateway].")
    try:
        yield
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", error)).partition("\n")[0]
        raise ClientError(f"The database does not answer as it should: {reason}.") from error


def at_rest(home: Home, settings: Settings) -> AbstractContextManager[None]:
    """Keep a stack from being started in a home whose own database is about to be filled.

    Raises:
        AlreadyRunning: one runs.
    """
    embedded = settings.database_url.get_secret_value().startswith("sqlite")
    return home.locked() if embedded else nullcontext()


class Bars:
    """Shows how far it is: bars on a terminal, nothing elsewhere."""

    def __init__(self, console: Console) -> None:
        self._bars: dict[str, TaskID] = {}
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description:<9}"),
                BarColumn(bar_width=40),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
                transient=True,
            )

    def __enter__(self) -> Bars:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def tell(self, step: Step) -> None:
        """Show a step."""
        if self._progress is None:
            return
        if step.what not in self._bars:
            self._bars[step.what] = self._progress.add_task(step.what, note="")
        note = f"{step.size_bytes / MIB:,.0f} MiB" if step.size_bytes else ""
        self._progress.update(
            self._bars[step.what], completed=step.done, total=step.total, note=note
        )


def report(found: Backup, as_json: bool, said: str, **counts: int) -> None:
    """Print what a backup holds, and what became of it."""
    manifest = found.manifest
    facts: dict[str, Any] = {
        "folder": str(found.folder),
        "created_at": datetime.fromtimestamp(manifest.created_at, UTC).isoformat(),
        "database": manifest.database,
        "schema": manifest.revision,
        "rows": manifest.rows,
        "objects": manifest.objects.count,
        "size_bytes": manifest.objects.size_bytes,
        "flaws": len(manifest.flaws),
        **counts,
    }
    if as_json:
        say_json(facts)
        return
    more = "".join(f", {number} {name.replace('_', ' ')}" for name, number in counts.items())
    size = f"{manifest.objects.size_bytes / MIB:,.1f} MiB"
    say(
        f"{said}: {manifest.rows} rows, {manifest.objects.count} objects ({size}),"
        f" as of {facts['created_at']}{more}."
    )
