"""The commands that look at jobs and change them, against a running gateway."""

from __future__ import annotations

import csv
import io
import json
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select
from typer.testing import CliRunner, Result

from client.cli import app
from common.domain import Stage
from common.tables import Job
from tests.client.test_submit import EMBEDDED
from tests.gateway.conftest import STACKS, Gateway
from tests.gateway.filled import fill, give_events, heard
from tests.gateway.with_vectors import filled


def soundmill(gateway: Gateway, *arguments: str, exit_code: int = 0) -> Result:
    command = [*arguments, "--url", gateway.url]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == exit_code, result.output
    return result


def as_json(gateway: Gateway, *arguments: str, exit_code: int = 0) -> Any:
    return json.loads(soundmill(gateway, *arguments, "--json", exit_code=exit_code).stdout)


def finished_job(gateway: Gateway, **request: Any) -> str:
    """Return a job that is through with segmenting and classifying one recording."""
    stages = ["segment", "classify"]
    job_id = gateway.new_job(name="harbour", stages=stages, **request)
    recording_id = gateway.upload(job_id, name="night/dog.wav")
    gateway.client.post(f"/v1/jobs/{job_id}/close").raise_for_status()
    for stage in (Stage.SEGMENT, Stage.CLASSIFY):
        gateway.succeed(recording_id, stage)
    gateway.complete(job_id)
    return job_id


@STACKS
def test_ls_filters(gateway: Gateway) -> None:
    first = gateway.new_job(name="harbour one")
    second = gateway.new_job(name="harbour two", priority="interactive")
    gateway.client.post(f"/v1/jobs/{first}/close").raise_for_status()
    assert [job["id"] for job in as_json(gateway, "ls")] == [second, first]
    for arguments, expected in (
        (["--state", "closed"], [first]),
        (["--name", "two"], [second]),
        (["--priority", "interactive"], [second]),
        (["--before", "2020-01-01"], []),
        (["--after", "2020-01-01", "--limit", "1"], [second]),
    ):
        assert [job["id"] for job in as_json(gateway, "ls", *arguments)] == expected
    lines = soundmill(gateway, "ls").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [second, first]


@EMBEDDED
def test_pause_resume_cancel_delete(gateway: Gateway) -> None:
    job_id = gateway.new_job(name="harbour")
    gateway.upload(job_id)
    assert as_json(gateway, "pause", "last")["paused"] is True
    assert "paused" in soundmill(gateway, "status", job_id[-6:]).stdout
    assert as_json(gateway, "resume", "harbour")["paused"] is False
    assert "is cancelled" in soundmill(gateway, "cancel", job_id).stdout
    assert as_json(gateway, "status", job_id)[0]["state"] == "cancelled"
    result = CliRunner().invoke(app, ["delete", job_id, "--url", gateway.url], input="n\n")
    assert result.exit_code == 1
    assert f"Delete job {job_id}" in result.stderr
    soundmill(gateway, "delete", job_id, "--yes")
    soundmill(gateway, "status", job_id, exit_code=7)


@EMBEDDED
def test_retry_puts_back_what_failed(gateway: Gateway) -> None:
    job_id = gateway.new_job(stages=["segment"])
    recording_id = gateway.upload(job_id)
    gateway.fail(recording_id, Stage.SEGMENT)
    assert as_json(gateway, "retry", job_id)["retried"] == 1
    assert gateway.states(recording_id) == {"segment": "ready"}


@EMBEDDED
def test_watch_ends_with_the_job(gateway: Gateway) -> None:
    """It is told the end while it listens, and what the end was is the exit code."""
    job_id = gateway.new_job(name="harbour", stages=["segment"])

    def cancel() -> None:
        gateway.client.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()

    timer = threading.Timer(0.5, cancel)
    timer.start()
    result = soundmill(gateway, "watch", "last", "--json", exit_code=4)
    timer.join()
    states = [json.loads(line)["state"] for line in result.stdout.splitlines()]
    assert states[0] == "open"
    assert states[-1] == "cancelled"


