"""``soundmill submit``: sends what was asked for into one job, and goes on where it was cut off."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from client.api import Gateway, Job
from client.api.tries import UNATTENDED_PATIENCE_S
from client.errors import Interrupted, NoAudio, Problem
from client.inputs import Inputs
from client.journal import Journal, opened
from client.place import Place, find_job, started
from client.process import Request
from client.submission import Submission
from client.submit import Sender
from common.domain import JobState, Priority, Stage

LINE_EVERY_S = 5.0


@dataclass(frozen=True)
class Order:
    """What one submission is, as its journal keeps it. ``inputs`` are absolute paths or addresses.

    ``into`` is the id of a job that is there already; ``left_open``: the job takes more afterwards.
    """

    where: str
    inputs: list[str]
    name: str
    stages: list[str]
    priority: str = Priority.BULK.value
    params: dict[str, Any] = field(default_factory=dict)
    deadline_at: str | None = None
    retention_s: float | None = None
    into: str = ""
    left_open: bool = False
    watched: bool = False  # the one input is a folder that is looked at again and again

    @property
    def request(self) -> Request:
        """The job that is made for it."""
        return Request(
            name=self.name,
            priority=Priority(self.priority),
            stages=[Stage(stage) for stage in self.stages],
            params=self.params,
            deadline_at=datetime.fromisoformat(self.deadline_at) if self.deadline_at else None,
            retention_s=self.retention_s,
        )


@dataclass(frozen=True)
class Submitted:
    """What became of a submission."""

    job: Job
    submission: Submission
    went_on: bool

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "job": self.job.id,
            "state": self.job.state,
            "sent": self.submission.sent,
            "not_sent": [asdict(failure) for failure in self.submission.not_sent],
            "went_on": self.went_on,
        }


def journal_folder(place: Place) -> Path:
    """Return where the journals of unfinished submissions lie."""
    return place.home.folder / "submissions"


def submit(
    place: Place, order: Order, inputs: Inputs, console: Console, *, anew: bool = False
) -> Submitted:
    """Send everything; go on with an unfinished submission of the same order unless ``anew``.

    Raises:
        Problem, GatewayUnreachable: it cannot go on; the same command does, later.
        Interrupted: Ctrl-C; likewise.
    """
    with (
        opened(journal_folder(place), asdict(order)) as journal,
        started(place, console, keep=True) as gateway,
    ):
        job = None if anew else unfinished_job(gateway, journal)
        went_on = job is not None
        if job is None:
            job = find_job(gateway, order.into) if order.into else order.request.create(gateway)
            journal.begin(job.id)
        else:
            console.print(f"Going on with job {job.id}.", highlight=False)
        gateway.patience_s = UNATTENDED_PATIENCE_S
        submission = Submission(len(inputs.files) + len(inputs.bundles))
        try:
            with SendDisplay(console, submission, inputs.size_bytes) as display:
                sender = Sender(gateway, job.id, submission, display.tick, journal)
                sender.send_inputs(inputs)
        except KeyboardInterrupt:
            again = f"soundmill submit --resume {job.id}{place.arguments}"
            raise Interrupted(f"Interrupted. To go on: {again}") from None
        if not order.left_open and not order.into:
            job = gateway.close_job(job.id)
        journal.remove()
        return Submitted(job, submission, went_on)


def unfinished_job(gateway: Gateway, journal: Journal) -> Job | None:
    """Return the job of a journal if it still takes recordings."""
    if not journal.job_id:
        return None
    try:
        job = gateway.job(journal.job_id)
    except Problem as problem:
        if problem.code == "not_found":
            return None
        raise
    return job if job.state is JobState.OPEN else None


def require_something(inputs: Inputs) -> None:
    """Return if there is anything to submit. Raises NoAudio."""
    if not (inputs.files or inputs.bundles or inputs.urls or inputs.prefixes):
        raise NoAudio("There is nothing to submit.")


class SendDisplay:
    """Shows how far the sending is: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, submission: Submission, size_bytes: int) -> None:
        self._console = console
        self._submission = submission
        self._next_line_at = time.monotonic() + LINE_EVERY_S
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=40),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task(self._description, total=size_bytes)

    def __enter__(self) -> SendDisplay:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def tick(self) -> None:
        """Show what is new."""
        self._progress.update(
            self._bar,
            completed=self._submission.sent_bytes,
            description=self._description,
        )
        if self._progress.disable and time.monotonic() > self._next_line_at:
            self._next_line_at = time.monotonic() + LINE_EVERY_S
            self._console.print(self._description, highlight=False)

    @property
    def _description(self) -> str:
        failed = len(self._submission.not_sent)
        text = f"sent {self._submission.sent}/{self._submission.total}"
        return f"{text}, {failed} not" if failed else text
