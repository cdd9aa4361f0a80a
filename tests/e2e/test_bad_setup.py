"""Processes in a deployment that is set up wrongly: a sentence and an exit code, or patience.

Each is really started, as the supervisor and the compose file start it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from client.stack import worker_arguments
from common.checks.base import EXIT_CONFIG, EXIT_REFUSED, EXIT_SCHEMA
from common.db import make_engine
from common.domain import Stage
from common.migrate import migrate
from common.settings import Settings
from common.storage import open_store
from tests.servers import PostgresServer, RedisServer, free_port

PATIENCE_S = 90.0
WORKER = "segmenter"
SERVICES = ("gateway", "dispatcher", "ingester", WORKER)
COMMANDS = {
    **{name: ["-m", f"services.{name}"] for name in SERVICES[:3]},
    WORKER: worker_arguments(Stage.SEGMENT, "segmenter-1"),
}
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
ON_DIRECTORY = pytest.mark.parametrize("store_options", ["directory"], indirect=True)
ON_S3 = pytest.mark.parametrize("store_options", ["s3"], indirect=True)
EACH = pytest.mark.parametrize("service", SERVICES)


@dataclass(frozen=True)
class Started:
    """A process of Soundmill and what it says."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def ended(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and the sentence that was said."""
        code = self.process.wait(PATIENCE_S)
        text = self.log.read_text()
        assert "Traceback" not in text, text
        said = [line for line in text.splitlines() if "will not start" in line]
        assert len(said) == 1, text
        return code, said[0]

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def ready(self) -> httpx.Response | None:
        """Return the answer of /ready, None while there is none."""
        try:
            return httpx.get(f"{self.url}/ready", timeout=10, trust_env=False)
        except httpx.HTTPError:
            return None

    def is_ready(self) -> bool:
        answer = self.ready()
        return answer is not None and answer.is_success


@contextmanager
def started(service: str, settings: Settings, **changes: Any) -> Iterator[Started]:
    """Start a process with settings; it is gone afterwards."""
    port = free_port()
    values = settings.model_dump(exclude_unset=True) | changes
    values |= {"port": port} if service == "gateway" else {"metrics_port": port}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SOUNDMILL_")}
    environment |= {"PYTHONUNBUFFERED": "1", "REMAP_SIGTERM": "SIGQUIT"}
    for name, value in values.items():
        reveal = getattr(value, "get_secret_value", None)
        environment[f"SOUNDMILL_{name.upper()}"] = str(reveal() if reveal else value)
    log = settings.home / f"{service}.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, *COMMANDS[service]],
            env=environment,
            cwd=Path(__file__).parents[2],
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            yield Started(process, f"http://127.0.0.1:{port}", log)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture
def settings(
    tmp_path: Path, database_url: str, store_options: dict[str, Any], redis_server: RedisServer
) -> Settings:
    """A deployment that is well, but that its database is empty."""
    found = Settings(
        home=tmp_path, database_url=database_url, redis_url=redis_server.url, **store_options
    )
    open_store(found).prepare()
    return found


@pytest.fixture
def migrated(settings: Settings) -> Settings:
    """A deployment that is well."""
    engine = make_engine(settings)
    migrate(engine)
    engine.dispose()
    return settings


@pytest.fixture
def evicting_redis() -> Iterator[RedisServer]:
    server = RedisServer()
    try:
        server.start()
        with server.client() as client:
            client.config_set("maxmemory", "100mb")
            client.config_set("maxmemory-policy", "allkeys-lru")
        yield server
    finally:
        server.close()


@EACH
@ON_DIRECTORY
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_no_migrations(settings: Settings, service: str) -> None:
    with started(service, settings) as process:
        code, said = process.ended()
    assert code == EXIT_SCHEMA
    assert said.startswith(f"soundmill {service}: will not start: schema: ")
    assert "python -m common.migrate" in said


