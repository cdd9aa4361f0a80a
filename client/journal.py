"""Remembers how far a submission is, so that the same command goes on where it was cut off.

One small file per submission: a first line that says what is submitted to which job, then one line
for each thing that has arrived. It is only ever appended to; half a line at its end, from a
machine that stopped in the middle, is left out. What is lost from it is sent again, and the gateway
recognises it by its idempotency key.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import IO, Any

from client.errors import InputInvalid, SubmissionBusy

VERSION = 1


@dataclass
class Journal:
    """What of one submission has arrived. Made by ``opened``."""

    path: Path
    request: dict[str, Any]
    job_id: str = ""
    arrived: set[str] = field(default_factory=set)  # identities of what need not be sent again
    uploads: dict[str, str] = field(default_factory=dict)  # identity: multipart upload on its way
    _file: IO[str] | None = None
    _lock: Lock = field(default_factory=Lock)

    def begin(self, job_id: str) -> None:
        """Start anew, for a new job."""
        self.arrived, self.uploads = set(), {}
        self.change_job(job_id)

    def change_job(self, job_id: str) -> None:
        """Go on with another job. What has arrived in an earlier one need not be sent again."""
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        self.job_id = job_id
        self._write({"version": VERSION, "job": job_id, "request": self.request})
        for identity in self.arrived:
            self._write(identity)

    def note_arrived(self, identity: str) -> None:
        """Note that something need not be sent again. Threads may call it."""
        with self._lock:
            if identity not in self.arrived:
                self.arrived.add(identity)
                self._write(identity)

    def note_upload(self, identity: str, upload_id: str) -> None:
        """Note the multipart upload under which something is sent."""
        self.uploads[identity] = upload_id
        self._write({"upload": upload_id, "of": identity})

    def remove(self) -> None:
        """Forget the submission: all of it has arrived."""
        self.path.unlink(missing_ok=True)

    def _write(self, line: Any) -> None:
        assert self._file is not None
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


@contextmanager
def opened(folder: Path, request: dict[str, Any]) -> Iterator[Journal]:
    """Open the journal of a request, as far as there is one, for this process alone.

    Raises:
        SubmissionBusy: another process has it open.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:32]
    path = folder / f"{name}.jsonl"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SubmissionBusy("Another soundmill is sending just this.") from None
        journal = Journal(path, request, _file=file)
        read_into(journal, file)
        try:
            yield journal
        finally:
            if not journal.job_id:
                journal.remove()  # it never began


def find_request(folder: Path, job_text: str) -> dict[str, Any]:
    """Return the request of the unfinished submission to a job: its id, or the end of it.

    Raises:
        InputInvalid: there is none, or several fit.
    """
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        with path.open() as file:
            header = decode(file.readline())
        if isinstance(header, dict) and str(header.get("job", "")).endswith(job_text):
            found.append(header["request"])
    if len(found) != 1:
        many = "More than one" if found else "No"
        raise InputInvalid(f"{many} unfinished submission to job {job_text!r} is known here.")
    request: dict[str, Any] = found[0]
    return request


def read_into(journal: Journal, file: IO[str]) -> None:
    """Read what a journal holds; one of another version counts as empty."""
    file.seek(0)
    line = file.readline()
    header = decode(line)
    if not isinstance(header, dict) or header.get("version") != VERSION:
        return
    journal.job_id = header["job"]
    for line in file:
        entry = decode(line)
        if isinstance(entry, str):
            journal.arrived.add(entry)
        elif isinstance(entry, dict):
            journal.uploads[entry["of"]] = entry["upload"]
    if not line.endswith("\n"):
        file.write("\n")  # what follows must not become part of it


def decode(line: str) -> Any:
    """Return a line's JSON, None when it is cut off."""
    try:
        return json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
