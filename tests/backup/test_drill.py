"""The drill: a backup while everything works, everything lost, restored elsewhere, work goes on.

Real processes on real servers; the workers compute nothing (``tests.bench.noop``). What
docs/backup.md tells people to do is done here with the same commands.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy import select

from common import keys
from common.backup.database import tables_of
from common.db import make_engine, make_readers, make_sessions
from common.domain import RunState, Scope, Stage
from common.migrate import migrate
from common.tables import Artifact, Recording, StageRun
from tests.backup.conftest import CLUSTER, EMBEDDED, MakePlace, Place
from tests.bench import noop, tiny
from tests.bench.rig import ROOT, SERVICES, family, worker_arguments
from tests.servers import Process, RedisServer, free_port

TIMEOUT_S = 120.0
PAUSE_S = 0.1  # between two uploads: all of them are processed in the end
FIRST, PACKED = 6, 40  # recordings of the first job, entries of the archive
CONTENT = {kind.value: data for kind, _, _, data in noop.OUTPUTS.values()}


def until(condition: Callable[[], Any]) -> Any:
    """Return the first true value of ``condition``."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.005)
    pytest.fail("never happened")


@dataclass
class Deployment:
    """The processes of Soundmill at a place."""

    place: Place
    redis: RedisServer
    folder: Path  # of the logs
    port: int = field(default_factory=free_port)
    processes: dict[str, Process] = field(default_factory=dict)
    secret: str = ""

    @property
    def environment(self) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if "SOUNDMILL" not in name},
            **self.place.environment(),
            "SOUNDMILL_REDIS_URL": self.redis.url,
            "SOUNDMILL_PORT": str(self.port),
            "SOUNDMILL_LEASE_S": "600",  # what a dead worker held is not taken back meanwhile
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *names: str) -> None:
        for name in names:
            command = [sys.executable, *(SERVICES.get(name) or worker_arguments(name))]
            log = self.folder / f"{name}-{self.port}.log"
            self.processes[name] = Process(command, log, env=self.environment)
        self.processes["gateway"].wait_until(self._is_ready)

    def kill(self, *names: str) -> None:
        """End processes, or all of them, at once, as a power cut would."""
        for name in names or self.processes:
            for member in family(self.processes[name].pid):
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            self.processes[name].kill()

    def http(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.secret}"}
        url = f"http://127.0.0.1:{self.port}"
        return httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)

    def soundmill(self, *arguments: str) -> Any:
        """Run the command as an operator does; return what it says."""
        command = [sys.executable, "-m", "client.cli", *arguments, "--json"]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(
                f"http://127.0.0.1:{self.port}/ready", timeout=5, trust_env=False
            ).is_success
        except httpx.HTTPError:
            return False


@contextmanager
def running(deployment: Deployment, *names: str) -> Iterator[httpx.Client]:
    deployment.redis.reset()
    try:
        deployment.start(*names)
        with deployment.http() as http:
            yield http
    finally:
        deployment.kill()


class Uploader(threading.Thread):
    """Adds recordings to a job, one after the other, and notes those that were acknowledged."""

    def __init__(self, http: httpx.Client, job_id: str) -> None:
        super().__init__()
        self.http = http
        self.job_id = job_id
        self.stop = threading.Event()
        self.taken: list[str] = []

    def run(self) -> None:
        number = 0
        while not self.stop.is_set():
            data = tiny.recording("open", number)
            params = {"name": f"open-{number}.wav"}
            answer = self.http.post(
                f"/v1/jobs/{self.job_id}/recordings", params=params, content=data
            )
            self.taken.append(answer.raise_for_status().json()["id"])
            number += 1
            self.stop.wait(PAUSE_S)


def post(http: httpx.Client, path: str, **options: Any) -> Any:
    return http.post(path, **options).raise_for_status().json()


def wait_for(http: httpx.Client, job_id: str) -> dict[str, Any]:
    """Return a job once it has completed."""

    def completed() -> dict[str, Any] | None:
        job: dict[str, Any] = http.get(f"/v1/jobs/{job_id}").raise_for_status().json()
        return job if job["state"] == "completed" else None

    found: dict[str, Any] = until(completed)
    return found


def results(http: httpx.Client, job_id: str) -> dict[str, bytes]:
    """Return every artifact of a job by its address."""
    page = http.get(f"/v1/jobs/{job_id}/recordings?limit=500").raise_for_status().json()
    hrefs = [one["href"] for recording in page["recordings"] for one in recording["artifacts"]]
    return {
        href: http.get(href, follow_redirects=True).raise_for_status().content for href in hrefs
    }


