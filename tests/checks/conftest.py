"""A deployment in which all is well, ways to spoil it, and what the checks then find."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.checks import Check, run
from common.db import make_engine
from common.settings import Settings
from common.storage import open_store
from tests.databases import prepare
from tests.servers import RedisServer

SECRET = "very-secret-of-the-test"
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
ON_DIRECTORY = pytest.mark.parametrize("store_options", ["directory"], indirect=True)


@pytest.fixture
def settings(
    tmp_path: Path, database_url: str, store_options: dict[str, Any], redis_server: RedisServer
) -> Settings:
    """Settings of a deployment in which all is well."""
    (tmp_path / "scratch").mkdir()
    found = Settings(
        home=tmp_path, database_url=database_url, redis_url=redis_server.url, **store_options
    )
    engine = make_engine(found)
    prepare(engine)
    engine.dispose()
    open_store(found).prepare()
    return found


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis that a test may set up wrongly."""
    server = RedisServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


def found(settings: Settings, **options: Any) -> dict[str, Check]:
    """Run all checks; return them by name. No secret is in any of them."""
    checks = run(settings, **options)
    assert SECRET not in repr(checks)
    return {check.name: check for check in checks}


def with_(settings: Settings, **changes: Any) -> Settings:
    """Return settings that differ from these in what is named."""
    return Settings(**{**settings.model_dump(exclude_unset=True), **changes})
