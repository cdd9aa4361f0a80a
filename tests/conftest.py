"""Fixtures that every test may use: real servers, started at first use and once per test run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.settings import Settings
from common.storage import ObjectStore, open_store
from tests.servers import PostgresServer, RedisServer, S3Server


def pytest_configure() -> None:
    """Keep the developer's own settings out, and each process to one thread."""
    for name in [name for name in os.environ if name.startswith("SOUNDMILL_")]:
        del os.environ[name]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: Path(item.fspath).parent.name not in ("e2e", "pipeline"))


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    server = RedisServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """A running, empty Redis. A test may kill it: the next one finds it running and empty."""
    shared_redis.reset()
    return shared_redis


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database of this test alone: once SQLite, once PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/test.db"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.create_database()
    yield server.url(name)
    server.drop_database(name)


@pytest.fixture(params=["directory", "s3"])
def store_options(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The settings of an empty object store of this test alone: once a directory, once S3."""
    if request.param == "directory":
        return {"store_url": f"file://{tmp_path}/objects"}
    server: S3Server = request.getfixturevalue("s3_server")
    return {
        "store_url": f"s3://{server.create_bucket()}",
        "s3_endpoint": server.endpoint,
        "s3_access_key": server.ACCESS_KEY,
        "s3_secret_key": server.SECRET_KEY,
        "s3_region": server.REGION,
        "s3_secure": False,
    }


@pytest.fixture
def store(store_options: dict[str, Any], tmp_path: Path) -> ObjectStore:
    """An empty object store: once a directory, once S3."""
    return open_store(Settings(home=tmp_path, **store_options))
