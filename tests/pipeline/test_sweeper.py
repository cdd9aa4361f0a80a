"""What the sweeper removes of jobs, what it must not, and that it may be stopped anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from common import runs, sharing
from common.db import DbNow, new_id
from common.domain import (
    ArtifactKind,
    JobEventKind,
    JobState,
    RunState,
    SourceKind,
    SourceState,
    Stage,
)
from common.ends import Measures, Succeeded, end_runs
from common.errors import StoreUnavailable
from common.jobs import record_event, recording_key
from common.runs import Reusable
from common.settings import Settings
from common.sources import source_key
from common.stage_io import AudioFacts
from common.storage import ObjectStore
from common.tables import (
    Artifact,
    Attempt,
    Garbage,
    IdempotencyKey,
    Job,
    Recording,
    Rejection,
    Source,
    StageRun,
    Webhook,
)
from services.dispatcher.sweeper import Sweeper
from tests.gateway.conftest import STACKS
from tests.pipeline.conftest import MakeJob
from tests.pipeline.swept import Sessions, keys, put, result_key, rows, sweep

AGO_S = 1_000.0


@pytest.fixture
def settings(database_url: str, store_options: dict[str, Any], tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, database_url=SecretStr(database_url), **store_options)


@pytest.fixture
def sweeper(settings: Settings, sessions: Sessions, store: ObjectStore) -> Iterator[Sweeper]:
    store.prepare()
    with closing(Sweeper(settings)) as sweeper:
        yield sweeper


def change_job(sessions: Sessions, job_id: str, **values: Any) -> None:
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(**values))


def fill(sessions: Sessions, store: ObjectStore, job_id: str, result_keys: list[str]) -> None:
    """Give a job all that a job can have; its recordings' segments succeeded with these keys."""
    with sessions.begin() as session:
        job = session.get_one(Job, job_id)
        source = Source(
            job_id=job_id,
            kind=SourceKind.ARCHIVE.value,
            name="a.zip",
            spec={},
            state=SourceState.DONE.value,
        )
        session.add(source)
        session.flush()
        source.spec = {"object_key": put(store, source_key(job_id, source.id)), "format": "zip"}
        session.add(
            Rejection(
                job_id=job_id,
                source_id=source.id,
                entry=9,
                name="x",
                error_code="entry_damaged",
                error_detail="x",
            )
        )
        session.add(Webhook(url="https://example.com", secret="x", kinds=[]))
        session.flush()
        record_event(session, job, JobEventKind.CLOSED)
        record_event(session, job, JobEventKind.COMPLETED)
        recordings = session.scalars(
            select(Recording).where(Recording.job_id == job_id).order_by(Recording.position)
        ).all()
        for recording, key in zip(recordings, result_keys, strict=True):
            recording.object_key = put(store, recording_key(job_id, recording.id))
            recording.source_id, recording.entry = source.id, recording.position
            run = session.scalars(
                select(StageRun).where(
                    StageRun.recording_id == recording.id, StageRun.stage == Stage.SEGMENT.value
                )
            ).one()
            run.state, run.idempotency_key = RunState.SUCCEEDED.value, key
            stored = put(store, result_key(key))
            session.add(
                Artifact(
                    stage_run_id=run.id,
                    recording_id=recording.id,
                    kind=ArtifactKind.MASK.value,
                    object_key=stored,
                    media_type="x",
                    size_bytes=5,
                    sha256="0" * 64,
                )
            )
            session.add(
                Attempt(stage_run_id=run.id, number=1, worker="w", shard_id="s", claimed_at=0.0)
            )
    put(store, recording_key(job_id, new_id()))  # stored by a process that died before its row


@STACKS
def test_a_deleted_job_goes_whole_and_takes_nothing_of_others_along(
    sweeper: Sweeper, sessions: Sessions, store: ObjectStore, make_job: MakeJob
) -> None:
    shared, own = "a" * 64, "b" * 64
    kept = make_job(1)
    fill(sessions, store, kept, [shared])
    rows_before, keys_before = rows(sessions), keys(store)

    gone = make_job(3)
    fill(sessions, store, gone, [shared, own, "c" * 64])
    with sessions.begin() as session:
        session.get_one(Job, gone).deleted_at = 1.0
    sweep(sweeper)

    with sessions() as session:
        assert session.get(Job, gone) is None
        assert session.scalar(select(Garbage.key)) is None
    assert keys(store) == keys_before
    # The webhook that the second job made remains, with nothing to deliver of that job
    assert rows(sessions) == {**rows_before, "webhook": rows_before["webhook"] + 1}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("store_options", ["directory"], indirect=True)
