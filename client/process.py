"""``soundmill process`` and ``soundmill results``: from paths to a folder of results."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from client.api import Gateway, Job
from client.api.tries import UNATTENDED_PATIENCE_S
from client.errors import Interrupted
from client.fetch import fetch_all
from client.follow import Display, Follower
from client.names import safe_name
from client.place import Place, started
from client.report import Report
from client.sources import Listing, describe
from client.submission import NotSent, Submission
from client.submit import Sender
from common.domain import Priority, Stage, with_needs
from common.errors import SoundmillError

SHORT_ID = 8


@dataclass(frozen=True)
class Request:
    """What to do with the recordings."""

    name: str
    priority: Priority
    stages: list[Stage]
    params: dict[str, Any] = field(default_factory=dict)
    deadline_at: datetime | None = None
    retention_s: float | None = None

    def create(self, gateway: Gateway, *, dry_run: bool = False) -> Job:
        """Open the job."""
        return gateway.create_job(
            self.name,
            priority=self.priority,
            stages=with_needs(set(self.stages)),
            params=self.params,
            deadline_at=self.deadline_at,
            retention_s=self.retention_s,
            dry_run=dry_run,
        )


def process(
    place: Place, listing: Listing, request: Request, out: Path | None, console: Console, keep: bool
) -> Report:
    """Send the recordings, follow the job, fetch its results and return the report."""
    if listing.skipped:
        console.print(describe(listing.skipped).capitalize() + ".", highlight=False)
    with started(place, console, keep=keep) as gateway:
        job = request.create(gateway)
        console.print(f"Job {job.id}: {len(listing.sources)} recordings", highlight=False)
        submission = Submission(len(listing.sources))
        gateway.patience_s = UNATTENDED_PATIENCE_S
        try:
            with Display(console, len(listing.sources), job.stages) as display:
                follower = Follower(gateway, job, display, place.local_folder)
                sender = Sender(gateway, job.id, submission, lambda: follower.tick(submission.sent))
                try:
                    sender.send_files(listing.sources)
                except BaseException:
                    with suppress(SoundmillError):
                        gateway.close_job(job.id)
                    raise
                gateway.close_job(job.id)
                job = follower.until_finished(submission.sent)
            return collect(gateway, job, out, console, submission.not_sent)
        except KeyboardInterrupt:
            raise Interrupted(goes_on(place, job, submission)) from None


def goes_on(place: Place, job: Job, submission: Submission) -> str:
    """Return what to say when the user stops waiting."""
    lines = [f"Interrupted. Job {job.id} goes on in the background."]
    missing = submission.total - submission.sent - len(submission.not_sent)
    if missing:
        lines.append(f"{missing} recordings had not been sent yet and are not part of it.")
    lines.append(f"How far it is:   soundmill status {job.id}{place.arguments}")
    lines.append(f"Its results:     soundmill results {job.id}{place.arguments}")
    if not place.url:
        lines.append(f"Stop Soundmill:  soundmill down{place.arguments}")
    return "\n".join(lines)


def collect(
    gateway: Gateway, job: Job, out: Path | None, console: Console, not_sent: list[NotSent]
) -> Report:
    """Fetch what a job has produced so far and return the report."""
    report = Report(job, job.stages, (out or results_folder(job)).absolute())
    with console.status("Fetching the results ..."):
        fetch_all(gateway, gateway.recordings(job.id), report.folder, report.add)
    report.add_not_sent(not_sent)
    if job.rejected:
        report.add_rejected(gateway.rejections(job.id))
    report.rows.sort(key=lambda row: row.name)  # several were sent at once, in no order
    report.write_csv()
    return report


def results_folder(job: Job) -> Path:
    """Return where the results of a job go unless somebody says otherwise."""
    return Path("soundmill-results") / f"{safe_name(job.name)}-{job.id[-SHORT_ID:]}"
