"""A disk that fills while Soundmill runs on it: nothing is damaged, and it goes on with room.

The whole of an embedded stack (database, objects, scratch, Redis, logs) lies on a small disk of its
own: memory that is mounted, which needs the right to mount.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from client.home import Home
from common.checks.disk import HOPELESS_BYTES, SMALL_DISK_SHARE
from tests.e2e.conftest import Stack, start, stop
from tests.servers import new_folder

DISK_BYTES = 256 << 20
LITTLE_BYTES = 6 << 20  # enough for the database, too little to work
RATE = 16_000


@pytest.fixture(scope="module")
def small_disk() -> Iterator[Path]:
    folder = new_folder("disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        folder.rmdir()
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


@pytest.fixture(scope="module")
def stack(small_disk: Path) -> Iterator[Stack]:
    """A stack on the small disk."""
    home = Home.at(small_disk / "home")
    state = start(home)
    try:
        with httpx.Client(base_url=state.url, timeout=60, trust_env=False) as http:
            yield Stack(home, state, http)
    finally:
        (small_disk / "filler").unlink(missing_ok=True)
        stop(home)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three different seconds of noise."""
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(4)
    paths = [folder / f"{number}.wav" for number in range(3)]
    for path in paths:
        soundfile.write(path, 0.1 * rng.standard_normal(RATE), RATE)
    return paths


def counted(stack: Stack, job_id: str) -> dict[str, int]:
    """Return the number of a job's stage runs by state."""
    return dict(
        stack.rows("SELECT state, count(*) FROM stage_run WHERE job_id = ? GROUP BY state", job_id)
    )


def free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def fill(disk: Path, leave_bytes: int) -> None:
    """Leave so much room and no more."""
    with (disk / "filler").open("ab") as file:
        while (surplus := free_bytes(disk) - leave_bytes) > 0:
            os.posix_fallocate(file.fileno(), file.tell(), surplus)
            file.seek(0, os.SEEK_END)


def doctor(home: Home) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "client.cli", "doctor", "--home", str(home.folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, {c["name"]: c for c in json.loads(done.stdout)["checks"]}


def test_it_waits_for_room_and_goes_on(stack: Stack, small_disk: Path, sounds: list[Path]) -> None:
    first, *others = sounds
    done = stack.submit([first])
    stack.wait(done)
    assert counted(stack, done) == {"succeeded": 4}
    code, checks = doctor(stack.home)
    assert code == 0
    assert {check["status"] for check in checks.values()} == {"ok"}, checks
    processes = stack.home.read_state()
    assert min(DISK_BYTES * SMALL_DISK_SHARE, HOPELESS_BYTES) > LITTLE_BYTES

    fill(small_disk, LITTLE_BYTES)
    # What is too large is refused, and nothing of it stays.
    open_job = stack.http.post("/v1/jobs", json={}).raise_for_status().json()["id"]
    objects = sorted(path for path in (stack.home.folder / "objects").rglob("*") if path.is_file())
    upload: Callable[[], httpx.Response] = lambda: stack.http.post(  # noqa: E731
        f"/v1/jobs/{open_job}/recordings", params={"name": "large"}, content=bytes(2 * LITTLE_BYTES)
    )
    refused = upload()
    assert (refused.status_code, refused.json()["code"]) == (507, "disk_full")
    there = sorted(path for path in (stack.home.folder / "objects").rglob("*") if path.is_file())
    assert there == objects
    # Readiness says so, of the gateway and of the rest; so does the doctor.
    unready = stack.until(lambda: not (r := stack.http.get("/ready")).is_success and r)
    told = unready.json()["checks"]
    assert {name for name, text in told.items() if not text.startswith("ok")} == {"disk"}
    assert "scratch, store, database" in told["disk"]
    assert 'soundmill_ready{check="disk"} 0.0' in stack.http.get("/metrics").text
    code, checks = doctor(stack.home)
    assert (code, checks["disk"]["status"]) == (1, "failed")
    stack.until(lambda: "not ready: disk" in doctor(stack.home)[1]["segmenter"]["detail"])
    # A small job is taken, and waits: no attempt is spent on what would fail.
    job_id = stack.submit(others)
    log = stack.home.log("segmenter-1")
    stack.until(lambda: "no room to work" in log.read_text())
    assert set(counted(stack, job_id)) <= {"ready", "dispatched", "blocked"}

    fill(small_disk, 0)  # nothing at all can be written any more
    assert stack.http.get(f"/v1/jobs/{job_id}").is_success
    nothing = stack.http.post("/v1/jobs", json={"name": "no room"})
    assert nothing.status_code in (201, 503, 507)  # the database may have pages to spare
    if nothing.status_code == 503:
        assert "no room left" in nothing.json()["detail"]

    (small_disk / "filler").unlink()
    stack.wait(job_id)
    assert counted(stack, job_id) == {"succeeded": 8}
    attempts = stack.rows(
        "SELECT attempt.outcome, count(*) FROM attempt JOIN stage_run ON stage_run.id ="
        " attempt.stage_run_id WHERE stage_run.job_id = ? GROUP BY attempt.outcome",
        job_id,
    )
    assert attempts == [("succeeded", 8)]
    assert stack.rows("PRAGMA integrity_check") == [("ok",)]
    stack.until(lambda: stack.http.get("/ready").is_success)
    assert upload().status_code == 201
    assert stack.home.read_state() == processes  # none has died of it
    for name in ("gateway", "dispatcher", "ingester", "segmenter-1"):
        text = stack.home.log(name).read_text()
        assert not re.search(r'"level": "(error|critical)".*Traceback', text), name


def test_it_comes_up_on_a_full_disk(stack: Stack, small_disk: Path) -> None:
    """So that jobs can be deleted to make room."""
    stop(stack.home)
    fill(small_disk, LITTLE_BYTES)  # only now: what stops makes room, as its journals close
    command = ["up", "--detach", "--home", str(stack.home.folder), "--port", str(stack.state.port)]
    subprocess.run([sys.executable, "-m", "client.cli", *command], check=True, timeout=300)
    assert stack.http.get("/v1/jobs").is_success
    assert not stack.http.get("/ready").is_success
    assert "make room on the disk" in stack.home.log("supervisor").read_text()
