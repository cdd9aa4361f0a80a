"""What a worker's parent tells is what the database holds, whatever happens to its children."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from common import shared_metrics
from common.broker import make_app
from common.domain import STAGE_NEEDS, Outcome, Priority, RunState, Stage, queue_name
from common.messages import task_name
from common.metrics import MULTIPROC_DIR
from common.settings import Settings
from common.shared_metrics import SharedMetrics
from common.tables import Attempt, Recording, StageRun
from services.dispatcher.shards import take_shard
from tests.pipeline.conftest import NamedJob, has_ended
from tests.pipeline.fleet import ROOT, Fleet, Samples, until
from tests.servers import RedisServer

Sessions = sessionmaker[Session]
ONLY_GROWS = ("_total", "_count", "_sum", "_bucket")


@pytest.fixture
def settings(database_url: str, redis_server: RedisServer, tmp_path: Path) -> Settings:
    values: dict[str, Any] = {
        "home": tmp_path,
        "database_url": database_url,
        "redis_url": redis_server.url,
        "lease_s": 2.0,
        "lost_message_grace_s": 1.0,
        "retry_backoff_s": 0.05,
        "max_crashes_alone": 100,
        "shard_max_runs": 4,
        "shard_audio_s": 1_000.0,
    }
    return Settings(**values)


def series(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((f"soundmill_{name}", frozenset(labels.items())), 0.0)


def check_agreement(samples: Samples, sessions: Sessions) -> None:
    """Compare every series of the stages with sums over the rows."""
    with sessions() as session:
        rows = session.execute(
            select(StageRun.stage, Attempt).join(StageRun, StageRun.id == Attempt.stage_run_id)
        ).all()
    outcomes = Counter(
        (stage, attempt.outcome, attempt.error_code or "")
        for stage, attempt in rows
        if attempt.outcome != Outcome.LOST.value
    )
    counted = {
        (labels["stage"], labels["outcome"], labels["reason"]): value
        for (name, pairs), value in samples.items()
        if name == "soundmill_attempts_total" and value
        for labels in [dict(pairs)]
    }
    assert counted == outcomes
    for stage in Stage:
        mine = [attempt for name, attempt in rows if name == stage.value]
        done = [attempt for attempt in mine if attempt.outcome == Outcome.SUCCEEDED.value]
        took = [a.finished_at - a.started_at for a in done]
        busy = [a.finished_at - a.started_at for a in mine if a.device and a.started_at]
        waits = [a.queue_wait_s for a in mine if a.queue_wait_s is not None]
        audio = [a.audio_s for a in done]
        ratios = [t / s for t, s in zip(took, audio, strict=True)]
        infer = [a.infer_s for a in done if a.infer_s is not None]
        here = {"stage": stage.value}
        cpu = {**here, "device": "cpu"}
        expected = {
            ("attempt_seconds", ()): took,
            ("queue_wait_seconds", ()): waits,
            ("real_time_factor", (("device", "cpu"),)): ratios,
            ("phase_seconds", (("phase", "infer"),)): infer,
        }
        for (name, more), values in expected.items():
            labels = {**here, **dict(more)}
            assert series(samples, f"{name}_count", **labels) == len(values), name
            assert series(samples, f"{name}_sum", **labels) == pytest.approx(sum(values)), name
        assert series(samples, "busy_seconds_total", **cpu) == pytest.approx(sum(busy))
        heard = series(samples, "audio_seconds_total", model="0" * 12, **cpu)
        assert heard == pytest.approx(sum(audio))
        shards = len({attempt.shard_id for attempt in mine})
        assert series(samples, "messages_total", outcome="taken", **here) == shards


def test_prometheus_and_the_database_tell_the_same(
    processes: Fleet, settings: Settings, sessions: Sessions, named_job: NamedJob
) -> None:
    worker = processes.paced("worker-1")
    before = worker.samples()
    assert series(before, "attempts_total", stage="segment", outcome="succeeded", reason="") == 0
    started_at_0 = {name for name, _ in before}
    assert {"soundmill_attempts_total", "soundmill_messages_total"} <= started_at_0
    processes.dispatcher()
    names = [f"0.0{n} s, {n}.wav" for n in range(1, 9)]
    first = named_job([*names, "bad.wav", "flaky.wav"])
    until(lambda: has_ended(sessions, first))
    again = named_job(["0.02 s, a.wav", "0.02 s, b.wav"])
    with sessions.begin() as session:  # as if these had been sent once more
        same = session.scalars(select(Recording.sha256).where(Recording.job_id == first)).all()
        for number, one in enumerate(
            session.scalars(select(Recording).where(Recording.job_id == again))
        ):
            one.sha256 = same[number]
    until(lambda: has_ended(sessions, again))
    samples = worker.samples()
    check_agreement(samples, sessions)
    assert series(samples, "attempts_total", stage="enhance", outcome="reused", reason="") > 0
    unreadable = {"outcome": "permanent", "reason": "audio_unreadable"}
    assert series(samples, "attempts_total", stage="segment", **unreadable) == 1
    bug = {"outcome": "transient", "reason": "internal_error"}
    assert series(samples, "attempts_total", stage="segment", **bug) == settings.max_attempts
    model = {"stage": "segment", "model": "0" * 12, "device": "cpu"}
    assert series(samples, "model_info", **model) == 1
    everybody = "segment+classify+enhance+restore"
    for process in ("parent", "child"):
        memory = series(samples, "process_memory_bytes", stage=everybody, process=process)
        assert memory > 10_000_000
    assert not [pairs for _, pairs in samples if dict(pairs).keys() & {"pid", "id", "job_id"}]
    assert worker.page("/ready").status_code == 200
    worker.stop()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_scraped_while_children_are_killed_it_tells_no_less_than_before(
    processes: Fleet, sessions: Sessions, named_job: NamedJob, tmp_path: Path
) -> None:
    kills = 4
    worker = processes.paced("worker-1")
    processes.dispatcher()
    job_id = named_job([f"0.05 s, {n}.wav" for n in range(40)])
    pages: list[Samples] = []
    wrong: list[BaseException] = []
    done = threading.Event()

    def scrape() -> None:
        try:
            while not done.is_set():
                pages.append(worker.samples())
        except BaseException as error:
            wrong.append(error)

    reader = threading.Thread(target=scrape)
    reader.start()
    try:
        gone: set[int] = set()
        for number in range(kills):
            child = until(lambda: worker.child.pid not in gone and worker.child)
            at_work = select(Attempt.id).where(
                Attempt.worker.endswith(f":{child.pid}"), Attempt.started_at.is_not(None)
            )

            def works(at_work: Any = at_work) -> bool:
                with sessions() as session:
                    return session.scalars(at_work).first() is not None

            until(works)
            gone.add(child.pid)
            child.kill()
            deaths = {"stage": "segment+classify+enhance+restore", "reason": "SIGKILL"}
            until(
                lambda n=number, d=deaths: (
                    wrong or series(pages[-1], "worker_deaths_total", **d) == n + 1
                )
            )
        until(lambda: has_ended(sessions, job_id))
    finally:
        done.set()
        reader.join()
    assert not wrong, wrong
    assert len(pages) > 10
    for earlier, later in itertools.pairwise(pages):
        for key, value in earlier.items():
            if key[0].startswith("soundmill_") and key[0].endswith(ONLY_GROWS):
                assert later.get(key, -1.0) >= value, key
    # What a child had recorded a moment before it was killed may not have been counted any more.
    last = worker.samples()
    counted = sum(v for (n, _), v in last.items() if n == "soundmill_attempts_total")
    with sessions() as session:
        recorded = session.scalars(
            select(Attempt).where(Attempt.outcome != Outcome.LOST.value)
        ).all()
    most_at_once = 4
    assert len(recorded) - kills * most_at_once <= counted <= len(recorded)
    files = {path.name for path in (tmp_path / "metrics-worker-1").iterdir()}
    pids = {worker.process.pid, worker.child.pid}
    assert {name.rpartition("_")[2] for name in files} <= {"dead.db", *(f"{p}.db" for p in pids)}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_messages_of_other_versions_are_refused_and_nothing_is_lost(
    processes: Fleet, settings: Settings, sessions: Sessions, named_job: NamedJob
) -> None:
    worker = processes.paced("worker-1")
    job_id = named_job(["0.01 s, a.wav"])
    with sessions.begin() as session:
        shard = take_shard(session, job_id, Stage.SEGMENT, Priority.BULK, settings)
    assert shard is not None
    newer = {"version": 2, "shard_id": shard.id, "stage": "segment", "runs": [1, 2]}
    hopeless = [None, "text", [1], {}, {"version": 1, "shard_id": "../../etc", "stage": "segment"}]
    misled = {"version": 1, "shard_id": "0" * 32, "stage": "enhance"}
    with make_app(settings) as app:
        for content in [*hopeless, misled, newer]:
            app.send_task(
                task_name(Stage.SEGMENT),
                kwargs={"message": content},
                queue=queue_name(Stage.SEGMENT, Priority.BULK),
                ignore_result=True,
            )
    refused = {"stage": "segment", "outcome": "refused"}
    until(lambda: series(worker.samples(), "messages_total", **refused) == len(hopeless) + 2)
    with sessions() as session:
        run = session.scalars(select(StageRun).where(StageRun.stage == "segment")).one()
        assert (run.state, run.failures, run.fence) == (RunState.READY, 0, 0)
        assert run.next_attempt_at > (run.dispatched_at or 0.0) + 4.0  # not at once
        assert session.scalars(select(Attempt)).all() == []
    assert worker.log.read_text().count("message refused") == len(hopeless) + 2
    with sessions.begin() as session:
        session.execute(update(StageRun).values(next_attempt_at=0.0))
    processes.dispatcher()  # of our version
    until(lambda: has_ended(sessions, job_id))


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_without_a_folder_it_works_and_says_what_is_missing(
    processes: Fleet, sessions: Sessions, named_job: NamedJob
) -> None:
    worker = processes.paced("worker-1", metrics_folder="")
    processes.dispatcher()
    job_id = named_job(["0.01 s, a.wav"])
    until(lambda: has_ended(sessions, job_id))
    assert f"{MULTIPROC_DIR} is not set" in worker.log.read_text()
    samples = worker.samples()
    assert series(samples, "attempts_total", stage="segment", outcome="succeeded", reason="") == 0
    assert [name for name, _ in samples if name == "soundmill_process_memory_bytes"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_folder_that_cannot_be_written_ends_it_with_a_sentence(
    processes: Fleet, tmp_path: Path
) -> None:
    file = tmp_path / "a-file"
    file.write_text("")
    worker = processes.paced("worker-1", metrics_folder=str(file / "below"))
    assert worker.process.wait() != 0
    assert f"{MULTIPROC_DIR}={file}/below: Not a directory" in worker.log.read_text()


def test_importing_a_worker_counts_nothing(tmp_path: Path) -> None:
    """What is counted before the parent empties the folder would be lost."""
    subprocess.run(
        [sys.executable, "-c", "import services.segmenter.tasks"],  # the four look alike
        env={**os.environ, MULTIPROC_DIR: str(tmp_path), "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert list(tmp_path.iterdir()) == []


def test_every_stage_has_its_series(tmp_path: Path) -> None:
    """Every stage that a job may have is known, so none begins with a jump."""
    script = (
        "from common import stage_metrics, metrics; from common.domain import Stage;"
        "stage_metrics.start(list(Stage)); print(metrics.expose(metrics.REGISTRY).body.decode())"
    )
    page = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for stage in STAGE_NEEDS:
        assert f'soundmill_fenced_writes_total{{stage="{stage}"}} 0.0' in page
        assert f'outcome="transient",reason="worker_stopping",stage="{stage}"' in page


def test_nothing_counts_twice_when_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child has died, and the disk is full when half of what it counted is put away."""
    shared = SharedMetrics(tmp_path)
    names = {"counter": "done_total", "histogram": "took_sum"}
    for kind, name in names.items():
        file = MmapedDict(str(tmp_path / f"{kind}_7.db"))
        file.write_value(mmap_key(name.rpartition("_")[0], name, [], [], "Help."), 5.0, 0.0)
        file.close()

    def told() -> dict[str, float]:
        return {s.name: s.value for m in shared.collect() for s in m.samples}

    def full(file: Path) -> None:
        if file.name.startswith("histogram"):
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(file)

    before, allocate = told(), shared_metrics._allocate
    monkeypatch.setattr(shared_metrics, "_allocate", full)
    with pytest.raises(OSError, match="No space"):
        shared.absorb(7)
    assert told() == before
    monkeypatch.undo()
    shared.absorb(7)
    assert told() == before
