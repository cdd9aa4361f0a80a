"""Sources while things happen around them: crashes, cancelled and full jobs, outages; dry runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from common.db import DbNow
from common.domain import JobState, Outcome, RunState, SourceKind, SourceState, Stage
from common.errors import StoreUnavailable
from common.settings import Settings
from common.sources import MAY_PASS
from common.tables import ApiKey, Attempt, Job, Recording, Source, StageRun
from services.ingester import claims
from services.ingester.loop import Ingester
from services.ingester.reading import Reading
from services.ingester.taking import recording_id
from tests.ingester.conftest import EMBEDDED, STACKS, Bench, end_job, wav


def zip_of(count: int, **others: bytes) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(count):
            archive.writestr(f"{number:05}.wav", wav(seed=number))
        for name, data in others.items():
            archive.writestr(f"{name}.wav", data)
    return buffer.getvalue()


def environment(settings: Settings) -> dict[str, str]:
    """Return the settings of a test as variables for a process of its own."""
    values: dict[str, Any] = settings.model_dump(exclude_defaults=True)
    shown = {
        name: value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
        for name, value in values.items()
    }
    return os.environ | {f"SOUNDMILL_{name.upper()}": value for name, value in shown.items()}


@STACKS
def test_a_killed_ingester_loses_and_doubles_nothing(bench: Bench) -> None:
    object.__setattr__(bench.settings, "ingest_lease_s", 1.0)
    count = 1_200
    source_id = bench.zip(zip_of(count, damaged=b""))
    command = [sys.executable, "-m", "services.ingester"]
    log = (bench.settings.home / "log").open("wb")
    for _ in range(3):
        before = bench.row(source_id).entries
        with subprocess.Popen(command, env=environment(bench.settings), stderr=log) as child:
            while bench.row(source_id).entries == before and child.poll() is None:
                time.sleep(0.01)
                if bench.row(source_id).state == SourceState.DONE.value:
                    break
            child.send_signal(signal.SIGKILL)
    log.close()
    assert bench.row(source_id).fence >= 2
    with bench.sessions.begin() as session:
        session.execute(update(Source).values(lease_expires_at=0.0))
    bench.read()
    source = bench.row(source_id)
    assert (source.state, source.entries) == (SourceState.DONE.value, count + 1)
    recordings = bench.recordings(source_id)
    assert [r.sha256 for r in recordings] == [
        sha256(wav(seed=number)).hexdigest() for number in range(count)
    ]
    assert [r.position for r in recordings] == list(range(count))
    assert (source.recordings, source.rejected) == (count, 1)
    assert bench.job_of(source_id).recordings == count
    bench.nothing_left_behind()


def claimed(bench: Bench) -> Reading:
    """Claim the only source, as a second ingester would."""
    ingester = bench.ingester
    with bench.sessions.begin() as session:
        hold = claims.claim(session, "other", bench.settings, interactive_only=False)
    assert hold is not None
    return Reading(bench.settings, bench.sessions, bench.store, ingester.locators, hold)


@STACKS
def test_who_lost_the_lease_changes_nothing(bench: Bench) -> None:
    source_id = bench.zip(zip_of(5))
    late = claimed(bench)
    with bench.sessions.begin() as session:
        session.execute(update(Source).values(lease_expires_at=0.0))
    bench.read()
    done = bench.row(source_id)
    late.run()
    assert bench.row(source_id).fence == done.fence == 2
    assert bench.row(source_id).state == SourceState.DONE.value
    assert len(bench.recordings(source_id)) == 5
    bench.nothing_left_behind()


@STACKS
def test_a_cancelled_job_stops_its_source_and_leaves_nothing(bench: Bench) -> None:
    source_id = bench.zip(zip_of(5))
    reading = claimed(bench)
    # what an ingester that was killed left behind
    key = f"recordings/{reading.hold.job_id}/{recording_id(source_id, 3)}"
    bench.store.put_stream(key, BytesIO(b"left"), "audio/wav")
    end_job(bench, reading.hold.job_id)
    reading.run()
    assert bench.row(source_id).state == SourceState.CANCELLED.value
    assert bench.objects() == {}


@EMBEDDED
def test_a_renewal_notices_that_the_job_ended(bench: Bench) -> None:
    bench.zip(zip_of(1))
    hold = claimed(bench).hold
    with bench.sessions.begin() as session:
        assert claims.renew(session, [hold], 30.0) == {hold.source_id}
    end_job(bench, hold.job_id)
    with bench.sessions.begin() as session:
        assert claims.renew(session, [hold], 30.0) == set()


@EMBEDDED
def test_what_a_deadline_cut_off_is_kept(bench: Bench) -> None:
    source_id = bench.zip(zip_of(1))
    with bench.sessions.begin() as session:
        session.execute(update(Job).values(state=JobState.EXPIRED.value))
    bench.read()
    source = bench.row(source_id)
    assert (source.state, source.error_code) == (SourceState.CANCELLED.value, "deadline_passed")
    assert list(bench.objects()) == [source.spec["object_key"]]


@EMBEDDED
def test_told_to_stop_it_gives_the_source_back(bench: Bench) -> None:
    source_id = bench.zip(zip_of(50))
    reading = claimed(bench)
    reading.hold.halted.set()
    reading.run()
    source = bench.row(source_id)
    assert (source.state, source.failures) == (SourceState.PENDING.value, 0)
    bench.read()
    assert len(bench.recordings(source_id)) == 50


@EMBEDDED
def test_a_paused_job_is_still_read(bench: Bench) -> None:
    source_id = bench.zip(zip_of(3))
    with bench.sessions.begin() as session:
        session.execute(update(Job).values(paused_at=1.0))
    bench.read()
    assert len(bench.recordings(source_id)) == 3


@EMBEDDED
def test_a_job_that_is_full_takes_what_fits(bench: Bench) -> None:
    job_id = bench.job()
    ids = [bench.stored(job_id, SourceKind.ARCHIVE, zip_of(1_100), format="zip") for _ in range(2)]
    bench.read()
    assert bench.job_of(ids[0]).recordings == sum(len(bench.recordings(i)) for i in ids) == 2_000
    codes = {bench.row(source_id).error_code for source_id in ids}
    assert codes <= {None, "archive_too_many_entries"}
    assert codes != {None}
    bench.nothing_left_behind()


@STACKS
def test_a_quota_refuses_what_has_no_room(bench: Bench) -> None:
    size = len(wav())
    with bench.sessions.begin() as session:
        key = ApiKey(name="k", hash="h" * 64, scopes=["submit"], max_bytes=10 * size + 1)
        session.add(key)
        session.flush()
        owner = key.id
    source_id = bench.stored(bench.job(owner=owner), SourceKind.ARCHIVE, zip_of(30), format="zip")
    bench.read()
    assert len(bench.recordings(source_id)) == 10
    assert set(bench.rejections(source_id).values()) == {"quota_exceeded"}
    assert bench.row(source_id).rejected == 20
    bench.nothing_left_behind()


@STACKS
@pytest.mark.parametrize("kind", ["zip", "manifest", "upload"])
def test_a_dry_run_only_looks(bench: Bench, kind: str, tmp_path: Path) -> None:
    second = wav(frames=16_000)
    job_id = bench.job(dry_run=True)
    if kind == "zip":
        data = zip_of(0, a=second, b=wav(frames=32_000), c=b"no audio", d=b"")
        source_id = bench.stored(job_id, SourceKind.ARCHIVE, data, format="zip")
        expected = (3, 3.0, 1, {"empty_entry": 1})
    elif kind == "manifest":
        folder = tmp_path / "imports"
        folder.mkdir()
        (folder / "a.wav").write_bytes(second)
        lines = [{"url": f"{folder.as_uri()}/{name}"} for name in ("a.wav", "none.wav")]
        text = "\n".join(map(json.dumps, lines)).encode()
        source_id = bench.stored(job_id, SourceKind.MANIFEST, text, format="jsonl")
        expected = (1, 1.0, 0, {"url_status": 1})
    else:
        bench.store.put_stream("uploads/u", BytesIO(second), "audio/wav")
        spec = {"upload_id": "u", "object_key": "uploads/u", "name": "a.wav"}
        source_id = bench.source(job_id, SourceKind.UPLOAD, **spec, size_bytes=len(second))
        expected = (1, 1.0, 0, {})
    bench.read()
    estimate = bench.job_of(source_id).estimate
    assert estimate is not None
    assert (
        estimate["files"],
        estimate["audio_s"],
        estimate["unknown_length"],
        estimate["would_fail"],
    ) == expected
    assert estimate["eta_s"] is None
    assert estimate["size_bytes"] > 0
    assert bench.recordings(source_id) == []
    assert bench.job_of(source_id).recordings == 0
    assert bench.objects() == {}


@STACKS
def test_a_dry_run_tells_when_it_would_be_done(bench: Bench) -> None:
    done = bench.job()
    with bench.sessions.begin() as session:
        now = session.scalar(DbNow().select()) or 0.0
        recording = Recording(
            job_id=done, position=0, name="a", object_key="x", size_bytes=1, sha256="0" * 64
        )
        session.add(recording)
        session.flush()
        run = StageRun(
            job_id=done, recording_id=recording.id, stage=Stage.SEGMENT.value, position=0,
            state=RunState.SUCCEEDED.value, priority="bulk", audio_s=10.0,
        )  # fmt: skip
        session.add(run)
        session.flush()
        for number, worker in enumerate(("one", "two", "two", "one")):
            session.add(
                Attempt(
                    stage_run_id=run.id, number=number, worker=worker, shard_id="s", audio_s=10.0,
                    outcome=Outcome.SUCCEEDED.value, claimed_at=now - 9, started_at=now - 7,
                    finished_at=now - 2,
                )
            )  # fmt: skip
    job_id = bench.job(dry_run=True)
    data = zip_of(0, a=wav(frames=16_000 * 8))
    source_id = bench.stored(job_id, SourceKind.ARCHIVE, data, format="zip")
    bench.read()
    estimate = bench.job_of(source_id).estimate
    assert estimate is not None
    assert estimate["eta_s"] == pytest.approx(8 * 0.5 / 2)  # half a second each, two workers


@EMBEDDED
def test_an_outage_of_the_store_is_waited_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    source_id = bench.zip(zip_of(20))
    put, failing = bench.store.put_stream, iter([True] * 3)

    def unsure(*arguments: Any) -> Any:
        if next(failing, False):
            raise StoreUnavailable("down")
        return put(*arguments)

    monkeypatch.setattr(bench.store, "put_stream", unsure)
    bench.read()
    assert bench.row(source_id).state == SourceState.DONE.value
    assert len(bench.recordings(source_id)) == 20
    bench.nothing_left_behind()


@EMBEDDED
def test_an_outage_without_end_fails_the_source(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    source_id = bench.zip(zip_of(20))

    def down(*arguments: Any) -> Any:
        raise StoreUnavailable("down")

    with monkeypatch.context() as outage:
        outage.setattr(bench.store, "put_stream", down)
        bench.read()
    source = bench.row(source_id)
    assert (source.state, source.error_code) == (SourceState.FAILED.value, "store_unavailable")
    assert source.error_code in MAY_PASS
    assert bench.store.stat(source.spec["object_key"]).size_bytes > 0  # for a retry of the job


@EMBEDDED
def test_an_interactive_job_finds_a_place(bench: Bench) -> None:
    for _ in range(6):
        bench.zip(zip_of(1))
    job_id = bench.job(priority="interactive")
    bench.stored(job_id, SourceKind.ARCHIVE, zip_of(1), format="zip")
    with bench.sessions.begin() as session:
        hold = claims.claim(session, "w", bench.settings, interactive_only=True)
        assert hold is not None
        assert hold.job_id == job_id
        assert not claims.is_due(session, interactive_only=True)
        assert claims.is_due(session, interactive_only=False)


@EMBEDDED
def test_a_closed_ingester_has_no_threads_left(bench: Bench) -> None:
    bench.zip(zip_of(100))
    other = Ingester(bench.settings)
    other.turn()
    other.close()
    assert not any(thread.is_alive() for thread in other._readings)
    bench.read()
    bench.nothing_left_behind()