def test_a_sweeper_that_is_stopped_anywhere_leaves_nothing_behind(
    settings: Settings,
    sessions: Sessions,
    store: ObjectStore,
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every sweeper here stops dead after one more commit or deletion than the one before it."""
    monkeypatch.setattr("services.dispatcher.removal.RECORDINGS_AT_ONCE", 2)
    monkeypatch.setattr("services.dispatcher.removal.ROWS_AT_ONCE", 1)
    store.prepare()
    job_id = make_job(5)
    fill(sessions, store, job_id, [f"{number}" * 64 for number in range(5)])
    with sessions.begin() as session:
        session.get_one(Job, job_id).deleted_at = 1.0

    class Killed(BaseException):
        pass

    steps = 0

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            nonlocal steps
            steps -= 1
            if steps < 0:
                raise Killed
            return real(*arguments, **options)

        return step

    for limit in range(200):
        steps = limit
        with closing(Sweeper(settings)) as sweeper:
            monkeypatch.setattr(sweeper.store, "delete", dying(sweeper.store.delete))
            monkeypatch.setattr(sweeper, "sessions", BeginHook(sweeper.sessions, dying))
            try:
                sweep(sweeper)
            except Killed:
                continue
        break
    assert limit > 5
    assert rows(sessions) == {"webhook": 1}
    assert keys(store) == set()


class BeginHook:
    """Sessions whose transactions may die before they begin."""

    def __init__(self, sessions: Sessions, dying: Callable[..., Any]) -> None:
        self.begin = dying(sessions.begin)


@STACKS
def test_a_worker_whose_job_was_deleted_ends_quietly_and_leaves_nothing(
    sweeper: Sweeper, settings: Settings, sessions: Sessions, store: ObjectStore, make_job: MakeJob
) -> None:
    key = "9" * 64
    job_id = make_job(1)
    with sessions.begin() as session:
        session.execute(
            update(StageRun)
            .where(StageRun.stage == Stage.SEGMENT.value)
            .values(state=RunState.DISPATCHED.value, shard_id="s")
        )
    with sessions.begin() as session:
        (claim,) = runs.claim(session, "s", "worker", AGO_S)
    with sessions.begin() as session:
        assert sharing.begin(session, {claim.stage_run_id: key}, [claim]) == {claim.stage_run_id}
    change_job(sessions, job_id, deleted_at=1.0)
    sweep(sweeper)
    assert rows(sessions) == {}
    put(store, result_key(key))  # it did not know
    found = Reusable((), {}, AudioFacts(1.0, 48_000, 1))
    with sessions.begin() as session:
        stale = end_runs(session, [Succeeded(claim, key, found, Measures())], settings).stale
    assert stale == {claim.stage_run_id}
    assert rows(sessions) == {"garbage": 1}
    sweep(sweeper)
    assert rows(sessions) == {}
    assert keys(store) == set()


@STACKS
def test_a_job_goes_when_its_retention_is_over(
    sweeper: Sweeper, sessions: Sessions, make_job: MakeJob
) -> None:
    over, not_yet, for_ever, at_work = (make_job(1) for _ in range(4))
    ended = {"state": JobState.COMPLETED.value, "finished_at": DbNow() - AGO_S}
    change_job(sessions, over, **ended, retention_s=AGO_S / 2)
    change_job(sessions, not_yet, **ended, retention_s=AGO_S * 2)
    change_job(sessions, for_ever, **ended)
    change_job(sessions, at_work, finished_at=DbNow() - AGO_S, retention_s=AGO_S / 2)
    sweep(sweeper)
    with sessions() as session:
        assert set(session.scalars(select(Job.id))) == {not_yet, for_ever, at_work}


@STACKS
def test_a_job_stays_until_nobody_reads_its_sources(
    sweeper: Sweeper, sessions: Sessions, store: ObjectStore, make_job: MakeJob
) -> None:
    job_id = make_job(1)
    fill(sessions, store, job_id, ["a" * 64])
    change_job(sessions, job_id, deleted_at=1.0)
    with sessions.begin() as session:
        session.execute(
            update(Source).values(state=SourceState.RUNNING.value, lease_expires_at=DbNow() + AGO_S)
        )
    sweep(sweeper)
    assert rows(sessions)["source"] == 1
    assert "recording" not in rows(sessions)
    with sessions.begin() as session:
        session.execute(update(Source).values(lease_expires_at=DbNow() - 1.0))
    sweep(sweeper)
    assert rows(sessions) == {"webhook": 1}
    assert keys(store) == set()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("store_options", ["directory"], indirect=True)
def test_a_store_that_does_not_answer_stops_only_what_needs_it(
    sweeper: Sweeper,
    sessions: Sessions,
    store: ObjectStore,
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id = make_job(1)
    fill(sessions, store, job_id, ["a" * 64])
    change_job(sessions, job_id, deleted_at=1.0)
    with sessions.begin() as session:
        session.add(
            IdempotencyKey(owner="", key="old", fingerprint="f", resource="r", created_at=0.0)
        )

    def refuse(key: str) -> None:
        raise StoreUnavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(sweeper.store, "delete", refuse)
        sweep(sweeper)
    assert rows(sessions)["recording"] == 1
    assert "idempotency_key" not in rows(sessions)
    sweep(sweeper)
    assert rows(sessions) == {"webhook": 1}
