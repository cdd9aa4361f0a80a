"""``soundmill submit --watch-folder``: each file once, when it keeps still, across restarts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from client.api import Gateway as Client
from client.journal import opened
from client.submissions import Order
from client.watched import Watched, send
from common.tables import Job
from tests.client.test_submit import EMBEDDED, names
from tests.gateway.conftest import Gateway

PATIENCE_S = 60.0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_file_is_ready_once_it_keeps_still(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    path = tmp_path / "a.wav"
    path.write_bytes(b"RI")
    assert watched.ready(set()) == []
    path.write_bytes(b"RIFF")
    assert watched.ready(set()) == []
    (ready,) = watched.ready(set())
    assert ready.name == "a.wav"
    arrived = {ready.identity()}
    assert watched.ready(arrived) == []
    path.write_bytes(b"RIFF again")  # another recording under the same name
    assert watched.ready(arrived) == []
    assert len(watched.ready(arrived)) == 1
    path.unlink()
    assert watched.ready(set()) == []


def test_empty_and_other_files_are_not_taken(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    (tmp_path / "a.wav").touch()
    (tmp_path / "notes.txt").write_text("not audio")
    (tmp_path / ".b.wav").write_bytes(b"RIFF")
    os.mkfifo(tmp_path / "c.wav")
    for _ in range(3):
        assert watched.ready(set()) == []


@contextmanager
def watching(gateway: Gateway, home: Path, folder: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "client.cli", "submit", "--watch-folder", str(folder)]
    command += ["--url", gateway.url, "--home", str(home), "--stage", "segment"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield
        finally:
            process.terminate()
            _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert b"lets its job complete" in said


@EMBEDDED
def test_full_job_is_followed_by_another(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "inbox"
    folder.mkdir()
    most = gateway.settings.max_recordings_per_job
    order = Order(where=gateway.url, inputs=[str(folder)], name="inbox", stages=["segment"])
    full = gateway.new_job(name="inbox")
    with gateway.sessions.begin() as session:
        session.get_one(Job, full).recordings = most
    (folder / "a.wav").write_bytes(b"RIFF")
    watched = Watched(folder)
    said: list[str] = []
    with opened(tmp_path, asdict(order)) as journal, Client(gateway.url) as client:
        journal.begin(full)
        for _ in range(4):
            send(client, order, journal, watched, watched.ready(journal.arrived), said.append)
        assert journal.job_id != full
        assert names(gateway, journal.job_id) == ["a.wav"]
    assert said == [f"{journal.job_id}  a.wav"]
    assert gateway.get(f"/v1/jobs/{full}")["state"] != "open"


@EMBEDDED
def test_nothing_is_sent_twice_after_a_restart(gateway: Gateway, tmp_path: Path) -> None:
    folder, home = tmp_path / "inbox", tmp_path / "client-home"
    folder.mkdir()
    (folder / "a.wav").write_bytes(b"RIFF")

    def jobs() -> list[str]:
        return [job["id"] for job in gateway.get("/v1/jobs")["jobs"]]

    with watching(gateway, home, folder):
        until(lambda: bool(jobs()) and names(gateway, jobs()[0]) == ["a.wav"])
    (job_id,) = jobs()
    (folder / "b.wav").write_bytes(b"RIFF")
    with watching(gateway, home, folder):
        until(lambda: names(gateway, job_id) == ["a.wav", "b.wav"])
    gateway.client.post(f"/v1/jobs/{job_id}/close").raise_for_status()
    (folder / "c.wav").write_bytes(b"RIFF")
    with watching(gateway, home, folder):
        until(lambda: len(jobs()) == 2 and names(gateway, jobs()[0]) == ["c.wav"])
    assert names(gateway, job_id) == ["a.wav", "b.wav"]
