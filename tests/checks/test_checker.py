"""How the checks are asked and what they tell when all is well; clocks and disks."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from common.checks import Checker, Clock, Disk, Status, checker, clock, disk, run
from common.checks.observe import CheckMetrics
from common.checks.start import readiness
from common.metrics import expose
from common.settings import Settings
from common.storage import open_store
from tests.checks.conftest import ON_DIRECTORY, ON_SQLITE, SECRET, found, with_
from tests.servers import RedisServer

NAMES = ["database", "schema", "redis", "redis_policy", "store", "clock", "disk"]
STACKS = pytest.mark.parametrize(
    ("database_url", "store_options"),
    [("sqlite", "directory"), ("postgresql", "s3")],
    indirect=True,
    ids=["embedded", "cluster"],
)


@STACKS
def test_all_is_well(settings: Settings) -> None:
    for deep in (False, True):
        checks = found(settings, deep=deep)
        assert list(checks) == NAMES
        assert {check.status for check in checks.values()} == {Status.OK}
    assert list(open_store(settings).list()) == []  # the deep look leaves nothing behind


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
