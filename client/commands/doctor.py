"""``doctor``: is it well, and what is to be done?"""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.commands.options import (
    DEFAULT_HOME,
    HomeOption,
    JsonOption,
    KeyOption,
    UrlOption,
)
from client.commands.output import make_console, say_json, told_plainly
from client.doctor import deployment, remote
from client.doctor.sections import Section, count
from client.doctor.target import target_of
from client.home import Home
from common.checks import Check, Status

MARKS = {Status.OK: ("✔", "green"), Status.WARNING: ("!", "yellow"), Status.FAILED: ("✘", "red")}


def doctor(
    context: typer.Context,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = "",
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Examine a deployment and say what to do. Exit code 1 when something does not work.

    The deployment is that of SOUNDMILL_DATABASE_URL and so on, if they are set, else the stack in
    the home. With --url: a gateway elsewhere, as far as it can be seen from here.
    """
    with told_plainly(as_json):
        if url:
            sections = remote.examine(url, key)
        else:
            source = context.get_parameter_source("home")
            named = source is not None and source.name == "COMMANDLINE"
            sections = deployment.examine(target_of(Home.at(home), named))
    if as_json:
        say_json(as_document(sections))
    else:
        show(sections, make_console(as_json))
    if count(sections, Status.FAILED):
        raise typer.Exit(1)


def as_document(sections: list[Section]) -> dict[str, object]:
    """Return what was found as JSON has it."""
    return {
        "well": not count(sections, Status.FAILED),
        "checks": [
            {
                "section": section.title,
                "name": check.name,
                "status": check.status.value,
                "detail": check.detail,
                "advice": check.advice,
            }
            for section in sections
            for check in section.checks
        ],
    }


def show(sections: list[Section], console: Console) -> None:
    """Print the sections as one table, with advice under what needs it, and a last line."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(width=1)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for number, section in enumerate(sections):
        if number:
            table.add_row()
        table.add_row("", Text(section.title, style="bold"))
        for check in section.checks:
            add(table, check)
    console.print(table, highlight=False)
    console.print()
    console.print(summary(sections))


def add(table: Table, check: Check) -> None:
    """Add the row of a check."""
    mark, colour = MARKS[check.status]
    said = Text(check.detail)
    if check.advice and check.status is not Status.OK:
        said.append(f"\n→ {check.advice}", style="bold")
    table.add_row(Text(mark, style=colour), check.name.replace("_", " "), said)


def summary(sections: list[Section]) -> Text:
    """Return the last line."""
    wrong, strange = count(sections, Status.FAILED), count(sections, Status.WARNING)
    well = count(sections, Status.OK)
    if wrong:
        line = f"{wrong} {'does' if wrong == 1 else 'do'} not work"
        return Text(f"{line}, {strange} to look at, {well} well.", style="red")
    if strange:
        return Text(f"It works; {strange} to look at, {well} well.", style="yellow")
    return Text(f"All is well: {well} checks.", style="green")
