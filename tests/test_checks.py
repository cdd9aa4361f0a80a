"""What the checks tell about real servers: well, wrong in every way we know of, or full."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import minio.time
import psycopg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from common.checks import Check, Checker, Clock, Disk, Status, checker, clock, disk, run
from common.checks.base import EXIT_CONFIG, EXIT_REFUSED, EXIT_SCHEMA
from common.checks.database import newest_version
from common.checks.observe import CheckMetrics
from common.checks.start import readiness
from common.db import make_engine
from common.metrics import expose
from common.migrate import MIGRATIONS, migrate
from common.settings import Settings
from common.storage import open_store
from tests.servers import PostgresServer, RedisServer, S3Server, free_port

SECRET = "very-secret-of-the-test"
NAMES = ["database", "schema", "redis", "redis_policy", "store", "clock", "disk"]
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
ON_DIRECTORY = pytest.mark.parametrize("store_options", ["directory"], indirect=True)
STACKS = pytest.mark.parametrize(
    ("database_url", "store_options"),
    [("sqlite", "directory"), ("postgresql", "s3")],
    indirect=True,
    ids=["embedded", "cluster"],
)


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
    migrate(engine)
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
    return Settings(**{**settings.model_dump(exclude_unset=True), **changes})


@STACKS
def test_all_is_well(settings: Settings) -> None:
    for deep in (False, True):
        checks = found(settings, deep=deep)
        assert list(checks) == NAMES
        assert {check.status for check in checks.values()} == {Status.OK}
    assert list(open_store(settings).list()) == []  # the deep look leaves nothing behind


def test_the_newest_version_is_that_of_the_migrations() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert [newest_version()] == list(ScriptDirectory.from_config(config).get_heads())


# The database and its schema


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
    assert (bucket.exit_code, bucket.passes) == (None, False)
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
    assert not check.passes


# Clocks: this machine's is shifted where it enters the checks; the servers' are real


@pytest.mark.parametrize(
    ("database_url", "store_options"), [("postgresql", "s3")], indirect=True, ids=["cluster"]
)
@pytest.mark.parametrize(
    ("shift_s", "status", "words"),
    [
        (60.0, Status.WARNING, "60 s ahead of the database and 60 s ahead of Redis"),
        (-400.0, Status.FAILED, "400 s behind the database"),
    ],
)
def test_clocks_apart(settings: Settings, shift_s: float, status: Status, words: str) -> None:
    checker = Checker(settings, now=lambda: time.time() + shift_s)
    report = checker.report()
    (check,) = [check for check in report.checks if check.name == "clock"]
    assert check.status is status
    assert words in check.detail
    assert {c.of for c in report.clocks} == {"database", "redis", "store"}
    for other in report.clocks:
        assert other.ahead_s == pytest.approx(shift_s, abs=other.error_s + 0.1)


def test_a_slow_answer_is_not_taken_for_a_wrong_clock() -> None:
    slow = Clock("database", ahead_s=9.0, error_s=8.0)
    assert clock.judge([slow], Settings()).status is Status.OK
    assert clock.judge([Clock("database", 9.0, 1.0)], Settings()).status is Status.WARNING
    assert clock.judge([], Settings()).status is Status.OK


# Disks


@pytest.mark.parametrize(
    ("free", "total", "status"),
    [
        (500 << 20, 1 << 40, Status.FAILED),
        (1536 << 20, 1 << 40, Status.WARNING),
        (3 << 30, 1 << 40, Status.OK),
        (300 << 20, 2 << 30, Status.OK),  # small disks are judged by their size
        (50 << 20, 2 << 30, Status.FAILED),
    ],
)
def test_room_on_disks(free: int, total: int, status: Status) -> None:
    assert disk.judge("scratch", Disk("scratch", free, total), 1 << 30).status is status


@ON_SQLITE
@ON_DIRECTORY
def test_places_and_what_is_least(settings: Settings, tmp_path: Path) -> None:
    assert disk.places(settings) == {
        "scratch": tmp_path / "scratch",
        "store": tmp_path / "objects",
        "database": tmp_path,
    }
    (disks,) = {(d.free_bytes, d.total_bytes) for d in Checker(settings, ["disk"]).report().disks}
    assert 0 < disks[0] < disks[1]
    assert found(with_(settings, min_free_bytes=1))["disk"].status is Status.OK


# Asking


@pytest.fixture
def silent_server() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


@ON_SQLITE
@ON_DIRECTORY
def test_what_hangs_holds_up_nobody_and_is_asked_once(
    settings: Settings, silent_server: int
) -> None:
    settings = with_(
        settings,
        store_url="s3://bucket",
        s3_endpoint=f"127.0.0.1:{silent_server}",
        s3_access_key="a",
        s3_secret_key=SECRET,
        s3_secure=False,
    )
    before = threading.active_count()
    checker = Checker(settings, timeout_s=0.3)
    for _ in range(3):
        checks = {check.name: check for check in checker.report().checks}
        assert checks["store"].detail == "no answer within 0.3 s"
        assert checks["store"].passes
        assert checks["redis"].status is Status.OK
        checker._good_until = 0.0
    assert threading.active_count() <= before + 1


@ON_SQLITE
@ON_DIRECTORY
def test_a_probe_every_second_costs_nothing(
    settings: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(checker.time, "monotonic", lambda: now)
    asked = Checker(settings)
    with redis_server.client() as client:
        asked.report()
        client.config_resetstat()
        first = asked.report()
        now += checker.FRESH_S - 0.1
        assert asked.report() is first
        commands = client.info("commandstats")
        assert not {"cmdstat_ping", "cmdstat_time"} & set(commands)
    now += 0.2
    assert asked.report() is not first
    redis_server.kill()
    now += checker.FRESH_S
    assert not asked.report().is_well
    redis_server.start()
    now += checker.FAILED_FRESH_S
    assert asked.report().is_well


@STACKS
def test_metrics(settings: Settings, redis_server: RedisServer) -> None:
    registry = CollectorRegistry()
    registry.register(CheckMetrics(Checker(settings, now=lambda: time.time() + 100)))

    def samples() -> dict[tuple[str, ...], float]:
        page = expose(registry).body.decode()
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }

    redis_server.kill()
    values = samples()
    assert {key[1]: value for key, value in values.items() if key[0] == "soundmill_ready"} == {
        **dict.fromkeys(NAMES, 1.0),
        "redis": 0.0,
    }
    assert ("soundmill_clock_skew_seconds", "redis") not in values
    if settings.store_url.startswith("s3:"):
        for other in ("database", "store"):
            skew_s = values["soundmill_clock_skew_seconds", other]
            assert skew_s == pytest.approx(100, abs=2)
    else:
        assert values["soundmill_disk_bytes", "store"] > 0
    free = values["soundmill_disk_free_bytes", "scratch"]
    assert 0 < free < values["soundmill_disk_bytes", "scratch"]


@ON_SQLITE
@ON_DIRECTORY
def test_readiness_of_a_gateway_bears_a_redis_that_evicts(
    settings: Settings, own_redis: RedisServer
) -> None:
    with own_redis.client() as client:
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
    report = Checker(with_(settings, redis_url=own_redis.url)).report()
    assert readiness(report, "gateway")["redis_policy"].startswith("ok, but Redis evicts")
    assert readiness(report, "dispatcher")["redis_policy"].startswith("Redis evicts")
    others: Callable[[str], dict[str, str]] = lambda service: {  # noqa: E731
        name: text for name, text in readiness(report, service).items() if name != "redis_policy"
    }
    assert set(others("gateway").values()) == set(others("segmenter").values()) == {"ok"}


def test_a_checker_asks_only_for_its_parts(tmp_path: Path) -> None:
    with contextlib.closing(socket.socket()):
        checks = run(Settings(home=tmp_path), ["disk"])
    assert [check.name for check in checks] == ["clock", "disk"]
