"""What ``soundmill process`` ends with: a table, the failures, the totals; and recordings.csv."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.api import Job, Rejection, Run
from client.fetch import Fetched
from client.submission import NotSent
from common.domain import TERMINAL_STATES, RunState, Stage

MOST_ROWS = 20
MOST_FAILURES = 20
WIDE = 96  # columns from which the stages are written out


@dataclass(frozen=True)
class Marks:
    """How states look in the table; what was left out is a dash."""

    good: str
    bad: str
    waiting: str


MARKS = Marks("✓", "✗", "…")
PLAIN_MARKS = Marks("ok", "NO", "..")


@dataclass(frozen=True)
class Row:
    """One recording in the report."""

    name: str
    duration_s: float | None
    states: dict[str, str]
    top_label: str = ""
    events: int = 0
    folder: str = ""
    error: str = ""

    @property
    def succeeded(self) -> bool:
        return not self.error and set(self.states.values()) <= {RunState.SUCCEEDED}

    @property
    def is_waiting(self) -> bool:
        """Whether some stage has not ended and none has failed."""
        return not self.error and not set(self.states.values()) <= TERMINAL_STATES


@dataclass
class Report:
    """Everything that is said at the end of a job."""

    job: Job
    stages: list[Stage]
    folder: Path
    rows: list[Row] = field(default_factory=list)

    def add(self, fetched: Fetched) -> None:
        """Add a recording that was processed."""
        recording = fetched.recording
        top_label, events = summary_of(fetched.folder)
        self.rows.append(
            Row(
                name=recording.name,
                duration_s=recording.duration_s,
                states={run.stage.value: run.state.value for run in recording.runs},
                top_label=top_label,
                events=events,
                folder=fetched.folder.name if fetched.folder else "",
                error=first_error(recording.runs),
            )
        )

    def add_not_sent(self, not_sent: Sequence[NotSent]) -> None:
        """Add the recordings that never reached the gateway."""
        for failure in not_sent:
            self.rows.append(Row(failure.name, None, {}, error=f"not sent: {failure.reason}"))

    def add_rejected(self, rejections: Iterable[Rejection]) -> None:
        """Add the entries of sources that did not become recordings."""
        for entry in rejections:
            error = f"rejected: {entry.error_detail or entry.error_code}"
            self.rows.append(Row(entry.name, None, {}, error=error))

    @property
    def failures(self) -> list[Row]:
        return [row for row in self.rows if not row.succeeded and not row.is_waiting]

    @property
    def audio_s(self) -> float:
        return sum(row.duration_s or 0.0 for row in self.rows)

    @property
    def elapsed_s(self) -> float:
        """From the first to the last moment of the job, on the database's clock."""
        if self.job.finished_at is None:
            return 0.0
        return (self.job.finished_at - self.job.created_at).total_seconds()

    @property
    def speed(self) -> float:
        """Audio hours processed per hour."""
        return self.audio_s / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "job": self.job.id,
            "state": self.job.state,
            "folder": str(self.folder),
            "recordings": [asdict(row) | {"succeeded": row.succeeded} for row in self.rows],
            "succeeded": sum(row.succeeded for row in self.rows),
            "failed": len(self.failures),
            "audio_s": self.audio_s,
            "elapsed_s": self.elapsed_s,
            "audio_hours_per_hour": self.speed,
        }

    def write_csv(self) -> Path:
        """Write one line per recording to ``recordings.csv`` in the folder of results."""
        path = self.folder / "recordings.csv"
        beside = path.with_name(".recordings.csv.tmp")
        try:
            with beside.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                stages = [stage.value for stage in self.stages]
                writer.writerow(
                    ["name", "duration_s", *stages, "top_label", "events", "folder", "error"]
                )
                for row in self.rows:
                    states = [row.states.get(stage, "") for stage in stages]
                    duration = "" if row.duration_s is None else f"{row.duration_s:.3f}"
                    cells = [row.name, duration, *states, row.top_label, row.events]
                    writer.writerow([*map(spreadsheet_safe, cells), row.folder, row.error])
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        return path

    def print(self, console: Console) -> None:
        """Print table, failures and totals."""
        console.print(self._table(console))
        if len(self.rows) > MOST_ROWS:
            rest = len(self.rows) - MOST_ROWS
            console.print(f"... and {rest} more: all of them are in recordings.csv")
        for row in self.failures[:MOST_FAILURES]:
            console.print(Text(f"failed: {row.name}: {row.error}", style="red"))
        if len(self.failures) > MOST_FAILURES:
            console.print(f"... and {len(self.failures) - MOST_FAILURES} more failed")
        good = sum(row.succeeded for row in self.rows)
        took = f"; {hours(self.audio_s)} of audio in {hours(self.elapsed_s)}"
        ended = took if self.job.is_finished else ""
        console.print(f"\n{good} of {len(self.rows)} recordings succeeded in every stage{ended}.")
        if self.job.is_finished:
            console.print(f"Speed: {self.speed:.1f} audio hours processed per hour.")
        else:
            waiting = sum(row.is_waiting for row in self.rows)
            console.print(f"The job goes on: {waiting} recordings are not through yet.")
        console.print(Text(f"Results: {self.folder}/"), soft_wrap=True)

    def _table(self, console: Console) -> Table:
        marks_of = MARKS if console.encoding.startswith("utf") else PLAIN_MARKS
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("recording", overflow="fold", max_width=36)
        table.add_column("length", justify="right", no_wrap=True)
        table.add_column("top label", no_wrap=True)
        table.add_column("events", justify="right", no_wrap=True)
        for stage in self.stages:
            heading = stage.value if console.width >= WIDE else stage.value[:3]
            table.add_column(heading, justify="center", no_wrap=True)
        for row in self.rows[:MOST_ROWS]:
            length = "" if row.duration_s is None else f"{row.duration_s:.1f} s"
            marks = [mark(row.states.get(stage.value, ""), marks_of) for stage in self.stages]
            table.add_row(Text(row.name), length, row.top_label, str(row.events), *marks)
        return table


def mark(state: str, marks: Marks) -> Text:
    """Return how a state looks in the table."""
    if state == RunState.SUCCEEDED:
        return Text(marks.good, style="green")
    if state in (RunState.FAILED, RunState.QUARANTINED):
        return Text(marks.bad, style="red")
    is_waiting = bool(state) and state not in TERMINAL_STATES
    return Text(marks.waiting if is_waiting else "-", style="dim")


def first_error(runs: list[Run]) -> str:
    """Return what went wrong first, in words. Stages come in the order of the pipeline."""
    for run in runs:
        if run.state in (RunState.FAILED, RunState.QUARANTINED, RunState.CANCELLED):
            return f"{run.stage}: {run.error_detail or run.error_code or run.state}"
    return ""


def summary_of(folder: Path | None) -> tuple[str, int]:
    """Return top label and number of events from a folder's events.json."""
    if folder is None or not (folder / "events.json").exists():
        return "", 0
    content = json.loads((folder / "events.json").read_text())
    tags = content.get("tags") or []
    return (tags[0]["label"] if tags else ""), len(content.get("events") or [])


def spreadsheet_safe(cell: object) -> object:
    """Return a cell that no spreadsheet takes for a formula."""
    text = str(cell)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else cell


def hours(seconds: float) -> str:
    """Return a duration for people: ``42 s``, ``12.5 min`` or ``3.2 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
