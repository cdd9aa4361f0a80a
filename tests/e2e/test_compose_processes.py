"""Every container of ``docker-compose.yml`` as a process: its command, its environment, its health.

No container engine is needed. Commands and environments are those of the Compose file, with the
variables of ``.env.example``, and of the image's stage. Replaced are only names and ports of hosts,
keys of servers that have their own, and folders. PostgreSQL and the S3 server are those of the
other tests (Swift in SeaweedFS's place); Redis runs the command line of the file.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import psycopg
import pytest
import soundfile

from common.broker import SOFT_SHUTDOWN_S
from common.domain import SERVICE_OF
from tests.deployment import ROOT, example_variables, read_compose, stages
from tests.servers import TESTS, PostgresServer, RedisServer, S3Server, free_port

WORKERS = list(SERVICE_OF.values())
WATCHED = ["dispatcher", "ingester", *WORKERS]
PROCESSES = ["gateway", *WATCHED]
START_TIMEOUT_S = 300.0
VENV_BIN = Path(sys.executable).parent
RECORDINGS = 3
READ_ONLY = "/proc"  # there, and nobody can write to it: as the home of an image


class Containers:
    """The services of the Compose file, each as a process in folders of its own."""

    def __init__(self, folder: Path, variables: dict[str, str], hosts: dict[str, str]) -> None:
        self._folder = folder
        self._services: dict[str, Any] = read_compose(variables=variables)["services"]
        self._hosts = hosts
        self._ports = {name: free_port() for name in (*PROCESSES, "redis")}
        hosts["@redis:6379"] = f"@127.0.0.1:{self._ports['redis']}"
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def port(self, name: str) -> int:
        """Where the service listens: one port here, where every container has its own 9464."""
        return self._ports[name]

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._ports[name]}"

    def grace_s(self, name: str) -> float:
        """How long an engine waits between SIGTERM and SIGKILL."""
        return float(self._services[name]["stop_grace_period"].removesuffix("s"))

    def start(self, name: str) -> None:
        """Start the service's own command."""
        self.running[name] = self._open(name, self._command(name), self.log(name))

    def run(self, name: str, command: list[str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run the service's command, or another in its place, to its end."""
        output = self._folder / f"{name}.run.log"
        output.unlink(missing_ok=True)
        code = self._open(name, command or self._command(name), output).wait(START_TIMEOUT_S)
        return subprocess.CompletedProcess(command or [], code, output.read_text())

    def is_healthy(self, name: str) -> bool:
        """Run the health check of the Compose file."""
        kind, *command = self._services[name]["healthcheck"]["test"]
        if kind == "CMD-SHELL":
            command = ["sh", "-c", *command]
        return self.run(name, command).returncode == 0

    def log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def wait_for(self, condition: Callable[[], Any], of: str) -> Any:
        """Return the first true value of ``condition``; fail when a process ends meanwhile."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (value := condition()):
            ended = [name for name, process in self.running.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                tails = [self.log(name).read_text()[-3000:] for name in {*ended, of}]
                pytest.fail(f"waited for {of}; ended: {ended}\n" + "\n".join(tails))
            time.sleep(0.1)
        return value

    def stop(self, name: str) -> int:
        """As an engine does: SIGTERM to the main process alone; return its exit code."""
        process = self.running.pop(name)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        code = process.wait(self.grace_s(name))
        assert not [child for child in family if child.is_running()], f"{name} left children"
        return code

    def kill(self) -> None:
        """End whatever a failed test left running."""
        for process in self.running.values():
            process.kill()
            process.wait()

    def _command(self, name: str) -> list[str]:
        service = self._services[name]
        if "command" in service:
            return [str(part) for part in service["command"]]
        return stages()[service["build"]["target"]].command

    def _environment(self, name: str) -> dict[str, str]:
        service = self._services[name]
        stage = stages()[service["build"]["target"]] if "build" in service else None
        given = {"PATH": "/usr/bin:/bin", "HOME": "/var/lib/soundmill"}
        given |= stage.environment if stage else {}
        given |= {key: str(value) for key, value in service.get("environment", {}).items()}
        return {key: self._replaced(name, value) for key, value in given.items()}

    def _replaced(self, name: str, text: str) -> str:
        """Put what is on this machine in the place of what is in a container."""
        home = self._folder / name
        path = f"{VENV_BIN}:{RedisServer.binary().parent}:/usr/bin:/bin"
        changes = self._hosts | {
            "/opt/soundmill/bin:$PATH": path,
            "/opt/healthcheck.py": str(ROOT / "deploy" / "healthcheck.py"),
            "/var/lib/soundmill": READ_ONLY,
            "/run/metrics": str(home / "metrics"),
            "/scratch": str(home / "scratch"),
            "dir /data": f"dir {home / 'data'}",
        }
        if text == "/usr/bin:/bin":
            return path
        for old, new in changes.items():
            text = text.replace(old, new)
        if name in self._ports:
            for port in ("9464", "8420", "6379"):
                text = text.replace(port, str(self._ports[name]))
        return text

    def _open(self, name: str, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        environment = self._environment(name)
        home = self._folder / name
        for part in ("scratch", "metrics", "data"):
            (home / part).mkdir(parents=True, exist_ok=True)
        told = [self._replaced(name, part) for part in command]
        if told[0] == "redis-cli" or "redis-cli ping" in told[-1]:
            environment["REDISCLI_PORT"] = str(self._ports["redis"])
            told[-1] = told[-1].replace("redis-cli", f"redis-cli -p {self._ports['redis']}")
        program = shutil.which(told[0], path=environment["PATH"])
        assert program is not None, told
        tether = [sys.executable, "-IS", TESTS / "tether.py", "SIGKILL", "-"]
        with log.open("ab") as output:
            return subprocess.Popen(
                [*map(str, tether), program, *told[1:]],
                env=environment,
                cwd=READ_ONLY,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )


@pytest.fixture
def containers(
    tmp_path: Path, postgres_server: PostgresServer, s3_server: S3Server
) -> Iterator[Containers]:
    """What stands around the processes is there; none of them has been started."""
    with psycopg.connect(_plain(postgres_server.url()), autocommit=True) as admin:
        admin.execute("CREATE DATABASE soundmill")
    s3_server.client().make_bucket("soundmill")
    variables = example_variables() | {
        "POSTGRES_PASSWORD": postgres_server.password,
        "S3_ACCESS_KEY": s3_server.ACCESS_KEY,
        "S3_SECRET_KEY": s3_server.SECRET_KEY,
    }
    hosts = {"@postgres:5432": f"@127.0.0.1:{postgres_server.port}", "s3:8333": s3_server.endpoint}
    found = Containers(tmp_path, variables, hosts)
    try:
        yield found
    finally:
        found.kill()
        postgres_server.drop_database("soundmill")
        for thing in s3_server.client().list_objects("soundmill", recursive=True):
            s3_server.client().remove_object("soundmill", str(thing.object_name))
        s3_server.client().remove_bucket("soundmill")


def _plain(url: str) -> str:
    return url.replace("postgresql+psycopg", "postgresql")


def test_every_container_runs_as_a_process(containers: Containers, tmp_path: Path) -> None:
    containers.start("redis")
    containers.wait_for(lambda: containers.is_healthy("redis"), "redis")

    # A gateway that others can reach does not start without a schema, nor without a key.
    assert containers.run("gateway").returncode == os.EX_DATAERR
    assert containers.run("migrate").returncode == 0
    assert containers.run("gateway").returncode == os.EX_CONFIG
    made = containers.run("gateway", ["soundmill", "keys", "create", "me"])
    assert made.returncode == 0, made.stdout
    key = next(word for word in made.stdout.split() if word.startswith("sm_"))

    for name in PROCESSES:
        containers.start(name)
    for name in PROCESSES:
        containers.wait_for(lambda name=name: containers.is_healthy(name), name)
        containers.wait_for(lambda name=name: _answers(f"{containers.url(name)}/ready"), name)

    with httpx.Client(
        base_url=containers.url("gateway"),
        headers={"Authorization": f"Bearer {key}"},
        timeout=60,
        trust_env=False,
    ) as http:
        job = http.post("/v1/jobs", json={"name": "compose"}).raise_for_status().json()["id"]
        for number in range(RECORDINGS):
            http.post(
                f"/v1/jobs/{job}/recordings",
                params={"name": f"{number}.wav"},
                content=_sound(tmp_path / f"{number}.wav", number),
            ).raise_for_status()
        http.post(f"/v1/jobs/{job}/close").raise_for_status()
        ended = containers.wait_for(lambda: _completed(http, job), "dispatcher")
    done = {stage: funnel["succeeded"] for stage, funnel in ended["funnel"].items()}
    assert done == dict.fromkeys(SERVICE_OF, RECORDINGS), ended

    told = containers.run("gateway", ["soundmill", "doctor", "--json"])
    assert told.returncode == 0, told.stdout
    assert json.loads(told.stdout)["well"] is True

    for name in WATCHED:
        page = httpx.get(f"{containers.url(name)}/metrics", trust_env=False).text
        assert f'soundmill_build_info{{service="{name}"' in page
        if name in WORKERS:
            assert "soundmill_attempts_total" in page

    # Redis goes last: the others are allowed to need it until their end.
    codes = {name: containers.stop(name) for name in [*WORKERS, "gateway", "ingester"]}
    codes["dispatcher"] = containers.stop("dispatcher")
    codes["redis"] = containers.stop("redis")
    assert codes == dict.fromkeys([*PROCESSES, "redis"], 0)


def test_workers_stay_alive_while_redis_is_away(containers: Containers) -> None:
    """An engine that heeds health checks does not start workers anew for a Redis that is down."""
    containers.start("redis")
    containers.wait_for(lambda: containers.is_healthy("redis"), "redis")
    assert containers.run("migrate").returncode == 0
    containers.start("segmenter")
    containers.start("dispatcher")
    for name in ("segmenter", "dispatcher"):
        containers.wait_for(lambda name=name: _answers(f"{containers.url(name)}/ready"), name)

    containers.stop("redis")
    for name in ("segmenter", "dispatcher"):
        containers.wait_for(lambda name=name: not _answers(f"{containers.url(name)}/ready"), name)
        assert containers.is_healthy(name)

    containers.start("redis")
    for name in ("segmenter", "dispatcher"):
        containers.wait_for(lambda name=name: _answers(f"{containers.url(name)}/ready"), name)
    assert [containers.stop(name) for name in ("segmenter", "dispatcher", "redis")] == [0, 0, 0]


def test_the_soft_shutdown_ends_before_the_engine_kills(containers: Containers) -> None:
    assert all(containers.grace_s(worker) > SOFT_SHUTDOWN_S for worker in WORKERS)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _completed(http: httpx.Client, job: str) -> dict[str, Any] | None:
    found: dict[str, Any] = http.get(f"/v1/jobs/{job}").raise_for_status().json()
    return found if found["state"] == "completed" else None


def _sound(path: Path, seed: int) -> bytes:
    """Return a WAV file of one second of noise under a tone."""
    rate = 16_000
    noise = np.random.default_rng(seed).normal(0.0, 0.05, rate)
    tone = 0.3 * np.sin(2 * np.pi * 440.0 * np.arange(rate) / rate)
    soundfile.write(path, noise + tone, rate)
    return path.read_bytes()
