"""API keys: who comes in, with which scope, from where; when the gateway refuses to listen."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select, update

from common import keys
from common.db import DbNow, make_engine, make_sessions
from common.domain import Scope
from common.errors import KeyRefused, NotFound
from common.migrate import migrate
from common.settings import Settings
from common.tables import ApiKey
from services.gateway import guard, keyring
from services.gateway.__main__ import require_key
from tests.gateway.conftest import STACKS, Gateway, problem, running
from tests.gateway.test_operations import GatewayProcess

ONE_STACK = pytest.mark.parametrize(
    ("database_url", "store_options"), [("sqlite", "directory")], indirect=True
)
OPEN_PATHS = ("/health", "/ready", "/metrics", "/v1/openapi.json")


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_a_key_from_its_making_to_its_end(database_url: str, tmp_path: Path) -> None:
    engine = make_engine(Settings(home=tmp_path, database_url=database_url))
    migrate(engine)
    sessions = make_sessions(engine)
    with sessions.begin() as session:
        assert not keys.has_active(session)
        made = keys.make(session, "laptop", [Scope.SUBMIT], keys.Limits(max_jobs=3))
        made.key.created_at -= 1.0
        brief = keys.make(session, "brief", list(Scope), expires_in_s=3600.0)
    assert made.secret.startswith("sm_")
    assert len(made.secret) >= 43
    assert made.secret != brief.secret
    with sessions.begin() as session:
        for column in session.execute(select(ApiKey.__table__)).all():
            assert made.secret not in str(column)
            assert made.secret.removeprefix("sm_") not in str(column)
        assert keys.verify(session, made.secret).id == made.key.id
        assert [key.name for key in keys.list_keys(session)] == ["laptop", "brief"]
        assert keys.list_keys(session)[0].max_jobs == 3
        for wrong in ("", "sm_", made.secret[:-1], made.secret.upper(), made.key.hash):
            with pytest.raises(KeyRefused) as refused:
                keys.verify(session, wrong)
            assert refused.value.code == "key_invalid"
        session.execute(
            update(ApiKey).where(ApiKey.id == brief.key.id).values(expires_at=DbNow() - 1.0)
        )
        with pytest.raises(KeyRefused) as refused:
            keys.verify(session, brief.secret)
        assert refused.value.code == "key_expired"
        assert keys.has_active(session)
        at = keys.revoke(session, made.key.id).revoked_at
        assert keys.revoke(session, made.key.id).revoked_at == at
        with pytest.raises(KeyRefused, match="revoked"):
            keys.verify(session, made.secret)
        assert not keys.has_active(session)
        with pytest.raises(NotFound):
            keys.revoke(session, "nope")
        with pytest.raises(ValueError, match="scope"):
            keys.make(session, "nothing", [])
    engine.dispose()


@STACKS
def test_nobody_comes_in_without_a_key(gateway_with_keys: Gateway) -> None:
    gateway = gateway_with_keys
    for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("POST", "/v1/jobs/x/close")):
        answer = gateway.client.request(method, path)
        problem(answer, 401, "key_missing")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    for value in ("Bearer sm_wrong", "Bearer", "Basic YTpi", "sm_wrong", "Bearer " + "x" * 5000):
        answer = gateway.client.get("/v1/jobs", headers={"Authorization": value})
        problem(answer, 401, "key_invalid")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    for path in OPEN_PATHS:
        assert gateway.client.get(path).status_code == 200
    assert gateway.job_rows() == 0


@STACKS
def test_scopes(gateway_with_keys: Gateway) -> None:
    gateway = gateway_with_keys
    client = gateway.client
    read, submit = gateway.new_key([Scope.READ]), gateway.new_key([Scope.SUBMIT])
    admin = gateway.new_key([Scope.ADMIN])
    answer = client.post("/v1/jobs", json={}, headers=submit)
    job_id = answer.json()["id"]
    assert answer.status_code == 201
    assert "read" in problem(client.get("/v1/jobs", headers=submit), 403, "scope_missing")["detail"]
    problem(client.post("/v1/jobs", json={}, headers=read), 403, "scope_missing")
    assert client.get("/v1/jobs", headers=read).json()["jobs"] == []
    assert [job["id"] for job in client.get("/v1/jobs", headers=admin).json()["jobs"]] == [job_id]
    assert client.post(f"/v1/jobs/{job_id}/close", headers=admin).status_code == 200


@STACKS
def test_a_key_that_is_revoked_opens_nothing_soon(
    gateway_with_keys: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = gateway_with_keys
    headers = gateway.new_key([Scope.READ])
    assert gateway.client.get("/v1/jobs", headers=headers).status_code == 200
    with gateway.sessions.begin() as session:
        keys.revoke(session, keys.list_keys(session)[0].id)
    assert gateway.client.get("/v1/jobs", headers=headers).status_code == 200  # still remembered
    monkeypatch.setattr(keyring, "FRESH_S", 0.0)
    problem(gateway.client.get("/v1/jobs", headers=headers), 401, "key_invalid")


@STACKS
def test_a_key_is_in_no_log(gateway_with_keys: Gateway) -> None:
    value = gateway_with_keys.new_key([Scope.READ])["Authorization"]
    for sent in (value, value + "x"):
        gateway_with_keys.client.get("/v1/jobs", headers={"Authorization": sent})
    assert value.removeprefix("Bearer sm_") not in str(gateway_with_keys.log)


@ONE_STACK
def test_an_embedded_stack_serves_its_user_and_no_other_site(gateway: Gateway) -> None:
    client = gateway.client
    port = httpx.URL(gateway.url).port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}", "127.9.9.9"):
        assert client.get("/v1/jobs", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "[::1", "[x]:1"):
        problem(client.get("/v1/jobs", headers={"Host": host}), 403, "host_forbidden")
    own = f"http://127.0.0.1:{port}"
    assert client.post("/v1/jobs", json={}, headers={"Origin": own}).status_code == 201
    for origin in ("https://evil.example", "null", own + ".evil", f"http://127.0.0.1:{port}1"):
        answer = client.post("/v1/jobs", json={}, headers={"Origin": origin})
        problem(answer, 403, "origin_forbidden")
    assert gateway.job_rows() == 1
    # A key that is sent counts, also here.
    problem(client.get("/v1/jobs", headers=bearer("sm_wrong")), 401, "key_invalid")
    mine = gateway.new_key([Scope.READ, Scope.SUBMIT])
    assert client.get("/v1/jobs", headers=mine).json()["jobs"] == []


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.0.2.1", False),
        ("no-such-name.invalid", False),
    ],
)
def test_what_is_reached_from_this_machine_alone(host: str, loopback: bool) -> None:
    assert guard.is_loopback(host) is loopback


@STACKS
def test_it_listens_for_other_machines_only_with_a_key(
    gateway_settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = gateway_settings.model_copy(update={"host": "0.0.0.0"})

    def refusal() -> object:
        with pytest.raises(SystemExit) as exit_:
            require_key(settings)
        return exit_.value.code

    assert refusal() == os.EX_UNAVAILABLE  # there are no tables yet
    assert "cannot read the API keys" in capsys.readouterr().err
    engine = make_engine(settings)
    migrate(engine)
    assert refusal() == os.EX_CONFIG
    assert "soundmill keys create" in capsys.readouterr().err
    with make_sessions(engine).begin() as session:
        made = keys.make(session, "first", [Scope.READ])
    require_key(settings)
    with running(settings) as gateway:  # embedded or not: what others reach is closed
        problem(gateway.client.get("/v1/jobs"), 401, "key_missing")
        assert gateway.client.get("/v1/jobs", headers=bearer(made.secret)).status_code == 200
    with make_sessions(engine).begin() as session:
        keys.revoke(session, made.key.id)
    assert refusal() == os.EX_CONFIG
    engine.dispose()


@ONE_STACK
def test_the_process_ends_with_a_sentence(gateway_settings: Settings, tmp_path: Path) -> None:
    engine = make_engine(gateway_settings)
    migrate(engine)
    engine.dispose()
    settings = gateway_settings.model_copy(update={"host": "0.0.0.0"})
    process = GatewayProcess(settings, tmp_path / "log").process
    assert process.wait(60) == os.EX_CONFIG
    text = (tmp_path / "log").read_text()
    assert "soundmill keys create" in text
    assert "Traceback" not in text
