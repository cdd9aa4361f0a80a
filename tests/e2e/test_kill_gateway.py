"""Gateway, ingester and dispatcher die again and again while an archive is submitted and processed.

Every file is there once at the end, was processed once, and every count says so. The stages are
no-ops, so that two thousand files go through; what happens when workers die is in
``test_recovery``.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from client.api import Gateway
from common.db import make_engine, make_readers
from common.domain import JobState, RunState, SourceState, Stage
from common.storage import open_store
from common.tables import Artifact, Attempt, Recording, Rejection, Source, StageRun
from tests.bench import tiny
from tests.bench.rig import Kind, Rig, running

VICTIMS = ("gateway", "ingester", "dispatcher")
KILLS = 12
SENDERS = 8
PATIENCE_S = 60.0
ENDS_WITHIN_S = 900.0
SETTINGS = {"lease_s": 4, "ingest_lease_s": 2, "lost_message_grace_s": 2, "count_interval_s": 0.2}


@dataclass
class Reaper:
    """Kills processes with SIGKILL at moments drawn beforehand, and starts them again at once.

    A moment is a number of things done: recordings recorded plus stage runs ended.
    """

    rig: Rig
    readers: sessionmaker[Session]
    moments: list[int]
    victims: list[str]
    kills: list[tuple[str, int]] = field(default_factory=list)  # whom, after how many recordings
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Do it, and stay until ``done``: processes end with the thread that started them."""
        while not self.done.wait(0.02):
            if not self.moments:
                continue
            recorded, ended = self.progress()
            if recorded + ended >= self.moments[0]:
                self.moments.pop(0)
                victim = self.victims.pop(0)
                self.rig.kill(victim)
                self.kills.append((victim, recorded))
                self.rig.start(victim)

    def progress(self) -> tuple[int, int]:
        """Return how many recordings are recorded and how many runs have succeeded."""
        with self.readers() as session:
            recorded = session.scalar(select(func.count()).select_from(Recording)) or 0
            succeeded = select(func.count()).where(StageRun.state == RunState.SUCCEEDED.value)
            return recorded, session.scalar(succeeded) or 0


