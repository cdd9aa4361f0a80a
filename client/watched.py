"""Sends what turns up in a folder, each file once, until it is interrupted.

A file is taken when its size and time have not changed between two looks. All of them go into one
job that stays open; when that takes no more, the next file opens another. What was sent is in the
journal of the submission, so that nothing is sent twice after a restart.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from client.api import Gateway
from client.api.tries import UNATTENDED_PATIENCE_S
from client.errors import GatewayUnreachable, InputInvalid, Interrupted, Problem
from client.journal import Journal, opened
from client.place import Place, started
from client.sources import Source, Unreadable, list_folder
from client.submission import Submission
from client.submissions import Order, journal_folder, unfinished_job
from client.submit import Sender

LOOK_EVERY_S = 2.0


@dataclass
class Watched:
    """A folder and what is known about the files in it. ``seen`` is what the last look found."""

    folder: Path
    seen: dict[str, str] = field(default_factory=dict)  # name: identity
    refused: set[str] = field(default_factory=set)  # identities that cannot be sent

    def ready(self, arrived: set[str]) -> list[Source]:
        """Look again and return the files that have kept still since and were not sent."""
        found: dict[str, str] = {}
        ready = []
        for source in list_folder(self.folder, {}):
            try:
                identity = source.identity()
            except Unreadable:
                continue  # gone again
            found[source.name] = identity
            is_new = identity not in arrived and identity not in self.refused
            if is_new and self.seen.get(source.name) == identity and source.size_bytes():
                ready.append(source)
        self.seen = found
        return ready


def watch_folder(
    place: Place, order: Order, console: Console, say: Callable[[str], None]
) -> NoReturn:
    """Send what turns up in the order's folder, for ever.

    Raises:
        InputInvalid: there is no such folder.
        Interrupted: Ctrl-C; the same command goes on.
    """
    folder = Path(order.inputs[0])
    if not folder.is_dir():
        raise InputInvalid(f"{folder} is no folder.")
    watched = Watched(folder)
    with (
        opened(journal_folder(place), asdict(order)) as journal,
        started(place, console, keep=True) as gateway,
    ):
        next(gateway.jobs(), None)  # a wrong address or key is told at once
        gateway.patience_s = UNATTENDED_PATIENCE_S
        console.print(f"Watching {folder}; Ctrl-C ends that.", highlight=False)
        try:
            while True:
                ready = watched.ready(journal.arrived)
                if ready:
                    try:
                        send(gateway, order, journal, watched, ready, say)
                    except GatewayUnreachable as error:
                        say(f"{error} Trying again.")
                time.sleep(LOOK_EVERY_S)
        except KeyboardInterrupt:
            end = f" `soundmill close {journal.job_id}{place.arguments}` lets its job complete."
            raise Interrupted(f"Interrupted.{end if journal.job_id else ''}") from None


def send(
    gateway: Gateway,
    order: Order,
    journal: Journal,
    watched: Watched,
    ready: list[Source],
    say: Callable[[str], None],
) -> None:
    """Send files to the open job of the journal, or to a new one."""
    job = unfinished_job(gateway, journal)
    if job is None:
        job = order.request.create(gateway)
        journal.change_job(job.id)
    submission = Submission(len(ready))
    try:
        Sender(gateway, job.id, submission, lambda: None, journal).send_files(ready)
    except Problem as problem:
        if problem.status != HTTPStatus.CONFLICT:
            raise
        with suppress(Problem):  # it is full, or has ended meanwhile: the next look opens another
            gateway.close_job(job.id)
        return
    refused = {failure.name: failure.reason for failure in submission.not_sent}
    for source in ready:
        if source.name in refused:
            watched.refused.add(watched.seen[source.name])
            say(f"{job.id}  not sent: {source.name}: {refused[source.name]}")
        else:
            say(f"{job.id}  {source.name}")
