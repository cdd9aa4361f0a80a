"""A run with something of everything that metrics tell, and nothing left to chance.

Good, broken and repeated recordings by every way in, an archive with entries that are refused, a
webhook that fails once, a worker that hangs for longer than its lease, one that is killed, one that
starts anew, and at the end a job that waits. What happened is in the database afterwards; the few
things that it does not hold are in ``Told``.
"""

from __future__ import annotations

import io
import signal
import sqlite3
import time
import zipfile
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import soundfile

from common.domain import SERVICE_OF, Stage
from tests.bench import tiny
from tests.e2e.conftest import Stack, kill_tree
from tests.receiver import Received, Receiver

RATE = 16_000
LEASE_S = 4.0
SHARD_AUDIO_S = 8.0
LONG_S = 15.0  # longer than a shard: such a recording is alone in its own
KILLER, GONE, AWAY = "killer.wav", "gone.wav", "away.wav"
WAITED_S = 1_000.0
MOST_TRIES = 20
SETTINGS = {
    "lease_s": str(LEASE_S),
    "lost_message_grace_s": "600",  # nothing gets lost, and a slow machine is slow
    "shard_audio_s": str(SHARD_AUDIO_S),
    "max_crashes_alone": "1",  # killing a worker once, alone, is enough for quarantine
    "webhook_retries_s": "[0.1]",
    "retry_backoff_s": "0.1",
    "log_level": "DEBUG",  # the gateway's log tells quiet requests too
}


@dataclass
class Told:
    """What the run did that no table tells."""

    deliveries: list[tuple[float, int]] = field(default_factory=list)  # when, answered how
    killed: list[Stage] = field(default_factory=list)  # stages whose worker's child was killed
    deleted: list[tuple[float, str]] = field(default_factory=list)  # when, which job