def kill_at_work(deployment: Deployment, name: str) -> None:
    """Kill a worker in the middle of runs that it has claimed; they stay claimed."""
    engine = make_engine(deployment.place.settings)
    running = select(StageRun.worker).where(StageRun.state == RunState.RUNNING.value)

    def at_work(members: Sequence[psutil.Process]) -> bool:
        mine = {f"{os.uname().nodename}:{member.pid}" for member in members}
        with make_readers(engine)() as session:
            return bool(mine & set(session.scalars(running)))

    def killed() -> bool:
        pid = deployment.processes[name].pid
        until(lambda: at_work(family(pid)))
        members = family(pid)
        deployment.kill(name)
        if at_work(members):
            return True
        deployment.start(name)  # it had just recorded them
        return False

    until(killed)
    engine.dispose()


def wipe(place: Place) -> None:
    """Lose everything."""
    for key in [one.key for one in place.store.list()]:
        place.store.delete(key)
    engine = make_engine(place.settings)
    with engine.begin() as connection:
        for table in reversed(tables_of(connection)):
            table.drop(connection)
    engine.dispose()


@pytest.mark.parametrize(
    ("kind", "into"), [(EMBEDDED, CLUSTER), (CLUSTER, CLUSTER), (EMBEDDED, EMBEDDED)]
)
def test_drill(
    make_place: MakePlace, redis_server: RedisServer, tmp_path: Path, kind: str, into: str
) -> None:
    folder = tmp_path / "backup"
    old = Deployment(make_place(kind), redis_server, tmp_path)
    old.secret = make_key(old.place)
    tiny.write_zip(tmp_path / "tapes.zip", "packed", PACKED)
    names = ("gateway", "dispatcher", "ingester", "worker-1", "worker-2")
    with running(old, *names) as http:
        first = post(http, "/v1/jobs", json={"name": "first"})["id"]
        for number in range(FIRST):
            data, params = tiny.recording("first", number), {"name": f"{number}.wav"}
            post(http, f"/v1/jobs/{first}/recordings", params=params, content=data)
        post(http, f"/v1/jobs/{first}/close")
        wait_for(http, first)
        before = results(http, first)
        hook = post(http, "/v1/webhooks", json={"url": "https://hooks.example.org/", "kinds": []})
        opened = post(http, "/v1/jobs", json={"name": "open"})["id"]
        packed = post(http, "/v1/jobs", json={"name": "packed"})["id"]
        headers = {"Content-Type": "application/zip"}
        archive = (tmp_path / "tapes.zip").read_bytes()
        post(http, f"/v1/jobs/{packed}/sources?name=a.zip", content=archive, headers=headers)
        post(http, f"/v1/jobs/{packed}/close")
        uploader = Uploader(http, opened)
        uploader.start()
        kill_at_work(old, "worker-1")
        until(lambda: len(uploader.taken) >= 20)
        acknowledged = list(uploader.taken)
        made = old.soundmill("backup", str(folder))
        uploader.stop.set()
        uploader.join()
    assert (made["database"], made["flaws"]) == (
        {EMBEDDED: "sqlite", CLUSTER: "postgresql"}[kind],
        0,
    )
    wipe(old.place)

    new = Deployment(make_place(into), redis_server, tmp_path, secret=old.secret)
    new.soundmill("backup", "--check", str(folder))
    restored = new.soundmill("restore", str(folder))
    assert restored["rows"] == made["rows"]
    assert restored["runs_begun_anew"] >= 1
    with running(new, "gateway", "dispatcher", "ingester", "worker-1") as http:
        assert results(http, first) == before
        assert [one["id"] for one in http.get("/v1/webhooks").json()["webhooks"]] == [hook["id"]]
        post(http, f"/v1/jobs/{opened}/close")
        assert wait_for(http, opened)["recordings"] >= len(acknowledged)
        assert wait_for(http, packed)["recordings"] == PACKED
        for recording_id in acknowledged:
            http.get(f"/v1/recordings/{recording_id}").raise_for_status()
        assert len(before) == FIRST * len(Stage)
    check_everything(new.place)


def make_key(place: Place) -> str:
    place.store.prepare()
    engine = make_engine(place.settings)
    migrate(engine)
    with make_sessions(engine).begin() as session:
        secret = keys.make(session, "drill", {Scope.SUBMIT, Scope.READ}).secret
    engine.dispose()
    return secret


def check_everything(place: Place) -> None:
    """Every run succeeded, and every byte is what it must be."""
    names = list(tiny.names("packed", PACKED))
    sent = {name: tiny.recording("packed", number) for number, name in enumerate(names)}
    engine = make_engine(place.settings)
    objects = place.objects()
    with make_sessions(engine)() as session:
        assert set(session.scalars(select(StageRun.state))) == {"succeeded"}
        for artifact in session.scalars(select(Artifact)):
            assert objects[artifact.object_key] == CONTENT[artifact.kind]
        for recording in session.scalars(select(Recording)):
            data = objects[recording.object_key]
            assert hashlib.sha256(data).hexdigest() == recording.sha256
            kind, _, number = recording.name.removesuffix(".wav").rpartition("-")
            if recording.name in sent:
                assert data == sent.pop(recording.name)
            elif kind == "open":
                assert data == tiny.recording("open", int(number))
            else:
                assert data == tiny.recording("first", int(number))
    engine.dispose()
    assert not sent
