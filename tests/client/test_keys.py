"""``soundmill keys``: keys in the database, whose secrets are shown once."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.cli import app


def keys(*arguments: str, exit_code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["keys", *arguments, "--json"])
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout if exit_code == 0 else result.stderr)


def test_made_listed_revoked(tmp_path: Path) -> None:
    """In a home in which nothing ever ran."""
    home = ["--home", str(tmp_path / "home")]
    limits = ["--max-jobs", "3", "--max-gb", "1.5", "--max-hours", "2", "--per-minute", "60"]
    made = keys("create", "alice", "--expires", "90d", *limits, *home)
    assert made["secret"].startswith("sm_")
    (listed,) = keys("list", *home)
    assert "secret" not in listed
    assert listed["state"] == "active"
    assert listed["scopes"] == ["read", "submit"]
    assert (listed["max_bytes"], listed["max_audio_s"]) == (1_500_000_000, 7200.0)
    assert keys("revoke", made["id"][-8:], *home)["state"] == "revoked"
    assert [key["state"] for key in keys("list", *home)] == ["revoked"]
    database = (tmp_path / "home" / "soundmill.db").read_bytes()
    assert made["secret"].encode() not in database


def test_secret_alone_is_on_standard_output(tmp_path: Path) -> None:
    arguments = ["keys", "create", "alice", "--home", str(tmp_path), "--scope", "admin"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("sm_")
    assert len(result.stdout.split()) == 1
    listed = CliRunner().invoke(app, ["keys", "list", "--home", str(tmp_path)])
    assert "active" in listed.stdout
    assert result.stdout.strip() not in listed.stdout


def test_the_settings_name_another_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUNDMILL_DATABASE_URL", f"sqlite:///{tmp_path}/other.db")
    keys("create", "alice", "--home", str(tmp_path / "home"))
    assert not (tmp_path / "home" / "soundmill.db").exists()
    with sqlite3.connect(tmp_path / "other.db") as connection:
        assert connection.execute("select name from api_key").fetchall() == [("alice",)]
    connection.close()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["revoke", "abc"], 2, "No key fits"),
        (["create", "a", "--expires", "soon"], 2, "no duration"),
    ],
)
def test_what_cannot_be_done(
    tmp_path: Path, arguments: list[str], exit_code: int, said: str
) -> None:
    answer = keys(*arguments, "--home", str(tmp_path), exit_code=exit_code)
    assert said in answer["error"]["detail"]


def test_database_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql+psycopg://nobody:very-secret@127.0.0.1:9/none"
    monkeypatch.setenv("SOUNDMILL_DATABASE_URL", url)
    answer = keys("list", "--home", str(tmp_path), exit_code=1)
    assert "does not answer" in answer["error"]["detail"]
    assert "very-secret" not in answer["error"]["detail"]
