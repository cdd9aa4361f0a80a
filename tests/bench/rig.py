"""A whole Soundmill in processes of its own: to be measured, or killed.

Its workers do nothing (``worker-1``, ...) or are the real ones (``segmenter-1``, ...).

``embedded`` is SQLite and a directory without API keys, ``cluster`` is PostgreSQL and an S3 server
with a key; Redis is real in both. The processes are those that the supervisor and the compose file
start, but nothing starts them again by itself.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import httpx
import psutil

from client.stack import worker_arguments as real_worker_arguments
from common import keys
from common.db import make_engine, make_sessions
from common.domain import SERVICE_OF, Scope
from common.migrate import migrate
from common.settings import Settings
from tests.bench import noop
from tests.servers import PostgresServer, Process, RedisServer, S3Server, free_port, new_folder

ROOT = Path(__file__).resolve().parents[2]
SERVICES = {name: ["-m", f"services.{name}"] for name in ("gateway", "dispatcher", "ingester")}
REAL_WORKERS = {f"{service}-1": stage for stage, service in SERVICE_OF.items()}


class Kind(StrEnum):
    """What stands behind the processes."""

    EMBEDDED = "embedded"
    CLUSTER = "cluster"


@dataclass
class Rig:
    """The processes, by name: gateway, dispatcher, ingester, worker-1, ..."""

    folder: Path
    settings: Settings
    environment: dict[str, str]
    redis: RedisServer
    servers: dict[str, list[int]]  # the process ids of what stands behind
    headers: dict[str, str]  # with an API key, where one is needed
    processes: dict[str, Process] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    @property
    def imports(self) -> Path:
        """The folder that ``file://`` addresses may lie in."""
        return Path(self.settings.import_roots)

    def start(self, name: str) -> None:
        """Start a process, also again after its end; it may not be ready yet on return."""
        arguments = SERVICES.get(name) or worker_arguments(name)
        self.processes[name] = Process(
            [sys.executable, *arguments], self.log(name), env=self.environment
        )

    def kill(self, name: str) -> None:
        """End a process with SIGKILL."""
        self.processes[name].kill()

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def wait_until_ready(self) -> None:
        """Wait until the gateway answers and all behind it does."""

        def is_ready() -> bool:
            try:
                return httpx.get(f"{self.url}/ready", timeout=5, trust_env=False).is_success
            except httpx.HTTPError:
                return False

        self.processes["gateway"].wait_until(is_ready)

    def families(self) -> dict[str, list[psutil.Process]]:
        """Return every process that runs now, with its children, by name."""
        ids = {name: [process.pid] for name, process in self.processes.items()} | self.servers
        return {name: [p for pid in found for p in family(pid)] for name, found in ids.items()}


def family(pid: int) -> list[psutil.Process]:
    """Return a process and its children, as far as they still run."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def worker_arguments(name: str) -> list[str]:
    """Return Python's arguments that run a worker; one that does nothing as the real ones."""
    if name in REAL_WORKERS:
        return real_worker_arguments(REAL_WORKERS[name], name)
    options = ["--pool", "prefork", "--concurrency", "1", "--queues", ",".join(noop.QUEUES)]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "INFO"]
    app = f"{noop.__name__}:app"
    return ["-m", "celery", "-A", app, "worker", "--hostname", f"{name}@%h", *options, *quiet]


@contextmanager
def running(kind: Kind, workers: int | None = 1, **settings: object) -> Iterator[Rig]:
    """Start everything, empty; stop it and remove every file afterwards.

    Args:
        workers: How many that do nothing; None: one real worker for each stage instead.
        settings: Settings of all processes beside those that the rig itself needs.
    """
    folder = new_folder("rig")
    closing: list[Callable[[], None]] = [lambda: shutil.rmtree(folder, ignore_errors=True)]
    try:
        redis = RedisServer()
        closing.append(redis.close)
        redis.start()
        with redis.client() as client:
            servers = {"redis": [int(client.info("server")["process_id"])]}
        imports = folder / "imports"
        imports.mkdir()
        values: dict[str, object] = {
            "home": folder,
            "redis_url": redis.url,
            "port": free_port(),
            "embedded": kind is Kind.EMBEDDED,
            "import_roots": str(imports),
            **settings,
        }
        if kind is Kind.CLUSTER:
            postgres = PostgresServer()
            closing.append(postgres.close)
            postgres.start()
            s3 = S3Server()
            closing.append(s3.close)
            s3.start()
            servers |= {"postgresql": [postgres.pid], "s3": s3.pids}
            values |= {
                "database_url": postgres.url(postgres.create_database()),
                "store_url": f"s3://{s3.create_bucket()}",
                "import_buckets": s3.create_bucket(),
                "s3_endpoint": s3.endpoint,
                "s3_access_key": s3.ACCESS_KEY,
                "s3_secret_key": s3.SECRET_KEY,
                "s3_region": s3.REGION,
                "s3_secure": False,
            }
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("SOUNDMILL_")},
            **{f"SOUNDMILL_{name.upper()}": str(value) for name, value in values.items()},
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "REMAP_SIGTERM": "SIGQUIT",
        }
        all_settings = Settings.model_validate(values)
        headers = prepare_database(all_settings)
        rig = Rig(folder, all_settings, environment, redis, servers, headers)
        closing.append(lambda: stop(rig))
        idle = [f"worker-{number + 1}" for number in range(workers or 0)]
        for name in [*SERVICES, *(idle if workers is not None else REAL_WORKERS)]:
            rig.start(name)
        rig.wait_until_ready()
        yield rig
    finally:
        for close in reversed(closing):
            close()


def prepare_database(settings: Settings) -> dict[str, str]:
    """Make the tables and, unless embedded, an API key; return the headers that carry it."""
    engine = make_engine(settings)
    try:
        migrate(engine)
        if settings.embedded:
            return {}
        with make_sessions(engine).begin() as session:
            secret = keys.make(session, "rig", {Scope.SUBMIT, Scope.READ}).secret
        return {"Authorization": f"Bearer {secret}"}
    finally:
        engine.dispose()


def stop(rig: Rig) -> None:
    """Kill what runs: nothing is to be kept."""
    for name in rig.processes:
        for member in rig.families()[name]:
            member.kill()
        rig.kill(name)
