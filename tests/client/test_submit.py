"""``soundmill submit`` against a running gateway: what arrives, and going on after a break."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from typer.testing import CliRunner, Result

from client.api import Gateway as Client
from client.cli import app
from client.sources import Source as LocalSource
from common.tables import Recording, Source, Upload
from tests.gateway.conftest import STACKS, Gateway

EMBEDDED = pytest.mark.parametrize(
    ("database_url", "store_options"), [("sqlite", "directory")], indirect=True, ids=["embedded"]
)


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """Twenty small recordings, each with its own bytes."""
    folder = tmp_path / "harbour"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02}.wav").write_bytes(b"RIFF" * 100 + bytes([number]))
    (folder / "notes.txt").write_text("not audio")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "client-home"


def soundmill(gateway: Gateway, home: Path, *arguments: str) -> Result:
    command = [*arguments, "--url", gateway.url, "--home", str(home)]
    return CliRunner().invoke(app, command, catch_exceptions=False)


def submitted(gateway: Gateway, home: Path, *arguments: str) -> dict[str, Any]:
    """Submit and return what ``--json`` says."""
    result = soundmill(gateway, home, "submit", "--json", *arguments)
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def names(gateway: Gateway, job_id: str) -> list[str]:
    with gateway.sessions() as session:
        rows = session.scalars(select(Recording.name).where(Recording.job_id == job_id))
        return sorted(rows)


def contents(gateway: Gateway, job_id: str) -> dict[str, bytes]:
    """Return what the store holds for each recording of a job."""
    found = {}
    with gateway.sessions() as session:
        for recording in session.scalars(select(Recording).where(Recording.job_id == job_id)):
            with gateway.store.open(recording.object_key) as blocks:
                found[recording.name] = b"".join(blocks)
    return found


def journals(home: Path) -> list[Path]:
    return list((home / "submissions").iterdir())


@STACKS
def test_folder_arrives_whole_and_the_job_is_closed(
    gateway: Gateway, audio: Path, home: Path
) -> None:
    answer = submitted(gateway, home, str(audio))
    assert answer["sent"] == 20
    assert answer["not_sent"] == []
    assert answer["state"] == "closed"
    files = {path.name: path.read_bytes() for path in audio.glob("*.wav")}
    assert contents(gateway, answer["job"]) == files
    assert journals(home) == []


class Cut(KeyboardInterrupt):
    """Ctrl-C at a moment of the test's choosing."""


def cut_after(monkeypatch: pytest.MonkeyPatch, number: int, call: str) -> list[str]:
    """Interrupt the command as it makes its ``number``-th call; return what it called for."""
    real, made = getattr(Client, call).make, []

    def make(*args: Any, **kwargs: Any) -> Any:
        made.append(str(args[1:]))
        if len(made) > number:
            raise Cut
        return real(*args, **kwargs)

    monkeypatch.setattr(getattr(Client, call), "make", make)
    return made