@ON_SQLITE
@ON_DIRECTORY
def test_a_schema_that_is_older_and_one_that_is_newer(migrated: Settings) -> None:
    engine = make_engine(migrated)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    with started("dispatcher", migrated) as process:
        code, said = process.ended()
    assert code == EXIT_SCHEMA
    assert "version 0001 is older than this code" in said
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with started("dispatcher", migrated) as process:
        process.until(process.is_ready)


@EACH
@ON_SQLITE
@ON_S3
def test_a_wrong_secret_of_the_store(migrated: Settings, service: str) -> None:
    with started(service, migrated, s3_secret_key="not-the-secret") as process:
        code, said = process.ended()
        assert "not-the-secret" not in process.log.read_text()
    assert code == EXIT_REFUSED
    assert said.startswith(f"soundmill {service}: will not start: store: bucket ")
    assert "SOUNDMILL_S3_SECRET_KEY" in said


@ON_DIRECTORY
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_wrong_password_of_the_database(
    migrated: Settings, postgres_server: PostgresServer
) -> None:
    url = migrated.database_url.get_secret_value()
    wrong = url.replace(postgres_server.password, "not-the-password")
    with started("ingester", migrated, database_url=wrong) as process:
        code, said = process.ended()
        assert "not-the-password" not in process.log.read_text()
    assert code == EXIT_REFUSED
    assert "refuses the password of user soundmill" in said


@ON_SQLITE
@ON_DIRECTORY
@pytest.mark.parametrize("service", ["dispatcher", WORKER])
def test_a_redis_that_evicts(migrated: Settings, evicting_redis: RedisServer, service: str) -> None:
    with started(service, migrated, redis_url=evicting_redis.url) as process:
        code, said = process.ended()
    assert code == EXIT_CONFIG
    assert "Redis evicts messages when its memory is full (allkeys-lru)" in said
    assert "noeviction" in said


@ON_SQLITE
@ON_DIRECTORY
def test_a_gateway_bears_a_redis_that_evicts_and_says_so(
    migrated: Settings, evicting_redis: RedisServer
) -> None:
    with started("gateway", migrated, redis_url=evicting_redis.url) as process:
        process.until(process.is_ready)
        answer = process.ready()
        assert answer is not None
        assert answer.json()["checks"]["redis_policy"].startswith("ok, but Redis evicts")
        assert "Redis evicts" in process.log.read_text()
        metrics = httpx.get(f"{process.url}/metrics", trust_env=False).text
        assert 'soundmill_ready{check="redis_policy"} 0.0' in metrics


@ON_SQLITE
@ON_DIRECTORY
@pytest.mark.parametrize("service", ["dispatcher", WORKER])
def test_a_redis_that_comes_later_is_waited_for(
    migrated: Settings, redis_server: RedisServer, service: str
) -> None:
    redis_server.kill()
    with started(service, migrated) as process:
        process.until(lambda: "nothing listens at" in process.log.read_text())
        process.until(lambda: process.ready() is not None)
        answer = process.ready()
        assert answer is not None
        assert answer.status_code == 503
        assert "nothing listens" in answer.json()["checks"]["redis"]
        assert httpx.get(f"{process.url}/health", trust_env=False).is_success
        redis_server.start()
        process.until(process.is_ready)


@EACH
@ON_SQLITE
@ON_DIRECTORY
def test_who_waits_ends_when_asked(
    migrated: Settings, redis_server: RedisServer, service: str
) -> None:
    """With PostgreSQL away; the gateway waits for it where it must know its keys."""
    away = f"postgresql+psycopg://soundmill@127.0.0.1:{free_port()}/soundmill"
    with started(service, migrated, database_url=away, host="0.0.0.0") as process:
        process.until(lambda: "nothing listens at" in process.log.read_text())
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(PATIENCE_S) == 0  # heeded, not merely killed by it
        assert "Traceback" not in process.log.read_text()
