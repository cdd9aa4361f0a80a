"""``soundmill doctor`` on deployments that are well, and on each that is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from client.cli import app
from client.doctor import contradictions, machine, processes, weights
from client.home import Home
from common import keys
from common.broker import client_name, make_app
from common.checks import Status
from common.db import DbNow, make_engine, make_sessions
from common.domain import SERVICE_OF, RunState, Scope
from common.settings import Settings
from common.storage import open_store
from common.tables import StageRun
from tests.databases import prepare
from tests.gateway.conftest import STACKS, Gateway
from tests.servers import RedisServer, free_port

ON_CLUSTER = pytest.mark.parametrize(
    ("database_url", "store_options"), [("postgresql", "s3")], indirect=True, ids=["cluster"]
)
SERVICES = ("gateway", "dispatcher", "ingester", *SERVICE_OF.values())


def doctor(*arguments: str, exit_code: int = 0) -> dict[str, dict[str, str]]:
    """Run the command; return its checks by name."""
    result = CliRunner().invoke(app, ["doctor", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == exit_code, result.output
    document = json.loads(result.stdout)
    assert document["well"] is (exit_code == 0)
    return {check["name"]: check for check in document["checks"]}


def printed(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, ["doctor", *arguments], catch_exceptions=False)
    assert result.exit_code == exit_code, result.output
    return " ".join(result.stdout.split())  # where lines break depends on the length of addresses


def statuses(checks: dict[str, dict[str, str]], *names: str) -> set[str]:
    return {checks[name]["status"] for name in names}


@pytest.fixture
def deployment(
    tmp_path: Path,
    database_url: str,
    store_options: dict[str, Any],
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> Settings:
    """A deployment in which no process runs, its settings in the environment."""
    values = {
        "home": tmp_path,
        "database_url": database_url,
        "redis_url": redis_server.url,
        "scratch_dir": tmp_path / "scratch",
        "host": "0.0.0.0",
        **store_options,
    }
    for name, value in values.items():
        monkeypatch.setenv(f"SOUNDMILL_{name.upper()}", str(value))
    settings = Settings()
    engine = make_engine(settings)
    prepare(engine)
    with make_sessions(engine).begin() as session:
        keys.make(session, "first", [Scope.READ])
    engine.dispose()
    open_store(settings).prepare()
    with redis_server.client() as client:  # what earlier tests left open in this process
        for kind in ("normal", "pubsub"):
            client.client_kill_filter(_type=kind, skipme=True)
    return settings


@STACKS
def test_a_deployment_that_is_well_but_idle(deployment: Settings) -> None:
    checks = doctor()
    well = ("database", "schema", "redis", "redis_policy", "store", "clock", "disk", "keys")
    assert statuses(checks, *well) == {"ok"}
    assert "keeps objects" in checks["store"]["detail"]
    # A gateway or a worker that was never started is not seen, and no more is claimed.
    assert {checks[name]["detail"] for name in SERVICES} == {"not seen"}
    assert statuses(checks, *SERVICES) == {"warning"}
    text = printed()
    assert "It works;" in text
    assert "→ If it should run, start it" in text


@ON_CLUSTER
def test_processes_are_seen_by_their_connections_and_their_work(
    gateway: Gateway, deployment: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = gateway.new_job()
    first, second = (gateway.upload(job_id) for _ in range(2))
    with gateway.sessions.begin() as session:
        session.execute(
            update(StageRun)
            .where(StageRun.recording_id == first, StageRun.stage == "segment")
            .values(state=RunState.RUNNING.value, lease_expires_at=DbNow() + 60)
        )
        session.execute(
            update(StageRun)
            .where(StageRun.recording_id == second, StageRun.stage == "segment")
            .values(state=RunState.SUCCEEDED.value)
        )
        session.execute(
            update(StageRun)
            .where(StageRun.recording_id == second, StageRun.stage == "classify")
            .values(state=RunState.READY.value)
        )
    monkeypatch.setenv("PGAPPNAME", "soundmill-ingester")
    engine = make_engine(deployment)
    broker = make_app(deployment, "enhancer")
    with engine.connect(), broker.connection() as connection:
        connection.default_channel.client.ping()
        checks = doctor(exit_code=1)
    engine.dispose()
    assert checks["segmenter"]["detail"] == "seen: works on 1 stage run"
    assert checks["enhancer"]["detail"] == "seen: 1 connection to Redis"
    assert checks["ingester"]["detail"] == "seen: 1 connection to PostgreSQL"
    assert checks["classifier"]["status"] == "failed"
    assert checks["classifier"]["detail"] == "not seen, while 1 stage run waits for it"
    assert checks["restorer"]["status"] == "warning"
    assert client_name("enhancer") == "soundmill-enhancer"


@ON_CLUSTER
def test_a_wrong_secret(deployment: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOUNDMILL_S3_SECRET_KEY", "not-the-secret")
    text = printed(exit_code=1)
    assert "✘ store" in text
    assert "refuses the secret key" in text
    assert "→ Set SOUNDMILL_S3_ACCESS_KEY and SOUNDMILL_S3_SECRET_KEY" in text
    assert "not-the-secret" not in text
    assert "1 does not work" in text


@ON_CLUSTER
def test_no_migrations_and_an_evicting_redis(
    deployment: Settings, redis_server: RedisServer, postgres_server: Any
) -> None:
    engine = make_engine(deployment)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    engine.dispose()
    with redis_server.client() as client:
        client.config_set("maxmemory", "200mb")
        client.config_set("maxmemory-policy", "allkeys-lfu")
        try:
            checks = doctor(exit_code=1)
        finally:
            client.config_set("maxmemory", 0)
            client.config_set("maxmemory-policy", "noeviction")
    assert "0001 is older than this code" in checks["schema"]["detail"]
    assert "python -m common.migrate" in checks["schema"]["advice"]
    assert "allkeys-lfu" in checks["redis_policy"]["detail"]
    assert "noeviction" in checks["redis_policy"]["advice"]
    assert "keys" not in checks  # not asked of tables that may not be there
    redis_server.kill()
    assert doctor(exit_code=1)["redis"]["status"] == "failed"


@STACKS
def test_nobody_has_a_key(deployment: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(deployment)
    with make_sessions(engine).begin() as session:
        (key,) = keys.list_keys(session)
        keys.revoke(session, key.id)
    engine.dispose()
    check = doctor(exit_code=1)["keys"]
    assert check["status"] == "failed"
    assert "soundmill keys create" in check["advice"]
    monkeypatch.setenv("SOUNDMILL_HOST", "127.0.0.1")
    assert doctor()["keys"]["status"] == "warning"


@ON_CLUSTER
def test_settings_that_contradict(deployment: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = f"127.0.0.1:{free_port()}"
    for name, value in {
        "S3_SECRET": "x",
        "HARD_TIME_LIMIT_S": "10",
        "LEASE_S": "1",
        "IMPORT_ROOTS": "/no/such/folder",
        "IMPORT_BUCKETS": f"{deployment.store_url.removeprefix('s3://')}, no-such-bucket",
        "S3_PUBLIC_ENDPOINT": closed,
    }.items():
        monkeypatch.setenv(f"SOUNDMILL_{name}", value)
    checks = doctor(exit_code=1)
    assert checks["time_limits"]["status"] == "failed"
    assert "Is SOUNDMILL_S3_SECRET_KEY meant?" in checks["settings"]["advice"]
    assert checks["lease"]["status"] == "warning"
    assert checks["import_buckets"]["detail"].startswith("no-such-bucket cannot be listed")
    assert "/no/such/folder" in checks["import_roots"]["detail"]
    assert closed in checks["s3_public_endpoint"]["detail"]
    monkeypatch.setenv("SOUNDMILL_S3_PUBLIC_ENDPOINT", deployment.s3_endpoint)
    assert doctor(exit_code=1)["s3_public_endpoint"]["status"] == "ok"


def test_the_defaults_contradict_nothing() -> None:
    (check,) = contradictions.checks(Settings(embedded=True), {"SOUNDMILL_API_KEY": "k"})
    assert check.status is Status.OK
    several = contradictions.checks(Settings(), {})
    assert [check.name for check in several] == ["database_url"]


def test_weights_files(tmp_path: Path) -> None:
    assert {check.status for check in weights.checks()} == {Status.OK}
    assert weights.check("segmenter", tmp_path).status is Status.FAILED
    whole = next(Path(weights.common.__file__).parents[1].glob("services/*/weights/*.safetensors"))
    copy = tmp_path / "model.safetensors"
    shutil.copy(whole, copy)
    assert weights.check("segmenter", tmp_path).status is Status.OK
    copy.write_bytes(whole.read_bytes()[:-1])
    assert "is damaged" in weights.check("segmenter", tmp_path).detail
    copy.write_bytes(b"")
    assert "is damaged" in weights.check("segmenter", tmp_path).detail


def test_open_files() -> None:
    (check,) = machine.checks()
    assert check.name == "open_files"


# The stack of a home


def test_a_home_in_which_nothing_ever_ran(tmp_path: Path) -> None:
    home = tmp_path / "home"
    checks = doctor("--home", str(home))
    assert checks["stack"]["status"] == "warning"
    assert "soundmill up" in checks["stack"]["advice"]
    assert not home.exists()


def test_a_home_that_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that is asked for is meant, whatever the environment says."""
    settings = Settings(home=tmp_path)
    engine = make_engine(settings)
    prepare(engine)
    engine.dispose()
    open_store(settings).prepare()
    monkeypatch.setenv("SOUNDMILL_DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:1/x")
    checks = doctor("--home", str(tmp_path))
    assert checks["stack"]["detail"] == f"nothing runs in {tmp_path}"
    assert statuses(checks, "database", "schema", "store", "disk", "keys") == {"ok"}
    assert "redis" not in checks
    shutil.rmtree(tmp_path / "objects")
    assert doctor("--home", str(tmp_path), exit_code=1)["store"]["status"] == "failed"