def sound(seed: int, seconds: float) -> bytes:
    """Return a WAV of faint noise with loud bursts, no two alike."""
    rng = np.random.default_rng(seed)
    samples = 0.02 * rng.standard_normal(round(RATE * seconds))
    for onset in range(RATE // 2, samples.size - RATE // 2, 2 * RATE):
        burst = 0.4 * np.sin(np.arange(RATE // 2) * (0.1 + 0.02 * (seed % 20)))
        samples[onset : onset + burst.size] += burst
    file = io.BytesIO()
    soundfile.write(file, samples.clip(-1, 1), RATE, format="WAV")
    return file.getvalue()


def archive(seed: str, recordings: int) -> bytes:
    """Return a ZIP with tiny recordings, the first two the same, and two entries to be refused."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as writer:
        for number in range(recordings):
            writer.writestr(f"{number}.wav", tiny.recording(seed, max(1, number)))
        writer.writestr("nothing.wav", b"")
        writer.writestr("../outside.wav", tiny.recording(seed, 99))
    return file.getvalue()


class Run:
    """Walks a stack through all of it."""

    def __init__(self, stack: Stack, hook: Receiver) -> None:
        self.stack = stack
        self.told = Told()
        self._hook = hook
        self._refuse = False  # the next delivery to the webhook
        hook.answer = self._answer

    def _answer(self, _received: Received) -> int:
        status = 500 if self._refuse else 204
        self._refuse = False
        self.told.deliveries.append((time.time(), status))
        return status

    # Short ways

    def post(self, path: str, **request: Any) -> dict[str, Any]:
        """Send a request that must succeed; return its answer."""
        answer = self.stack.http.post(f"/v1{path}", **request).raise_for_status()
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found

    def job(self, name: str, **options: Any) -> str:
        """Open a job; return its id."""
        found: str = self.post("/jobs", json={"name": name, **options})["id"]
        return found

    def add(self, job_id: str, name: str, data: bytes) -> None:
        """Send one recording as the body of a request."""
        self.post(f"/jobs/{job_id}/recordings", params={"name": name}, content=data)

    def add_archive(self, job_id: str, data: bytes) -> None:
        """Send a ZIP as the body of a request."""
        self.post(
            f"/jobs/{job_id}/sources",
            params={"name": "archive.zip"},
            content=data,
            headers={"Content-Type": "application/zip"},
        )

    def look(self, job_id: str) -> None:
        """Ask for a job, and for one that is not there."""
        self.stack.job(job_id)
        assert self.stack.http.get("/v1/jobs/nothing").status_code == httpx.codes.NOT_FOUND

    def has(self, sql: str, *values: Any) -> bool:
        """Return whether a query finds a row."""
        return bool(self.stack.rows(sql, *values))

    def ended(self, job_id: str) -> None:
        """Wait until a job has completed, and is told to whoever wants to know.

        The database is asked, not the gateway, whose requests are counted.
        """
        self.stack.until(
            lambda: self.has("SELECT 1 FROM job WHERE id = ? AND finished_at IS NOT NULL", job_id)
        )
        self.stack.until(
            lambda: not self.has("SELECT 1 FROM webhook_delivery WHERE state = 'pending'")
        )

    def parent(self, stage: Stage) -> int:
        """Return the process id of the worker of a stage."""
        state = self.stack.home.read_state()
        assert state is not None
        return state.processes[f"{SERVICE_OF[stage]}-1"]

    def at_work(self, stage: Stage, name: str) -> psutil.Process:
        """Return the process that works on a recording, once it does."""
        rows = self.stack.until(
            lambda: self.stack.rows(
                "SELECT a.worker FROM attempt a JOIN stage_run r ON r.id = a.stage_run_id"
                " JOIN recording c ON c.id = r.recording_id WHERE c.name LIKE ? AND r.stage = ?"
                " AND a.outcome = 'running' AND r.state = 'running'",
                name,
                stage.value,
            )
        )
        return psutil.Process(int(rows[0][0].rpartition(":")[2]))

    # The run

    def warm_up(self) -> None:
        """Load the models, and make every request of the run once: what is new begins at 1."""
        self.post("/webhooks", json={"url": self._hook.url})
        job_id = self.job("warm", priority="interactive")
        self.post(f"/jobs/{job_id}/pause")
        self.add(job_id, "warm.wav", tiny.recording("warm", 0))
        self.add_archive(job_id, archive("warm", 1))
        self.post(f"/jobs/{job_id}/resume")
        self.look(job_id)
        self.post(f"/jobs/{job_id}/close")
        self.ended(job_id)
        self.given_up_jobs()

    def main_job(self) -> str:
        """Submit the job with something of everything; return once it has completed."""
        self._refuse = True
        job_id = self.job("main")
        for number in range(6):
            self.add(job_id, f"good-{number}.wav", sound(max(1, number), 2.5))
        self.add(job_id, "text.wav", b"this is no audio file\n" * 50)
        self.add(job_id, "truncated.wav", sound(60, 4.0)[:RATE])
        self.add_archive(job_id, archive("main", 10))
        self.look(job_id)
        self._hang(job_id, Stage.CLASSIFY)
        self.add(job_id, KILLER, sound(50, LONG_S))
        self.post(f"/jobs/{job_id}/close")
        self._kill(Stage.ENHANCE)
        self.ended(job_id)
        return job_id

    def _hang(self, job_id: str, stage: Stage) -> None:
        """Stop a worker in the middle of its shard until others may take its runs."""
        for number in range(MOST_TRIES):
            self.add(job_id, f"hang-{number}.wav", sound(100 + number, 2.5))
            child = self.at_work(stage, "%")
            child.send_signal(signal.SIGSTOP)
            if self._holds_runs(child.pid, stage) and self._is_writable():
                break
            child.send_signal(signal.SIGCONT)  # just done, or with a hand on the database
        lost = (
            "SELECT 1 FROM attempt a JOIN stage_run r ON r.id = a.stage_run_id"
            " WHERE r.stage = ? AND a.outcome = 'lost'"
        )
        try:
            self.stack.until(lambda: self.has(lost, stage.value))
        finally:
            child.send_signal(signal.SIGCONT)

    def _holds_runs(self, pid: int, stage: Stage) -> bool:
        return self.has(
            "SELECT 1 FROM stage_run WHERE state = 'running' AND stage = ? AND worker LIKE ?",
            stage.value,
            f"%:{pid}",
        )

    def _is_writable(self) -> bool:
        path = self.stack.home.folder / "soundmill.db"
        with closing(sqlite3.connect(path, timeout=2.0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
            except sqlite3.OperationalError:
                return False
        return True

    def _kill(self, stage: Stage) -> None:
        """Kill a worker's child while it works on the recording that is alone in its shard."""
        self.at_work(stage, KILLER).kill()
        self.told.killed.append(stage)

    def restart_worker(self, stage: Stage) -> None:
        """Kill a whole worker; its supervisor starts it again."""
        old = self.parent(stage)
        kill_tree(old)
        self.stack.until(lambda: self.parent(stage) != old)

    def second_job(self) -> str:
        """Submit a small job that finds most of its results made; return once it has completed."""
        job_id = self.job("second", priority="interactive")
        self.add(job_id, "again.wav", sound(2, 2.5))
        self.add(job_id, "new.wav", sound(70, 3.0))
        self.post(f"/jobs/{job_id}/close")
        self.ended(job_id)
        return job_id

    def broken_job(self) -> str:
        """Submit a job whose recordings get lost in the store, one of them not for good."""
        job_id = self.job("broken")
        self.post(f"/jobs/{job_id}/pause")
        for number, name in enumerate((GONE, AWAY)):
            self.add(job_id, name, tiny.recording("broken", number))
        self._object(job_id, GONE).unlink()
        away = self._object(job_id, AWAY)
        kept = away.rename(away.with_suffix(".kept"))
        away.symlink_to(away)  # neither there nor absent: tried again
        self.post(f"/jobs/{job_id}/resume")
        failed = (
            "SELECT 1 FROM attempt WHERE outcome = 'transient' AND error_code = 'internal_error'"
        )
        self.stack.until(lambda: self.has(failed))
        away.unlink()
        kept.rename(away)
        self.post(f"/jobs/{job_id}/close")
        self.ended(job_id)
        return job_id

    def _object(self, job_id: str, name: str) -> Path:
        ((key,),) = self.stack.rows(
            "SELECT object_key FROM recording WHERE job_id = ? AND name = ?", job_id, name
        )
        return self.stack.home.folder / "objects" / str(key)

    def waiting_job(self) -> str:
        """Submit a job that is paused before it begins, so that there is a backlog."""
        job_id = self.job("waiting")
        self.post(f"/jobs/{job_id}/pause")
        for number in range(3):
            self.add(job_id, f"waiting-{number}.wav", sound(80 + number, 5.0 + number))
        return job_id

    def given_up_jobs(self) -> None:
        """Cancel a job, and delete another."""
        self.post(f"/jobs/{self.job('cancelled')}/cancel")
        deleted = self.job("deleted")
        self.stack.http.delete(f"/v1/jobs/{deleted}").raise_for_status()
        self.told.deleted.append((time.time(), deleted))
        self.stack.until(lambda: not self.has("SELECT 1 FROM job WHERE id = ?", deleted))

    def late_job(self) -> str:
        """Submit a job that has waited for long, and whose time is almost over.

        Made so by hand: it is not dispatched before its next attempt, an hour from now.
        """
        job_id = self.job("late")
        self.post(f"/jobs/{job_id}/pause")
        self.add(job_id, "late.wav", sound(90, 4.0))
        now = time.time()
        self.change(
            "UPDATE stage_run SET ready_at = ?, next_attempt_at = ?"
            " WHERE job_id = ? AND state = 'ready'",
            now - WAITED_S,
            now + 3600.0,
            job_id,
        )
        self.change(
            "UPDATE job SET created_at = ?, deadline_at = ? WHERE id = ?",
            now - 100_000.0,
            now + 3600.0,
            job_id,
        )
        self.post(f"/jobs/{job_id}/resume")
        return job_id

    def change(self, sql: str, *values: Any) -> None:
        """Write to the database, past everything."""
        path = self.stack.home.folder / "soundmill.db"
        with closing(sqlite3.connect(path, timeout=60)) as connection, connection:
            connection.execute(sql, values)
