"""Shows how far a job is: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from client.api import Gateway, Job
from common.domain import Stage

POLL_S = 0.5
LINE_EVERY_S = 5.0
LOW_SPACE_BYTES = 20 * 1024**2


def clock(seconds: float) -> str:
    """Return a duration as ``h:mm:ss``."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def pace(job: Job) -> str:
    """Return speed and remaining time as far as they are known."""
    if job.paused and not job.is_finished:
        return "paused"
    speed = f"{job.rate:.1f} audio hours per hour" if job.rate else "measuring the speed"
    remaining = f", {clock(job.eta_s)} to go" if job.eta_s is not None else ""
    return speed + remaining


def describe_job(job: Job) -> str:
    """Return a job in one line."""
    done = {stage: job.done(stage) for stage in job.stages}
    stages = ", ".join(f"{stage} {number}/{job.recordings}" for stage, number in done.items())
    rejected = f", {job.rejected} rejected" if job.rejected else ""
    reading = f", reading {job.unread_sources} sources" if job.unread_sources else ""
    speed = "" if job.is_finished else f"; {pace(job)}"
    return f"{job.id}  {job.state:<9}  {job.name}: {stages}{rejected}{reading}{speed}"


class Display:
    """Progress of one job. Use it as a context manager and call ``update`` as often as you like.

    ``first`` is what the first bar is about: "sent", or "done" when nothing is sent.
    """

    def __init__(
        self, console: Console, total: int, stages: list[Stage], first: str = "sent"
    ) -> None:
        self._console = console
        self._first = first
        self._total = total
        self._stages = stages
        self._next_line_at = 0.0
        self._last_line = ""
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
            for name in [first, *stages]:
                self._bars[name] = self._progress.add_task(name, total=total, note="")

    def __enter__(self) -> Display:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, number: int, job: Job) -> None:
        """Show that so many recordings were sent, or are done, and how far the job is."""
        if self._progress is None:
            self._print_line(number, job)
            return
        total = max(self._total, job.recordings)  # it grows while sources are read
        self._progress.update(
            self._bars[self._first], completed=number, total=total, note=pace(job)
        )
        for stage in self._stages:
            failed = job.not_succeeded(stage)
            note = f"[red]{failed} failed[/red]" if failed else ""
            done = job.done(stage)
            self._progress.update(self._bars[stage], completed=done, total=total, note=note)

    def warn(self, text: str) -> None:
        """Print a line that stays above the bars."""
        self._console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)

    def _print_line(self, number: int, job: Job) -> None:
        now = time.monotonic()
        if now < self._next_line_at and not job.is_finished:
            return
        total = max(self._total, job.recordings)
        parts = [f"{self._first} {number}/{total}"]
        parts += [f"{stage} {job.done(stage)}/{total}" for stage in self._stages]
        line = ", ".join([*parts, pace(job)])
        if line != self._last_line:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._last_line = line
        self._next_line_at = now + LINE_EVERY_S


class Follower:
    """Asks the gateway about a job now and then and hands the answer to a display."""

    def __init__(
        self, gateway: Gateway, job: Job, display: Display, home: Path | None = None
    ) -> None:
        self._gateway = gateway
        self._display = display
        self._home = home  # of the stack on this machine, whose disk may fill up
        self._ask_again_at = 0.0
        self.job = job

    def tick(self, sent: int) -> None:
        """Update the display if it is time to."""
        now = time.monotonic()
        if now < self._ask_again_at:
            return
        self.job = self._gateway.job(self.job.id)
        self._display.update(sent, self.job)
        if self._home is not None and shutil.disk_usage(self._home).free < LOW_SPACE_BYTES:
            self._display.warn(f"The disk of {self._home} is full: work waits until there is room.")
            self._home = None
        self._ask_again_at = time.monotonic() + POLL_S

    def until_finished(self, sent: int) -> Job:
        """Return the job once every stage of every recording is through."""
        while not self.job.is_finished:
            time.sleep(max(0.0, self._ask_again_at - time.monotonic()))
            self.tick(sent)
        return self.job