@EMBEDDED
def test_watch_a_job_that_went_well_and_one_that_did_not(gateway: Gateway) -> None:
    job_id = finished_job(gateway)
    assert "completed" in soundmill(gateway, "watch", job_id).stdout
    with gateway.sessions.begin() as session:
        session.get_one(Job, job_id).rejected = 1
    assert "1 rejected" in soundmill(gateway, "watch", job_id, exit_code=3).stdout


@EMBEDDED
def test_watch_without_events_asks_now_and_then(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.watch.POLL_S", 0.01)
    monkeypatch.setattr("services.gateway.follow.MOST_STREAMS", 0)
    job_id = gateway.new_job(stages=["segment"])
    timer = threading.Timer(0.5, gateway.complete, [job_id])
    timer.start()
    assert "completed" in soundmill(gateway, "watch", job_id).stdout
    timer.join()


@EMBEDDED
def test_results_as_a_folder_and_as_files(gateway: Gateway, tmp_path: Path) -> None:
    job_id = finished_job(gateway)
    report = as_json(gateway, "results", job_id, "--out", str(tmp_path / "out"))
    assert report["succeeded"] == 1
    assert (tmp_path / "out" / "night_dog" / "events.json").exists()

    table = soundmill(gateway, "results", job_id, "--format", "csv", "--out", "-").stdout
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["label"] for row in rows] == ["dog", "siren"]

    into = ["--out", str(tmp_path)]
    said = as_json(gateway, "results", job_id, "--kind", "mask", "--kind", "events", *into)
    with zipfile.ZipFile(said["file"]) as archive:
        assert len([name for name in archive.namelist() if "dog" in name]) == 2
    for format in ("parquet", "rttm", "raven", "audacity", "jams", "raven-zip", "jsonl"):
        said = as_json(gateway, "results", job_id, "--format", format, *into)
        assert Path(said["file"]).stat().st_size == said["size_bytes"] > 0
    for table in ("recordings", "errors", "attempts", "manifest"):
        arguments = ["--table", table, "--format", "jsonl", "--out", str(tmp_path / table)]
        soundmill(gateway, "results", job_id, *arguments)
        for line in (tmp_path / table).read_text().splitlines():
            json.loads(line)
    wrong = soundmill(
        gateway, "results", job_id, "--format", "rttm", "--table", "errors", exit_code=2
    )
    assert "no errors table as rttm" in wrong.stderr


@EMBEDDED
def test_metrics_as_a_table_and_as_json(gateway: Gateway) -> None:
    job_id = finished_job(gateway)
    broken = gateway.upload(gateway.new_job(name="broken", stages=["segment"]))
    gateway.fail(broken, Stage.SEGMENT)
    found = as_json(gateway, "metrics", job_id)
    assert found["stages"]["classify"]["audio_s"] == 3.5
    lines = soundmill(gateway, "metrics", job_id).stdout.splitlines()
    assert f"Job {job_id} (completed)" in lines[0]
    cells = {line.split("  ")[0].strip(): line.split() for line in lines[1:]}
    assert cells["recordings done"][-2:] == ["1", "1"]
    assert cells["audio, s"][-2:] == ["3.5", "3.5"]
    assert cells["models"][-2:] == ["d" * 12] * 2
    said = soundmill(gateway, "metrics", "broken").stdout
    assert "segment: 1 attempts permanent (audio_unreadable)" in said
    soundmill(gateway, "metrics", "ab" * 16, exit_code=7)


@EMBEDDED
def test_query_names_the_recordings(gateway: Gateway) -> None:
    job_id = finished_job(gateway)
    answer = as_json(gateway, "query", job_id, "dogs barking")
    assert answer["labels"] == ["dog"]
    assert [hit["name"] for hit in answer["hits"]] == ["night/dog.wav"]
    assert "night/dog.wav: dog 0.2 s" in soundmill(gateway, "query", job_id, "dog").stdout
    soundmill(gateway, "query", job_id, "xyzzy", exit_code=1)
    damaged = fill(gateway.sessions, [heard("dog"), heard("dog")])
    give_events(gateway.sessions, gateway.store, damaged.recording_ids[0], b"cake")
    answer = as_json(gateway, "query", damaged.job_id, "dog")
    assert ([hit["position"] for hit in answer["hits"]], answer["unreadable"]) == ([1], 1)
    said = soundmill(gateway, "query", damaged.job_id, "dog").stdout
    assert "could not be read: 1." in said


