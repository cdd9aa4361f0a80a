"""What the census tells while Redis or the database does not answer, refuses or hangs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from common.metrics import REGISTRY
from common.settings import Settings
from services.dispatcher import census as census_module
from services.dispatcher.census import Census
from tests.pipeline.told import OF_DATABASE, OF_REDIS, Told, tell
from tests.servers import PostgresServer, RedisServer


def test_what_does_not_answer_is_absent_and_comes_back(
    sessions: sessionmaker[Session], look: Callable[[], Told], redis_server: RedisServer
) -> None:
    def broken() -> float:
        reason = {"reason": "ConnectionError"}
        return REGISTRY.get_sample_value("soundmill_broker_errors_total", reason) or 0.0

    assert look().names >= OF_REDIS
    before = broken()
    redis_server.kill()
    told = look()
    assert not told.names & OF_REDIS
    assert told.names >= OF_DATABASE - {"failed_runs"}
    assert broken() == before + 1
    redis_server.start()
    assert look().names >= OF_REDIS


def test_a_redis_that_does_not_tell_its_memory(
    sessions: sessionmaker[Session], settings: Settings, redis_server: RedisServer
) -> None:
    """Managed ones forbid it: no error, again and again, and the queues are told all the same."""
    with redis_server.client() as client:
        client.execute_command(
            "ACL", "SETUSER", "managed", "reset", "on", ">pw", "allkeys", "+@all", "-info"
        )
    url = redis_server.url.replace("//", "//managed:pw@")
    reason = {"reason": "NoPermissionError"}
    before = REGISTRY.get_sample_value("soundmill_broker_errors_total", reason)
    with closing(Census(settings.model_copy(update={"redis_url": SecretStr(url)}))) as census:
        census.count()
        assert tell(census).names & OF_REDIS == {"queue_messages"}
    assert REGISTRY.get_sample_value("soundmill_broker_errors_total", reason) == before


def test_without_tables_there_are_no_numbers(
    settings: Settings, census: Census, engine: Engine
) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE stage_run RENAME TO elsewhere"))
    before = REGISTRY.get_sample_value(*database_errors(engine)) or 0.0
    census.count()
    assert tell(census).names == OF_REDIS
    assert (REGISTRY.get_sample_value(*database_errors(engine)) or 0.0) == before + 1
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO stage_run"))
    census.count()
    assert tell(census).names >= OF_DATABASE - {"failed_runs"}


def database_errors(engine: Engine) -> tuple[str, dict[str, str]]:
    kind = {"sqlite": "OperationalError", "postgresql": "ProgrammingError"}[engine.dialect.name]
    return "soundmill_database_errors_total", {"reason": kind}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_database_that_refuses(
    sessions: sessionmaker[Session],
    look: Callable[[], Told],
    postgres_server: PostgresServer,
    database_url: str,
) -> None:
    name = database_url.rpartition("/")[2]
    admin = create_engine(postgres_server.url(), isolation_level="AUTOCOMMIT")

    def let_in(whether: bool) -> None:
        with admin.connect() as connection:
            connection.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS {whether}'))
            connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :n"),
                {"n": name},
            )

    everything = (OF_DATABASE | OF_REDIS) - {"failed_runs"}
    assert look().names == everything
    let_in(False)
    assert look().names == OF_REDIS
    let_in(True)
    assert look().names == everything
    admin.dispose()


def test_an_old_count_no_longer_stands_for_now(
    sessions: sessionmaker[Session], census: Census, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that hangs lets the count hang: its last numbers fade."""
    census.count()
    counted_at = time.monotonic()
    monkeypatch.setattr(census_module.time, "monotonic", lambda: counted_at + 10)
    assert tell(census).names >= OF_REDIS
    monkeypatch.setattr(census_module.time, "monotonic", lambda: counted_at + 10_000)
    assert tell(census).names == set()
