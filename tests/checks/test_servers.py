"""What the checks tell about a database, a Redis or a store that is set up wrongly, or full."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import minio.time
import psycopg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from common.checks import Check, Status
from common.checks.base import EXIT_CONFIG, EXIT_REFUSED, EXIT_SCHEMA
from common.checks.database import newest_version
from common.db import make_engine
from common.migrate import MIGRATIONS
from common.settings import Settings
from tests.checks.conftest import ON_DIRECTORY, ON_SQLITE, SECRET, found, with_
from tests.servers import PostgresServer, RedisServer, S3Server, free_port

# The database and its schema


def test_the_newest_version_is_that_of_the_migrations() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert [newest_version()] == list(ScriptDirectory.from_config(config).get_heads())


@pytest.mark.parametrize("store_options", ["directory"], indirect=True)
def test_a_database_without_tables(settings: Settings, database_url: str, tmp_path: Path) -> None:
    engine = make_engine(settings)
    with engine.begin() as connection:
        for (name,) in connection.exec_driver_sql(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%%'"
            if engine.dialect.name == "sqlite"
            else "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        ).all():
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql(f'DROP TABLE "{name}"')
            else:
                connection.exec_driver_sql(f'DROP TABLE "{name}" CASCADE')
    engine.dispose()
    check = found(settings)["schema"]
    assert (check.status, check.exit_code) == (Status.FAILED, EXIT_SCHEMA)
    assert check.detail == "the database holds no tables yet"
    assert "python -m common.migrate" in check.advice


@ON_DIRECTORY
@pytest.mark.parametrize(
    ("version", "status", "words"),
    [
        ("0001", Status.FAILED, f"0001 is older than this code, which needs {newest_version()}"),
        ("9999", Status.OK, "9999, newer than this code"),
        (None, Status.FAILED, "do not say which version"),
    ],
)
def test_versions_of_the_schema(
    settings: Settings, version: str | None, status: Status, words: str
) -> None:
    engine = make_engine(settings)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "DELETE FROM alembic_version"
            if version is None
            else f"UPDATE alembic_version SET version_num = '{version}'"
        )
    engine.dispose()
    check = found(settings)["schema"]
    assert check.status is status
    assert words in check.detail
    assert check.exit_code == (EXIT_SCHEMA if status is Status.FAILED else None)


@ON_SQLITE
@ON_DIRECTORY
def test_a_table_that_is_gone_and_a_file_that_is_not_there(
    settings: Settings, tmp_path: Path
) -> None:
    engine = make_engine(settings)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE artifact RENAME TO gone")
    engine.dispose()
    assert found(settings)["schema"].detail == "tables are missing: artifact"
    other = tmp_path / "none" / "soundmill.db"
    checks = found(with_(settings, database_url=f"sqlite:///{other}"))
    assert checks["database"].exit_code == EXIT_SCHEMA
    assert checks["schema"].status is Status.WARNING
    assert not other.parent.exists()  # looking makes nothing


@ON_DIRECTORY
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_postgresql_that_lets_nobody_in(
    settings: Settings, postgres_server: PostgresServer
) -> None:
    url = settings.database_url.get_secret_value()
    where = f"127.0.0.1:{postgres_server.port}"

    def database(other: str) -> Check:
        return found(with_(settings, database_url=other))["database"]

    wrong = database(url.replace(postgres_server.password, SECRET))
    assert wrong.detail == f"{where} refuses the password of user soundmill"
    assert (wrong.exit_code, wrong.passes) == (EXIT_REFUSED, False)
    gone = database(url.rpartition("/")[0] + "/no_such")
    assert gone.detail == f"{where} has no database no_such"
    closed = database(url.replace(f":{postgres_server.port}/", f":{free_port()}/"))
    assert closed.detail.startswith("nothing listens at 127.0.0.1:")
    assert (closed.exit_code, closed.passes) == (None, True)
    nowhere = database(url.replace("@127.0.0.1", "@no-such-host.invalid"))
    assert nowhere.detail == "the name no-such-host.invalid is not known"
    two = database(url.replace("@127.0.0.1", f"@{SECRET}@127.0.0.1"))
    assert "%40" in two.advice
    user = database(url.replace("//soundmill:", "//soundmill@server:"))  # as some clouds name them
    assert user.detail == f"{where} refuses the password of user soundmill@server"
    strange = database(f"nonsense://{SECRET}")
    assert strange.exit_code == EXIT_CONFIG


@ON_DIRECTORY
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_postgresql_that_can_only_be_read(
    settings: Settings, postgres_server: PostgresServer
) -> None:
    url = settings.database_url.get_secret_value()
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        try:
            check = found(settings)["database"]
        finally:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
    assert check.status is Status.FAILED
    assert "can only be read" in check.detail


# Redis


@ON_SQLITE
@ON_DIRECTORY
@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}, Status.FAILED, "allkeys-lru"),
        ({"maxmemory": "100mb", "maxmemory-policy": "volatile-lru"}, Status.WARNING, "rate limits"),
        ({"maxmemory-policy": "allkeys-lru"}, Status.WARNING, "maxmemory is not set"),
        ({"maxmemory": "100mb"}, Status.OK, "evicts nothing"),
        ({"appendonly": "no"}, Status.WARNING, "do not outlive a restart"),
        ({"appendonly": "no", "save": "60 1"}, Status.OK, "snapshots"),
    ],
)
def test_policies_of_redis(
    settings: Settings,
    own_redis: RedisServer,
    changes: dict[str, str],
    status: Status,
    words: str,
) -> None:
    with own_redis.client() as client:
        for name, value in changes.items():
            client.config_set(name, value)
    check = found(with_(settings, redis_url=own_redis.url))["redis_policy"]
    assert check.status is status
    assert words in check.detail
    assert check.exit_code == (EXIT_CONFIG if status is Status.FAILED else None)


@ON_SQLITE
@ON_DIRECTORY
def test_a_redis_that_lets_nobody_in_or_look(settings: Settings, own_redis: RedisServer) -> None:
    address = f"127.0.0.1:{own_redis.port}"

    def checks(url: str) -> dict[str, Check]:
        return found(with_(settings, redis_url=url))

    with own_redis.client() as client:
        for name, taken in (("nosy", "-info"), ("managed", "-config"), ("timeless", "-time")):
            rights = ["reset", "on", f">{SECRET}", "allkeys", "+@all", taken]
            client.execute_command("ACL", "SETUSER", name, *rights)
        client.config_set("appendonly", "no")
        client.config_set("requirepass", SECRET)
    for url in (own_redis.url, f"redis://:{SECRET}1@{address}/0"):
        check = checks(url)["redis"]
        assert check.exit_code == EXIT_REFUSED
        assert check.detail == f"{address} refuses the password, or wants one"
    for name, words in (("nosy", "INFO is not allowed"), ("managed", "CONFIG is not allowed")):
        known = checks(f"redis://{name}:{SECRET}@{address}/0")
        assert known["redis"].status is Status.OK
        assert known["redis_policy"].status is Status.WARNING
        assert words in known["redis_policy"].detail
    timeless = checks(f"redis://timeless:{SECRET}@{address}/0")
    assert timeless["redis"].status is Status.OK
    own_redis.kill()
    gone = checks(own_redis.url)
    assert gone["redis"].detail == f"nothing listens at {address}"
    assert gone["redis"].passes
    assert gone["redis_policy"].status is Status.WARNING
    assert checks(f"redis://:a/{SECRET}@{address}/0")["redis"].exit_code == EXIT_CONFIG


@ON_SQLITE
@ON_DIRECTORY
def test_a_redis_that_is_nearly_full_or_only_reads(
    settings: Settings, own_redis: RedisServer, redis_server: RedisServer
) -> None:
    settings = with_(settings, redis_url=own_redis.url)
    with own_redis.client() as client:
        client.set("filler", bytes(8 << 20))
        client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 1.05))
        check = found(settings)["redis"]
        assert check.status is Status.WARNING
        assert "of its memory" in check.detail
        client.config_set("maxmemory", 0)
        client.replicaof("127.0.0.1", redis_server.port)
    assert "a replica, which only reads" in found(settings)["redis"].detail


# The store


@ON_SQLITE
@pytest.mark.parametrize("store_options", ["s3"], indirect=True)
def test_an_s3_server_that_refuses(
    settings: Settings, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def store(**changes: Any) -> Check:
        return found(with_(settings, **changes), deep=True)["store"]

    wrong = store(s3_secret_key=SECRET)
    assert "refuses the secret key" in wrong.detail
    assert (wrong.exit_code, wrong.passes) == (EXIT_REFUSED, False)
    assert "SOUNDMILL_S3_SECRET_KEY" in wrong.advice
    assert store(s3_access_key="no:body").exit_code == EXIT_REFUSED
    assert store(s3_access_key="").detail == "no access key is set"
    bucket = store(store_url="s3://no-such-bucket")
    assert bucket.detail == "bucket no-such-bucket does not exist"
    assert (bucket.exit_code, bucket.passes) == (None, True)  # the gateway makes it
    assert store(s3_region="eu-west-9").exit_code == EXIT_CONFIG
    url = store(s3_endpoint=f"http://{s3_server.endpoint}/path")
    assert (url.exit_code, "without http://" in url.advice) == (EXIT_CONFIG, True)
    closed = store(s3_endpoint=f"127.0.0.1:{free_port()}")
    assert closed.detail.endswith("nothing listens there")
    assert closed.passes
    assert "TLS" in store(s3_secure=True).detail
    nonsense = store(store_url="ftp://somewhere")
    assert nonsense.exit_code == EXIT_CONFIG
    # An hour off: the server refuses, and its answer tells by how much.
    real = minio.time.utcnow
    monkeypatch.setattr(minio.time, "utcnow", lambda: real() + timedelta(hours=1))
    checks = found(settings, now=lambda: time.time() + 3600)
    assert "clock is off" in checks["store"].detail
    assert checks["store"].passes
    assert "3600 s ahead of the store" in checks["clock"].detail
    assert checks["clock"].status is Status.FAILED


@ON_SQLITE
@ON_DIRECTORY
def test_a_folder_that_is_gone(settings: Settings, tmp_path: Path) -> None:
    check = found(with_(settings, store_url=f"file://{tmp_path}/none"))["store"]
    assert check.status is Status.FAILED
    assert check.passes  # it may be mounted yet