@EMBEDDED
def test_similar_names_stretches(gateway: Gateway, tmp_path: Path) -> None:
    a, b, c = np.eye(3)
    ids = filled(gateway, tmp_path, [a, a, b], [b, a, a, c], None)
    job_id = gateway.get(f"/v1/recordings/{ids[0]}")["job_id"]
    stretch = ["--from", "0", "--to", "0.8"]
    answer = as_json(gateway, "similar", job_id, "tapes/number 0.wav", *stretch, "--limit", "1")
    assert answer["recording"] == ids[0]
    (hit,) = answer["hits"]
    assert (hit["recording_id"], hit["onset_s"], hit["similarity"]) == (ids[1], 0.4, 1.0)
    counts = (answer["looked_at"], answer["without_vectors"], answer["other_weights"])
    assert counts == (2, 1, 0)
    said = soundmill(gateway, "similar", job_id, ids[0], *stretch, "--everywhere").stdout
    assert said.splitlines()[0] == f"1.000  {ids[1]}  tapes/number 1.wav: 0.4 to 1.2 s  dog"
    assert "2 recordings compared; 1 have no vectors." in said
    missing = soundmill(gateway, "similar", job_id, ids[2], *stretch, exit_code=1)
    assert "embeddings" in missing.stderr
    wrong = soundmill(gateway, "similar", job_id, "tapes/number", *stretch, exit_code=2)
    assert "No recording" in wrong.stderr


def test_text_is_explained_without_a_gateway() -> None:
    result = CliRunner().invoke(app, ["text", "remove the barking dog but not the rain", "--json"])
    answer = json.loads(result.stdout)
    assert (result.exit_code, answer["labels"], answer["excluded"]) == (0, ["dog"], ["rain"])
    result = CliRunner().invoke(app, ["text", "the cat on my zorb"])
    assert result.exit_code == 1
    assert "known as something else: cat" in result.stdout
    assert "not understood: zorb" in result.stdout
    assert "Known: air_conditioner, " in result.stdout


@EMBEDDED
def test_errors_are_json_where_json_was_asked_for(gateway: Gateway) -> None:
    result = soundmill(gateway, "status", "ab" * 16, "--json", exit_code=7)
    assert json.loads(result.stderr)["error"]["code"] == "not_found"


@EMBEDDED
def test_shell_completes_ids_of_jobs(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = gateway.new_job()
    words = f"soundmill watch --url {gateway.url} {job_id[:4]}"
    environment = {
        "_SOUNDMILL_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": "4",
    }
    result = CliRunner().invoke(app, [], env=environment, prog_name="soundmill")
    assert result.stdout.split() == [job_id]


@EMBEDDED
def test_key_made_by_the_command_opens_the_gateway(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = gateway.settings.database_url.get_secret_value()
    monkeypatch.setenv("SOUNDMILL_DATABASE_URL", url)
    home = ["--home", str(gateway.settings.home)]
    made = {}
    for name, scope in (("alice", "submit"), ("bob", "read")):
        answer = CliRunner().invoke(
            app, ["keys", "create", name, "--scope", scope, *home, "--json"]
        )
        assert answer.exit_code == 0, answer.output
        made[name] = json.loads(answer.stdout)
    bob = made["bob"]["secret"]
    monkeypatch.setenv("SOUNDMILL_API_KEY", bob)
    assert as_json(gateway, "ls") == []
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    soundmill(gateway, "submit", str(tmp_path / "a.wav"), *home, exit_code=5)
    refused = soundmill(gateway, "ls", "--key", "sm_wrong", "--json", exit_code=5)
    assert json.loads(refused.stderr)["error"]["code"] == "key_invalid"
    with gateway.sessions() as session:
        assert session.scalars(select(Job)).all() == []