@pytest.mark.parametrize(
    ("database_url", "store_options"), [("sqlite", "directory")], indirect=True
)
def test_processes_of_a_stack_are_asked(gateway: Gateway, tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    ready, silent = gateway.url.removeprefix("http://"), f"127.0.0.1:{free_port()}"
    jobs = {"gateway": ready, "enhancer": silent}
    targets = [{"targets": [at], "labels": {"job": job}} for job, at in jobs.items()]
    home.targets_path.write_text(json.dumps(targets))
    seen = processes.Seen()
    processes.ask_stack(home, seen)
    assert seen.troubles == {"enhancer": [f"does not answer at {silent}"]}
    assert processes.judge("enhancer", seen).status is Status.FAILED


# A gateway elsewhere


@STACKS
def test_a_gateway_elsewhere(gateway_with_keys: Gateway, redis_server: RedisServer) -> None:
    url = gateway_with_keys.url
    bearer = gateway_with_keys.new_key([Scope.READ])["Authorization"]
    key = bearer.removeprefix("Bearer ")
    checks = doctor("--url", url, "--key", key)
    assert statuses(checks, "gateway", "key", "clock", "database", "store", "redis") == {"ok"}
    refused = doctor("--url", url, "--key", "sm_nonsense", exit_code=1)
    assert refused["key"]["status"] == "failed"
    assert "sm_nonsense" not in json.dumps(refused)
    only_submit = gateway_with_keys.new_key([Scope.SUBMIT])["Authorization"]
    may_not = doctor("--url", url, "--key", only_submit.removeprefix("Bearer "), exit_code=1)
    assert may_not["key"]["status"] == "failed"


def test_nothing_answers_at_the_address() -> None:
    result = CliRunner().invoke(app, ["doctor", "--url", f"http://127.0.0.1:{free_port()}"])
    assert result.exit_code == 6
    assert "No Soundmill gateway answers" in result.stderr