@EMBEDDED
def test_same_command_goes_on_where_it_was_cut_off(
    gateway: Gateway, audio: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        cut_after(patch, 8, "upload")
        result = soundmill(gateway, home, "submit", str(audio))
    assert result.exit_code == 130
    assert "To go on: soundmill submit --resume" in result.stderr
    (journal,) = journals(home)
    job_id = json.loads(journal.read_text().splitlines()[0])["job"]
    before = set(names(gateway, job_id))
    assert len(before) >= 8
    journal.write_text(journal.read_text() + '"half a li')  # the machine stopped as well

    with monkeypatch.context() as patch:
        again = cut_after(patch, 1000, "upload")
        answer = submitted(gateway, home, str(audio))
    assert answer["job"] == job_id
    assert answer["went_on"] is True
    assert len(again) <= 20 - 7  # those whose arrival was noted were not sent again
    assert names(gateway, job_id) == sorted(path.name for path in audio.glob("*.wav"))
    assert gateway.job_rows() == 1


@EMBEDDED
def test_resume_needs_no_arguments_but_the_job(
    gateway: Gateway, audio: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        cut_after(patch, 3, "upload")
        soundmill(gateway, home, "submit", str(audio), "--stage", "segment", "--name", "port")
    (journal,) = journals(home)
    job_id = json.loads(journal.read_text().splitlines()[0])["job"]
    answer = submitted(gateway, home, "--resume", job_id)
    assert answer["job"] == job_id
    assert len(names(gateway, job_id)) == 20
    result = soundmill(gateway, home, "submit", "--resume", job_id)
    assert result.exit_code == 2
    assert "No unfinished submission" in result.stderr


@EMBEDDED
def test_lost_journal_adds_nothing_twice(
    gateway: Gateway, audio: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway recognises what it has by the idempotency key."""
    with monkeypatch.context() as patch:
        cut_after(patch, 8, "upload")
        soundmill(gateway, home, "submit", str(audio))
    (journal,) = journals(home)
    journal.write_text(journal.read_text().splitlines(keepends=True)[0])
    answer = submitted(gateway, home, str(audio))
    assert answer["went_on"] is True
    assert len(names(gateway, answer["job"])) == 20


@EMBEDDED
def test_new_job_instead_of_going_on(
    gateway: Gateway, audio: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        cut_after(patch, 3, "upload")
        soundmill(gateway, home, "submit", str(audio))
    answer = submitted(gateway, home, str(audio), "--new")
    assert answer["went_on"] is False
    assert len(names(gateway, answer["job"])) == 20
    assert gateway.job_rows() == 2


@STACKS
def test_large_file_goes_in_parts_and_goes_on_part_by_part(
    gateway: Gateway, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.submit.LARGE_BYTES", 1 << 20)
    monkeypatch.setattr("client.multipart.THREADS", 1)
    path = tmp_path / "long.wav"
    path.write_bytes(b"".join(bytes([k]) * (1 << 20) for k in range(19)))  # parts of 8 MiB: three
    with monkeypatch.context() as patch:
        cut_after(patch, 1, "put_part")
        result = soundmill(gateway, home, "submit", str(path))
    assert result.exit_code == 130
    with monkeypatch.context() as patch:
        sent = cut_after(patch, 1000, "put_part")
        answer = submitted(gateway, home, str(path))
    assert len(sent) == 2
    with gateway.sessions() as session:
        (upload,) = session.scalars(select(Upload))
        (source,) = session.scalars(select(Source).where(Source.job_id == answer["job"]))
        with gateway.store.open(upload.object_key) as blocks:
            assert b"".join(blocks) == path.read_bytes()
    assert source.kind == "upload"
    assert source.spec["upload_id"] == upload.id


@EMBEDDED
def test_answer_to_complete_may_be_lost(
    gateway: Gateway, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.submit.LARGE_BYTES", 1)
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF" * 100)
    real = Client.complete_upload.make

    def twice(upload_id: str) -> Any:
        gateway.client.post(f"/v1/uploads/{upload_id}/complete").raise_for_status()
        return real(upload_id)

    monkeypatch.setattr(Client.complete_upload, "make", twice)
    assert submitted(gateway, home, str(path))["sent"] == 1


@EMBEDDED
def test_archives_manifests_and_addresses_are_sources(
    gateway: Gateway, audio: Path, tmp_path: Path, home: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(audio / "00.wav", "00.wav")
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as tar:
        tar.add(audio / "01.wav", "01.wav")
    (tmp_path / "c.jsonl").write_text('{"url": "https://example.com/c.wav"}\n')
    (tmp_path / "d.csv").write_text("url\nhttps://example.com/d.wav\n")
    given = [str(tmp_path / name) for name in ("a.zip", "b.tar.gz", "c.jsonl", "d.csv")]
    given += ["https://example.com/e.wav", "s3://bucket/folder/", "s3://bucket/f.flac"]
    answer = submitted(gateway, home, *given, str(audio / "02.wav"), "--open")
    assert answer["state"] == "open"
    with gateway.sessions() as session:
        query = select(Source).where(Source.job_id == answer["job"]).order_by(Source.id)
        found = [(source.kind, source.spec) for source in session.scalars(query)]
    assert [kind for kind, _ in found] == [
        "urls", "prefix", "archive", "archive", "manifest", "manifest",
    ]  # fmt: skip
    assert [item["url"] for item in found[0][1]["items"]] == [given[4], given[6]]
    assert found[1][1]["url"] == given[5]
    assert [spec["format"] for _, spec in found[2:]] == ["zip", "tar.gz", "jsonl", "csv"]
    assert names(gateway, answer["job"]) == ["02.wav"]


@EMBEDDED
def test_more_is_added_to_an_open_job(gateway: Gateway, audio: Path, home: Path) -> None:
    first = submitted(gateway, home, str(audio / "00.wav"), "--open", "--name", "port")
    second = submitted(gateway, home, str(audio / "01.wav"), "--job", "port")
    assert second["job"] == first["job"]
    assert names(gateway, first["job"]) == ["00.wav", "01.wav"]
    assert gateway.get(f"/v1/jobs/{first['job']}")["state"] == "open"
    assert soundmill(gateway, home, "close", "port").exit_code == 0
    assert gateway.get(f"/v1/jobs/{first['job']}")["state"] == "closed"


@EMBEDDED
def test_what_could_not_be_sent_is_named_and_exit_3(
    gateway: Gateway, audio: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LocalSource.blocks

    def vanishing(source: LocalSource) -> Iterator[bytes]:
        if source.name == "07.wav":
            source.path.unlink()
        return real(source)

    monkeypatch.setattr(LocalSource, "blocks", vanishing)
    result = soundmill(gateway, home, "submit", str(audio), "--json")
    assert result.exit_code == 3
    answer = json.loads(result.stdout)
    assert answer["not_sent"] == [{"name": "07.wav", "reason": "the file is no longer there"}]
    assert len(names(gateway, answer["job"])) == 19
    assert answer["state"] == "closed"


@EMBEDDED
def test_two_submissions_of_the_same_do_not_mix(gateway: Gateway, audio: Path, home: Path) -> None:
    from client.journal import opened

    job = submitted(gateway, home, str(audio), "--open")["job"]
    request = {"any": "thing"}
    with opened(home / "submissions", request) as journal:
        journal.begin(job)
        with (
            pytest.raises(Exception, match="sending just this"),
            opened(home / "submissions", request),
        ):
            raise AssertionError("opened twice")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Say what to submit"),
        (["ftp://example.com/a.wav"], "not http, https, s3 or file"),
        (["absent.wav"], "No such file"),
        (["--resume", "abc"], "No unfinished submission"),
        (["a.wav", "--retention", "soon"], "no duration"),
    ],
)
def test_wrong_usage_is_exit_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["submit", *arguments, "--home", str(tmp_path)])
    assert result.exit_code == 2, result.output
    assert said in result.stderr


@EMBEDDED
def test_file_that_is_too_long_is_refused_and_the_others_go_on(
    gateway: Gateway, audio: Path, home: Path
) -> None:
    """The gateway answers before all of it was sent, and hangs up."""
    with (audio / "10.wav").open("wb") as file:
        file.truncate(gateway.settings.max_upload_bytes + (8 << 20))
    result = soundmill(gateway, home, "submit", str(audio), "--json")
    assert result.exit_code == 3
    (failure,) = json.loads(result.stdout)["not_sent"]
    assert failure["name"] == "10.wav"
    assert "more than" in failure["reason"]
    assert len(names(gateway, json.loads(result.stdout)["job"])) == 19


@pytest.fixture
def heeded_interrupts() -> Iterator[None]:
    """What is started heeds SIGINT, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@EMBEDDED
@pytest.mark.usefixtures("heeded_interrupts")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_killed_command_goes_on_and_adds_nothing_twice(
    gateway: Gateway, tmp_path: Path, home: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    count = 900  # more than can be sent before the signal
    for k in range(count):
        (folder / f"{k:03}.wav").write_bytes(b"RIFF" + k.to_bytes(4, "big"))
    command = [sys.executable, "-m", "client.cli", "submit", str(folder)]
    options = ["--url", gateway.url, "--home", str(home), "--stage", "segment"]
    with subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL) as process:
        job_id = ""
        while not job_id or len(names(gateway, job_id)) < 10:
            assert process.poll() is None
            job_id = job_id or next((job["id"] for job in gateway.get("/v1/jobs")["jobs"]), "")
        process.send_signal(number)
    assert process.returncode == (130 if number is signal.SIGINT else -number)
    assert 10 <= len(names(gateway, job_id)) < count
    answer = submitted(gateway, home, str(folder), "--stage", "segment")
    assert answer["job"] == job_id
    assert names(gateway, job_id) == sorted(path.name for path in folder.iterdir())