@contextmanager
def reaped(rig: Rig, readers: sessionmaker[Session], files: int, seed: int) -> Iterator[Reaper]:
    """Let a reaper loose on a rig while the block runs."""
    rng = random.Random(seed)
    steps = files * (1 + len(Stage))
    moments = sorted(rng.sample(range(1, steps - files // 10), KILLS))
    victims = list(VICTIMS) * (KILLS // len(VICTIMS))
    rng.shuffle(victims)
    reaper = Reaper(rig, readers, moments, victims)
    thread = threading.Thread(target=reaper.run, daemon=True)
    thread.start()
    try:
        yield reaper
    finally:
        reaper.done.set()
        thread.join()


def submit(gateway: Gateway, rig: Rig, files: int, folder: Path) -> tuple[str, dict[str, str]]:
    """Submit a quarter of the files one by one, the rest in a ZIP and a manifest, all at once.

    Returns the job, and the SHA-256 of every file by its name, worked out here.
    """
    shares = {"sent": files // 4, "packed": files // 2 - files // 8, "listed": 0}
    shares["listed"] = files - sum(shares.values())
    contents = {
        name: tiny.recording(seed, number)
        for seed, count in shares.items()
        for number, name in enumerate(tiny.names(seed, count))
    }
    archive, manifest = folder / "archive.zip", folder / "manifest.jsonl"
    tiny.write_zip(archive, "packed", shares["packed"])
    urls = tiny.write_folder(rig.imports, "listed", shares["listed"])
    tiny.write_manifest(manifest, "listed", urls)
    job_id = gateway.create_job("killed").id

    def send(name: str) -> None:
        gateway.upload(job_id, name, lambda: [contents[name]], idempotency_key=name)

    def send_source(path: Path, media_type: str) -> None:
        gateway.send_source(job_id, path.name, lambda: [path.read_bytes()], media_type)

    with ThreadPoolExecutor(SENDERS) as pool:
        sending = [pool.submit(send, name) for name in tiny.names("sent", shares["sent"])]
        sending.insert(len(sending) // 3, pool.submit(send_source, archive, "application/zip"))
        sending.append(pool.submit(send_source, manifest, "application/x-ndjson"))
        for sent in sending:
            sent.result()
    gateway.close_job(job_id)
    return job_id, {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}


def wait_for(gateway: Gateway, job_id: str) -> None:
    """Wait until the job has completed."""
    deadline = time.monotonic() + ENDS_WITHIN_S
    while not (job := gateway.job(job_id)).is_finished:
        assert time.monotonic() < deadline, f"not completed: {job}"
        time.sleep(0.2)
    assert job.state is JobState.COMPLETED


def check_rows(
    readers: sessionmaker[Session], rig: Rig, job_id: str, expected: dict[str, str]
) -> None:
    """Check recordings, sources, runs, attempts and artifacts in the database and the store."""
    store = open_store(rig.settings)
    with readers() as session:
        recordings = session.scalars(select(Recording).where(Recording.job_id == job_id)).all()
        assert len(recordings) == len(expected)
        assert {recording.name: recording.sha256 for recording in recordings} == expected
        assert {r.position for r in recordings} == set(range(len(expected)))
        sources = session.scalars(select(Source).where(Source.job_id == job_id)).all()
        assert Counter(source.state for source in sources) == {SourceState.DONE.value: 2}
        packed_and_listed = [r for r in recordings if r.source_id is not None]
        assert sum(source.recordings for source in sources) == len(packed_and_listed)
        assert session.scalar(select(func.count()).select_from(Rejection)) == 0
        runs = session.execute(
            select(StageRun.id, StageRun.state, StageRun.fence).where(StageRun.job_id == job_id)
        ).all()
        assert Counter(run.state for run in runs) == {"succeeded": len(Stage) * len(expected)}
        attempts = session.execute(
            select(Attempt.stage_run_id, Attempt.number, Attempt.outcome)
        ).all()
        successes = Counter(a.stage_run_id for a in attempts if a.outcome == "succeeded")
        assert successes == {run.id: 1 for run in runs}
        numbers = Counter(attempt.stage_run_id for attempt in attempts)
        assert numbers == {run.id: run.fence for run in runs}  # none ran unnoticed
        artifacts = session.execute(
            select(Artifact.recording_id, Artifact.kind, Artifact.object_key, Artifact.size_bytes)
        ).all()
    assert len(artifacts) == len({(a.recording_id, a.kind) for a in artifacts}) == len(runs)
    sizes = {found.key: found.size_bytes for found in store.list("artifacts/")}
    assert sizes == {a.object_key: a.size_bytes for a in artifacts}
    stored = {found.key for found in store.list(f"recordings/{job_id}/")}
    assert {recording.object_key for recording in recordings} <= stored


def check_api(gateway: Gateway, job_id: str, files: int) -> None:
    """Check that the gateway tells the same."""
    job = gateway.job(job_id)
    assert job.recordings == files
    assert job.counts == {stage: {RunState.SUCCEEDED: files} for stage in Stage}
    listed = list(gateway.recordings(job_id))
    assert [recording.position for recording in listed] == list(range(files))
    assert all(recording.succeeded for recording in listed)


@pytest.mark.parametrize(
    ("kind", "files", "seed"), [(Kind.EMBEDDED, 2_000, 1), (Kind.CLUSTER, 240, 2)]
)
def test_no_file_is_lost_or_doubled(kind: Kind, files: int, seed: int, tmp_path: Path) -> None:
    with running(kind, **SETTINGS) as rig:
        engine = make_engine(rig.settings)
        readers = make_readers(engine)
        key = rig.headers.get("Authorization", "").removeprefix("Bearer ")
        with (
            Gateway(rig.url, key, PATIENCE_S) as gateway,
            reaped(rig, readers, files, seed) as reaper,
        ):
            job_id, expected = submit(gateway, rig, files, tmp_path)
            wait_for(gateway, job_id)
            assert not reaper.moments, f"only these were killed: {reaper.kills}"
            assert any(recorded < files for _, recorded in reaper.kills)  # while it was submitted
            assert any(recorded == files for _, recorded in reaper.kills)  # and afterwards
            check_rows(readers, rig, job_id, expected)
            check_api(gateway, job_id, files)
        engine.dispose()
