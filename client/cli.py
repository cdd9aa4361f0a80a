"""The ``soundmill`` command, put together from ``client.commands``.

Exit codes: see ``client.errors``. ``soundmill --install-completion`` teaches the shell.
"""

from __future__ import annotations

import typer

from client.commands import (
    backup,
    doctor,
    jobs,
    keys,
    metrics,
    process,
    results,
    search,
    stack,
    submit,
)

app = typer.Typer(
    name="soundmill",
    help="Finds out what sounds in an archive of recordings, cleans it, and takes sounds out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

for command in (
    process.process,
    submit.submit,
    jobs.ls,
    jobs.status,
    jobs.watch,
    results.results,
    search.query,
    search.similar,
    search.text,
    metrics.metrics,
    jobs.retry,
    jobs.pause,
    jobs.resume,
    jobs.cancel,
    jobs.close,
    jobs.delete,
    stack.up,
    stack.down,
    doctor.doctor,
    backup.backup,
    backup.restore,
):
    app.command()(command)
app.add_typer(keys.app, name="keys")

if __name__ == "__main__":
    app()
