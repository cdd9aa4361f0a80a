"""The command's answers to what it cannot do, and its exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.cli import app


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_folder_without_audio_is_exit_2_and_starts_nothing(tmp_path: Path, home: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(app, ["process", str(tmp_path / "empty"), "--home", str(home)])
    assert result.exit_code == 2
    assert "There is no audio in" in result.stderr
    assert not home.exists()


def test_path_that_does_not_exist_is_exit_2(tmp_path: Path, home: Path) -> None:
    result = CliRunner().invoke(app, ["process", str(tmp_path / "no"), "--home", str(home)])
    assert result.exit_code == 2
    assert "No such file" in result.stderr


def test_down_without_a_stack_is_no_error(home: Path) -> None:
    result = CliRunner().invoke(app, ["down", "--home", str(home)])
    assert result.exit_code == 0
    assert "Nothing runs in" in result.stdout


def test_status_without_a_stack_says_how_to_start_one(home: Path) -> None:
    result = CliRunner().invoke(app, ["status", "--home", str(home)])
    assert result.exit_code == 1
    assert "`soundmill up` starts it" in result.stderr


def test_gateway_that_does_not_answer(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.api.connection.PATIENCE_S", 0.0)
    url = "http://127.0.0.1:9"
    result = CliRunner().invoke(app, ["status", "--url", url, "--home", str(home)])
    assert result.exit_code == 6
    assert f"No Soundmill gateway answers at {url}" in result.stderr


def test_params_that_are_not_json(tmp_path: Path, home: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "params.json").write_text("{")
    arguments = ["process", str(tmp_path / "a.wav"), "--params", str(tmp_path / "params.json")]
    result = CliRunner().invoke(app, [*arguments, "--home", str(home)])
    assert result.exit_code == 1
    assert "is not JSON" in result.stderr
