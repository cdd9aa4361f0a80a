"""Results of a whole job: tables, labels, artifacts, manifests; read back by other programs."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

import anyio
import httpx
import pandas as pd
import pytest
from anyio import CapacityLimiter, sleep_forever
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet as pq
from sqlalchemy import update

from common.domain import RunState, SourceKind, SourceState, Stage
from common.errors import NotFound
from common.formats.labels import RAVEN_COLUMNS
from common.tables import Artifact, Job, Recording, Rejection, Source, StageRun
from services.gateway import downloads
from services.gateway.exports import Export, walk
from services.gateway.names import archive_name
from services.gateway.problems import Problem
from tests.gateway.conftest import EVENTS, STACKS, Gateway, problem
from tests.gateway.filled import Filled, fill, heard

MASK = b"mask" * 100


def three_tables(gateway: Gateway, path: str) -> list[dict[str, Any]]:
    """Fetch a table in its three formats, check that they agree, return its rows."""
    answers = {form: gateway.client.get(f"{path}.{form}") for form in ("jsonl", "csv", "parquet")}
    for answer in answers.values():
        assert answer.status_code == 200, answer.text
    rows = [json.loads(line) for line in answers["jsonl"].text.splitlines()]
    table = pq.read_table(io.BytesIO(answers["parquet"].content))
    assert table.num_rows == len(rows)
    cells = list(csv.reader(io.StringIO(answers["csv"].text, newline="")))
    assert cells[0] == table.column_names
    for row, line, read in zip(rows, cells[1:], table.to_pylist(), strict=True):
        assert list(row) == table.column_names
        for (name, value), cell in zip(row.items(), line, strict=True):
            if value is None:
                assert (cell, read[name]) == ("", None)
            elif isinstance(value, dict):
                assert json.loads(cell) == dict(read[name]) == value
            elif isinstance(value, int | float):
                assert float(cell) == read[name] == value
            elif name.endswith("_at"):
                assert cell == value
                assert read[name] == pd.Timestamp(value)
            else:
                assert cell.removeprefix("'") == read[name] == value
    return rows


@pytest.fixture
def job(gateway: Gateway) -> Filled:
    """Four recordings: two events, none, more than the database keeps, and a failed one."""
    names = ["tapes/a.wav", "b 1.wav", "=c.wav", "d.wav"]
    filled = fill(
        gateway.sessions,
        [heard("dog", "siren"), heard(), heard(*["rain"] * 65), heard("dog")],
        names,
    )
    many = json.dumps(
        {
            "version": 1,
            "duration_s": 10.0,
            "events": [
                {"label": "rain", "onset_s": n / 10, "offset_s": n / 10 + 0.05, "confidence": 0.5}
                for n in range(65)
            ],
            "tags": [],
        }
    ).encode()
    first, _, third, last = filled.recording_ids
    with gateway.sessions.begin() as session:
        runs = {
            (run.recording_id, run.stage): run
            for run in session.query(StageRun).where(StageRun.job_id == filled.job_id)
        }
        for recording_id, kind, stage, data in [
            (third, "events", "classify", many),
            (third, "mask", "segment", MASK),
            (first, "mask", "segment", MASK),
        ]:
            key = f"artifacts/{recording_id}/{kind}.bin"
            stored = gateway.store.put_stream(key, io.BytesIO(data), "application/json")
            session.add(
                Artifact(
                    stage_run_id=runs[recording_id, stage].id,
                    recording_id=recording_id,
                    kind=kind,
                    object_key=key,
                    media_type="application/json",
                    size_bytes=stored.size_bytes,
                    sha256=stored.sha256,
                )
            )
        failed = runs[last, "classify"]
        failed.state, failed.result = RunState.FAILED.value, None
        failed.error_code, failed.error_detail = "audio_empty", "no\nsamples"
        failed.finished_at = 1_700_000_000.5
        one = session.get_one(Recording, first)
        one.custom_id, one.labels = "tape-1", {"site": "A", "box": "7"}
    return filled


@STACKS
def test_events_of_a_job(gateway: Gateway, job: Filled) -> None:
    first, _, third, _ = job.recording_ids
    rows = three_tables(gateway, f"/v1/jobs/{job.job_id}/events")
    assert rows[:2] == [
        {
            "recording_id": first,
            "custom_id": "tape-1",
            "name": "tapes/a.wav",
            "label": label,
            "onset_s": onset_s,
            "offset_s": onset_s + 0.5,
            "confidence": 0.5,
        }
        for label, onset_s in (("dog", 0.25), ("siren", 1.25))
    ]
    assert [row["recording_id"] for row in rows[2:]] == [third] * 65
    assert [row["onset_s"] for row in rows[2:]] == [n / 10 for n in range(65)]


@STACKS
def test_rttm_and_raven_of_a_job(gateway: Gateway, job: Filled) -> None:
    answer = gateway.client.get(f"/v1/jobs/{job.job_id}/events.rttm")
    lines = [line.split(" ") for line in answer.text.splitlines()]
    assert {len(line) for line in lines} == {10}
    assert [line[1] for line in lines] == ["tape-1"] * 2 + ["=c.wav#2"] * 65
    answer = gateway.client.get(f"/v1/jobs/{job.job_id}/events.raven.txt")
    assert answer.headers["content-type"].startswith("text/tab-separated-values")
    frame = pd.read_csv(io.StringIO(answer.text), sep="\t")
    assert tuple(frame.columns) == RAVEN_COLUMNS
    assert frame["Selection"].tolist() == list(range(1, 68))
    assert frame["Begin File"].tolist() == ["tapes/a.wav"] * 2 + ["=c.wav"] * 65
    # the third recording begins after two of ten seconds
    begun_s = frame["Begin Time (s)"] - frame["File Offset (s)"]
    assert begun_s.round(6).tolist() == [0.0] * 2 + [20.0] * 65


@STACKS
def test_recordings_of_a_job(gateway: Gateway, job: Filled) -> None:
    rows = three_tables(gateway, f"/v1/jobs/{job.job_id}/recordings")
    assert [row["id"] for row in rows] == job.recording_ids
    assert [row["position"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["labels"] == {"site": "A", "box": "7"}
    assert (rows[0]["duration_s"], rows[0]["sample_rate"]) == (10.0, 48_000)
    found = [(row["events"], row["top_label"], row["top_confidence"]) for row in rows]
    assert found == [(2, "dog", 0.9), (0, "rain", 0.9), (65, "rain", 0.9), (None, None, None)]
    assert rows[3]["segment_state"] == "succeeded"
    assert (rows[3]["classify_state"], rows[3]["classify_error"]) == ("failed", "audio_empty")
    assert {row["enhance_state"] for row in rows} == {None}


@STACKS
def test_errors_of_a_job(gateway: Gateway, job: Filled) -> None:
    with gateway.sessions.begin() as session:
        source = Source(
            job_id=job.job_id,
            kind=SourceKind.ARCHIVE.value,
            name="tapes.zip",
            spec={},
            state=SourceState.FAILED.value,
            error_code="archive_ratio",
            error_detail="a bomb",
            rejected=2,
            finished_at=1_700_000_000.0,
        )
        session.add(source)
        session.flush()
        session.add_all(
            Rejection(
                job_id=job.job_id,
                source_id=source.id,
                entry=n,
                name=name,
                custom_id=None,
                error_code="entry_is_link",
                error_detail="A link.",
            )
            for n, name in enumerate(["x", "y"])
        )
    rows = three_tables(gateway, f"/v1/jobs/{job.job_id}/errors")
    assert [(row["stage"], row["state"], row["error_code"], row["name"]) for row in rows] == [
        ("ingest", "rejected", "entry_is_link", "x"),
        ("ingest", "rejected", "entry_is_link", "y"),
        ("ingest", "failed", "archive_ratio", "tapes.zip"),
        ("classify", "failed", "audio_empty", "d.wav"),
    ]
    assert [row["entry"] for row in rows] == [0, 1, None, None]
    assert rows[2]["source_id"] == source.id
    assert rows[3]["recording_id"] == job.recording_ids[3]
    assert rows[3]["error_detail"] == "no\nsamples"
    assert rows[3]["failed_at"] == "2023-11-14T22:13:20.500000+00:00"


@STACKS
def test_manifests_of_a_job(gateway: Gateway, job: Filled) -> None:
    answer = gateway.client.get(f"/v1/jobs/{job.job_id}/manifest.jsonl")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines == [gateway.get(f"/v1/recordings/{i}/manifest") for i in job.recording_ids]
    assert lines[0]["recording"]["custom_id"] == "tape-1"
    assert [stage["stage"] for stage in lines[0]["stages"]] == ["segment", "classify"]
    assert lines[0]["stages"][1]["result"] == {"events": 2, "top": "dog", "top_confidence": 0.9}


@STACKS
@pytest.mark.filterwarnings("ignore:Passing a schema to Validator:DeprecationWarning")
def test_labels_of_a_job(gateway: Gateway, job: Filled) -> None:
    path = f"/v1/jobs/{job.job_id}/labels.zip"
    for form, ending in [("audacity", "txt"), ("raven", "raven.txt"), ("jams", "jams")]:
        answer = gateway.client.get(path, params={"format": form})
        assert answer.headers["content-type"] == "application/zip"
        with zipfile.ZipFile(io.BytesIO(answer.content)) as read:
            assert read.testzip() is None
            assert read.namelist() == [
                f"tapes/a.0000000.{ending}",
                f"b_1.0000001.{ending}",
                f"=c.0000002.{ending}",
            ]
            for name, recording_id in zip(read.namelist(), job.recording_ids, strict=False):
                one = gateway.client.get(f"/v1/recordings/{recording_id}/events.{ending}")
                if one.status_code == 200:  # where the events are stored as an artifact, too
                    assert read.read(name) == one.content
    problem(gateway.client.get(path), 422, "request_invalid")
    problem(gateway.client.get(path, params={"format": "docx"}), 422, "request_invalid")


@STACKS
def test_artifacts_of_a_job(gateway: Gateway, job: Filled) -> None:
    path = f"/v1/jobs/{job.job_id}/artifacts.zip"
    many = ["=c.0000002.events.bin", "=c.0000002.mask.bin"]
    for params, names in [
        ({"kind": ["mask"]}, ["tapes/a.0000000.mask.bin", many[1]]),
        ({"kind": ["mask", "events", "mask"]}, ["tapes/a.0000000.mask.bin", *many]),
        ({"kind": ["mask", "events"], "start": 1}, many),
        ({"kind": ["mask"], "start": 0, "stop": 2}, ["tapes/a.0000000.mask.bin"]),
        ({"kind": ["enhanced"]}, []),
    ]:
        answer = gateway.client.get(path, params=params)
        assert answer.status_code == 200, answer.text
        with zipfile.ZipFile(io.BytesIO(answer.content)) as read:
            assert read.testzip() is None
            assert read.namelist() == names
            for name in names:
                assert name.endswith("events.bin") or read.read(name) == MASK
    for bad in ({}, {"kind": "cake"}, {"kind": "mask", "start": -1}, {"kind": "mask", "stop": "x"}):
        problem(gateway.client.get(path, params=bad), 422, "request_invalid")


@STACKS
def test_large_artifacts_are_not_fetched_ahead(gateway: Gateway, job: Filled) -> None:
    data = bytes(range(256)) * (3 << 12)  # 3 MiB
    gateway.store.put_stream("artifacts/large.flac", io.BytesIO(data), "audio/flac")
    with gateway.sessions.begin() as session:
        session.execute(
            update(Artifact)
            .where(Artifact.kind == "mask")
            .values(object_key="artifacts/large.flac", size_bytes=len(data))
        )
    answer = gateway.client.get(f"/v1/jobs/{job.job_id}/artifacts.zip?kind=mask")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as read:
        assert read.testzip() is None
        assert [entry.file_size for entry in read.infolist()] == [len(data)] * 2


@STACKS
def test_an_error_on_the_way_cuts_the_connection(gateway: Gateway, job: Filled) -> None:
    data = bytes(2 << 20)
    gateway.store.put_stream("artifacts/large.flac", io.BytesIO(data), "audio/flac")
    with gateway.sessions.begin() as session:
        for recording_id, key in zip(
            job.recording_ids[::2], ("artifacts/large.flac", "artifacts/gone"), strict=True
        ):
            session.execute(
                update(Artifact)
                .where(Artifact.kind == "mask", Artifact.recording_id == recording_id)
                .values(object_key=key, size_bytes=len(data))
            )
    path = f"/v1/jobs/{job.job_id}/artifacts.zip?kind=mask"
    with pytest.raises(httpx.RemoteProtocolError):
        gateway.client.get(path)
    told = [line["exc_info"].__cause__ for line in gateway.log if line["log_level"] == "error"]
    assert list(map(str, told)) == ["artifacts/gone is missing in the store"]


@STACKS
def test_an_error_before_the_first_block_is_a_problem(gateway: Gateway, job: Filled) -> None:
    gateway.store.delete(f"artifacts/{job.recording_ids[2]}/events.bin")
    path = f"/v1/jobs/{job.job_id}/events"
    for form in ("jsonl", "csv", "rttm", "raven.txt"):
        problem(gateway.client.get(f"{path}.{form}"), 500, "artifact_invalid")


@STACKS
def test_a_receiver_that_goes_away(gateway: Gateway) -> None:
    filled = fill(gateway.sessions, [heard("dog", "siren")] * 1_500)
    url = f"{gateway.url}/v1/jobs/{filled.job_id}/events.csv"
    for _ in range(5):  # more than may be made at once
        with httpx.stream("GET", url) as answer:
            next(answer.iter_raw())
    assert gateway.client.get(url).text.count("\n") == 3_001


def test_there_is_room_for_so_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And who does not take what is sent loses the place."""
    monkeypatch.setattr(downloads, "STALLED_AFTER_S", 0.01)
    room = downloads.Room(files=CapacityLimiter(1))
    closed = []

    def blocks() -> Iterator[bytes]:
        try:
            yield b"block"
            yield b"block"
        finally:
            closed.append(True)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send_nowhere(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            await get(forgotten)  # a second one, while the first has the only place
            await sleep_forever()

    async def forgotten(message: dict[str, Any]) -> None:
        raise AssertionError("nothing is sent")

    async def get(send: Any) -> None:
        made = downloads.made(blocks(), "text/csv", "a.csv", room)
        if send is forgotten:
            with pytest.raises(Problem, match="being sent already"):
                await made({"type": "http"}, receive, send)
        else:
            await made({"type": "http"}, receive, send)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await get(send_nowhere)
        assert closed == [True]
        assert room.files.available_tokens == 1

    anyio.run(main)


@STACKS
def test_what_cannot_be_collected(gateway: Gateway) -> None:
    tables = ("events.csv", "recordings.csv", "errors.csv", "attempts.csv")
    for end in (*tables, "manifest.jsonl", "events.rttm"):
        problem(gateway.client.get(f"/v1/jobs/nope/{end}"), 404, "not_found")
    problem(gateway.client.get("/v1/jobs/nope/labels.zip?format=jams"), 404, "not_found")
    problem(gateway.client.get("/v1/jobs/nope/artifacts.zip?kind=mask"), 404, "not_found")
    job_id = gateway.new_job()
    problem(gateway.client.get(f"/v1/jobs/{job_id}/events.xlsx"), 422, "request_invalid")
    for end in ("events", "recordings", "errors", "attempts"):
        assert three_tables(gateway, f"/v1/jobs/{job_id}/{end}") == []
    answer = gateway.client.get(f"/v1/jobs/{job_id}/events.rttm")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["soundmill-job-state"] == "open"


@STACKS
def test_a_job_deleted_on_the_way_is_noticed(gateway: Gateway) -> None:
    filled = fill(gateway.sessions, [heard()] * 25)
    export = Export(gateway.sessions, gateway.store, filled.job_id)
    names = walk(export, lambda _, page: [recording.name for recording in page], size=10)
    assert [next(names) for _ in range(10)] == [f"tapes/number {n}.wav" for n in range(10)]
    with gateway.sessions.begin() as session:
        session.get_one(Job, filled.job_id).deleted_at = 1.0
    with pytest.raises(NotFound):
        next(names)


@STACKS
def test_events_of_one_recording(gateway: Gateway) -> None:
    recording_id = gateway.upload(gateway.new_job(), name="tapes/dog 1.wav")
    gateway.succeed(recording_id, Stage.SEGMENT)
    gateway.succeed(recording_id, Stage.CLASSIFY)
    path = f"/v1/recordings/{recording_id}"
    rows = three_tables(gateway, f"{path}/events")
    assert rows == EVENTS["events"]
    answer = gateway.client.get(f"{path}/events.rttm")
    assert answer.text.splitlines()[0] == (
        "SPEAKER tapes/dog%201.wav 1 0.250000 0.750000 <NA> <NA> dog 0.8750 <NA>"
    )
    answer = gateway.client.get(f"{path}/events.jams")
    assert answer.headers["content-type"] == "application/vnd.jams+json"
    assert answer.json()["file_metadata"]["title"] == "tapes/dog 1.wav"
    answer = gateway.client.get(f"{path}/events.raven.txt")
    assert 'filename="dog_1.events.raven.txt"' in answer.headers["content-disposition"]
    assert pd.read_csv(io.StringIO(answer.text), sep="\t")["Label"].tolist() == ["dog", "siren"]
    problem(gateway.client.get(f"{path}/events.docx"), 422, "request_invalid")


def test_pyarrow_is_loaded_only_for_parquet() -> None:
    script = "import sys, services.gateway.app; sys.exit('pyarrow' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 10**7))
def test_a_name_in_an_archive_is_safe(name: str, position: int) -> None:
    path = archive_name(name, position, "mask.npz")
    assert path.endswith(f".{position:07d}.mask.npz")
    for part in path.split("/"):
        assert part
        assert not part.startswith(".")
        assert not set('\\<>:"|?*%\0\n\r\t ') & set(part)
        assert len(part.encode()) <= 255
