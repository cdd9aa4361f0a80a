"""An empty, migrated database, and short ways to fill and read it."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session, sessionmaker

from common import keeper, stage_io
from common.db import make_engine, make_sessions
from common.domain import (
    STAGE_NEEDS,
    TERMINAL_STATES,
    JobState,
    Priority,
    RunState,
    Stage,
    with_needs,
)
from common.settings import Settings
from common.storage import open_store
from common.tables import Job, Recording, StageRun
from services.dispatcher.census import Census
from tests.databases import prepare
from tests.pipeline.fleet import Fleet, fleet
from tests.pipeline.told import Told, tell
from tests.servers import RedisServer

MakeJob = Callable[..., str]
NamedJob = Callable[..., str]


class Clock:
    """Time that passes only where a test says so, for what measures the time worked."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def passes(self, seconds: float) -> None:
        self.now_s += seconds

    def read(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    fake = SimpleNamespace(monotonic=clock.read, perf_counter=clock.read, sleep=time.sleep)
    monkeypatch.setattr(keeper, "time", fake)
    monkeypatch.setattr(stage_io, "time", fake)
    return clock


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, database_url=SecretStr(database_url))


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = make_engine(settings)
    prepare(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    return make_sessions(engine)


@pytest.fixture
def make_job(sessions: sessionmaker[Session]) -> MakeJob:
    """Insert a closed job with recordings whose first stage is ready; return its id."""

    def make(
        recordings: int = 1,
        *,
        stages: set[Stage] | None = None,
        audio_s: float = 10.0,
        priority: Priority = Priority.BULK,
    ) -> str:
        order = with_needs(stages or set(Stage))
        with sessions.begin() as session:
            job = Job(
                name="test",
                state=JobState.CLOSED.value,
                priority=priority.value,
                stages=[stage.value for stage in order],
                recordings=recordings,
            )
            session.add(job)
            session.flush()
            for position in range(recordings):
                recording = Recording(
                    job_id=job.id,
                    position=position,
                    name=f"{position}.wav",
                    object_key=f"recordings/{position}",
                    size_bytes=1,
                    sha256=f"{position:064x}",
                )
                session.add(recording)
                session.flush()
                session.add_all(
                    StageRun(
                        job_id=job.id,
                        recording_id=recording.id,
                        stage=stage.value,
                        state=(RunState.BLOCKED if STAGE_NEEDS[stage] else RunState.READY).value,
                        priority=priority.value,
                        position=position,
                        audio_s=audio_s,
                    )
                    for stage in order
                )
            return job.id

    return make


@pytest.fixture
def named_job(settings: Settings, sessions: sessionmaker[Session], make_job: MakeJob) -> NamedJob:
    """Make a job of recordings by these names, their bytes stored; return its id."""

    def make(names: Sequence[str], bodies: Iterable[bytes] = repeat(b"x")) -> str:
        job_id = make_job(len(names))
        store = open_store(settings)
        with sessions.begin() as session:
            recordings = session.scalars(
                select(Recording).where(Recording.job_id == job_id).order_by(Recording.position)
            )
            for recording, name, body in zip(recordings, names, bodies, strict=False):
                recording.name = name
                recording.object_key = f"recordings/{recording.id}"
                recording.sha256 = recording.id * 2  # no two alike
                store.put_stream(recording.object_key, io.BytesIO(body), "audio/wav")
        return job_id

    return make


@pytest.fixture
def processes(
    settings: Settings, sessions: sessionmaker[Session], tmp_path: Path
) -> Iterator[Fleet]:
    """Starts dispatchers and workers; ends those that still run."""
    with fleet(settings, tmp_path) as here:
        yield here


@pytest.fixture
def census(settings: Settings, redis_server: RedisServer) -> Iterator[Census]:
    census = Census(settings.model_copy(update={"redis_url": SecretStr(redis_server.url)}))
    yield census
    census.close()


@pytest.fixture
def look(census: Census) -> Callable[[], Told]:
    """Count and scrape."""

    def look() -> Told:
        census.count()
        return tell(census)

    return look


def has_ended(sessions: sessionmaker[Session], job_id: str) -> bool:
    """Return whether every run of a job is in a terminal state."""
    return all(
        state in TERMINAL_STATES for found in states(sessions, job_id).values() for state in found
    )


def states(sessions: sessionmaker[Session], job_id: str) -> dict[Stage, list[RunState]]:
    """Return the states of a job's runs per stage, in the order of the recordings."""
    with sessions() as session:
        rows = session.execute(
            select(StageRun.stage, StageRun.state)
            .where(StageRun.job_id == job_id)
            .order_by(StageRun.position)
        ).all()
    found: dict[Stage, list[RunState]] = {}
    for stage, state in rows:
        found.setdefault(Stage(stage), []).append(RunState(state))
    return found


def set_runs(sessions: sessionmaker[Session], job_id: str, stage: Stage, **values: object) -> None:
    with sessions.begin() as session:
        session.execute(
            update(StageRun)
            .where(StageRun.job_id == job_id, StageRun.stage == stage.value)
            .values(**values)
        )


def set_job(sessions: sessionmaker[Session], job_id: str, **values: object) -> None:
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(**values))
