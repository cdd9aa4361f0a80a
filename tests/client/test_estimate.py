"""``soundmill submit --dry-run``: what an order comes to, from here and from the ingester."""

from __future__ import annotations

import json
import threading
import wave
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from client.cli import app
from client.estimate import Estimate, together
from common.tables import Recording
from services.dispatcher.loop import Dispatcher
from services.ingester.loop import Ingester
from tests.client.test_submit import EMBEDDED
from tests.gateway.conftest import Gateway


@pytest.fixture
def mill(gateway: Gateway) -> Iterator[Gateway]:
    """The gateway with an ingester and a dispatcher, but no workers."""
    stop = threading.Event()
    settings = gateway.settings
    with closing(Ingester(settings)) as ingester, closing(Dispatcher(settings)) as dispatcher:
        threads = [
            threading.Thread(target=part.run, args=[stop]) for part in (ingester, dispatcher)
        ]
        for thread in threads:
            thread.start()
        try:
            yield gateway
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def tone(path: Path, length_s: float) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(round(length_s * 8000) * 2))
    return path


def dry_run(gateway: Gateway, home: Path, *arguments: str) -> Any:
    command = ["submit", "--dry-run", "--json", *arguments]
    result = CliRunner().invoke(
        app, [*command, "--url", gateway.url, "--home", str(home)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@EMBEDDED
def test_files_are_looked_at_here_and_not_sent(gateway: Gateway, tmp_path: Path) -> None:
    folder = tmp_path / "harbour"
    folder.mkdir()
    tone(folder / "a.wav", 2.0)
    tone(folder / "b.wav", 3.5)
    (folder / "c.mp3").write_bytes(b"no header at all" * 10)
    (folder / "d.wav").touch()
    found = dry_run(gateway, tmp_path / "home", str(folder))
    assert found["files"] == 3
    assert found["audio_s"] == pytest.approx(5.5)
    assert found["unknown_length"] == 1
    assert found["would_fail"] == {"audio_empty": 1}
    assert found["size_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert found["eta_s"] is None
    assert gateway.job_rows() == 0
    assert gateway.objects() == []


@EMBEDDED
def test_archives_are_read_by_the_server_and_nothing_stays(mill: Gateway, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tone(tmp_path / "a.wav", 4.0), "a.wav")
        archive.write(tmp_path / "a.wav", "../evil.wav")
    found = dry_run(mill, tmp_path / "home", str(path), str(tone(tmp_path / "b.wav", 1.0)))
    assert found["files"] == 2
    assert found["audio_s"] == pytest.approx(5.0)
    assert found["would_fail"] == {"entry_name_unsafe": 1}
    assert mill.objects() == []
    with mill.sessions() as session:
        assert session.scalars(select(Recording)).all() == []


def test_time_follows_from_the_pace() -> None:
    here = Estimate(files=1, audio_s=10.0, would_fail={"audio_empty": 1})
    there = Estimate(files=2, audio_s=30.0, eta_s=60.0, would_fail={"audio_empty": 2, "x": 1})
    both = together(here, there, seconds_per_audio_s=5.0)
    assert (both.files, both.audio_s, both.eta_s) == (3, 40.0, 80.0)
    assert both.would_fail == {"audio_empty": 3, "x": 1}
    assert together(here, Estimate(), 5.0).eta_s == 50.0
    assert together(here, Estimate(), None).eta_s is None


@EMBEDDED
def test_archive_is_submitted_and_its_entries_are_reported(mill: Gateway, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tone(tmp_path / "a.wav", 0.5), "a.wav")
        archive.write(tmp_path / "a.wav", "../evil.wav")
    arguments = ["submit", str(path), "--json", "--url", mill.url, "--home", str(tmp_path / "h")]
    job_id = json.loads(CliRunner().invoke(app, arguments).stdout)["job"]
    with mill.sessions() as session:
        while not (rows := session.scalars(select(Recording)).all()):
            session.rollback()
    assert [row.name for row in rows] == ["a.wav"]
    out = ["--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["results", job_id, "--url", mill.url, "--json", *out])
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    (failure,) = [row for row in report["recordings"] if row["error"]]
    assert failure["name"] == "../evil.wav"
    assert failure["error"].startswith("rejected: ")
