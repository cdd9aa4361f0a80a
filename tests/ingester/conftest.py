"""An ingester in this process over an empty database and store, and short ways to feed it."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session, sessionmaker

from common.db import make_engine, new_id
from common.domain import JobState, SourceKind, SourceState, Stage
from common.params import JobParams
from common.settings import Settings
from common.sources import source_key
from common.storage import ObjectStore
from common.tables import Job, JobEvent, Recording, Rejection, Source, StageRun
from services.ingester.loop import Ingester
from tests.databases import prepare

STACKS = pytest.mark.parametrize(
    ("database_url", "store_options"),
    [("sqlite", "directory"), ("postgresql", "s3")],
    indirect=True,
    ids=["embedded", "cluster"],
)
EMBEDDED = pytest.mark.parametrize(
    ("database_url", "store_options"), [("sqlite", "directory")], indirect=True, ids=["embedded"]
)


def wav(frames: int = 160, rate_hz: int = 16_000, seed: int = 0) -> bytes:
    """Return a WAV file of mono samples that differ by ``seed``."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(seed.to_bytes(4, "little") * (frames // 2))
    return buffer.getvalue()


@dataclass
class Bench:
    """An ingester, its database and its store."""

    settings: Settings
    ingester: Ingester

    @property
    def sessions(self) -> sessionmaker[Session]:
        return self.ingester.sessions

    @property
    def store(self) -> ObjectStore:
        return self.ingester.store

    def job(self, **columns: Any) -> str:
        """Insert an open job; return its id."""
        params = JobParams().model_dump(mode="json")
        row = {"name": "test", "stages": [Stage.SEGMENT.value], "params": params, **columns}
        with self.sessions.begin() as session:
            job = Job(**row)
            session.add(job)
            session.flush()
            return job.id

    def source(self, job_id: str, kind: SourceKind, **spec: Any) -> str:
        """Insert a source; return its id."""
        with self.sessions.begin() as session:
            source = Source(job_id=job_id, kind=kind.value, name="source", spec=spec)
            session.add(source)
            session.flush()
            return source.id

    def stored(self, job_id: str, kind: SourceKind, data: bytes, **spec: Any) -> str:
        """Insert a source with a stored object; return its id."""
        key = source_key(job_id, new_id())
        self.store.put_stream(key, io.BytesIO(data), "application/octet-stream")
        return self.source(job_id, kind, object_key=key, **spec)

    def zip(self, data: bytes, **spec: Any) -> str:
        """Insert an open job with a ZIP; return the id of the source."""
        return self.stored(self.job(), SourceKind.ARCHIVE, data, format="zip", **spec)

    def read(self) -> None:
        """Let the ingester read until no source waits, whatever their backoff."""
        for _ in range(100):
            self.ingester.turn()
            for thread in list(self.ingester._readings):
                thread.join()
            with self.sessions.begin() as session:
                waits = Source.state == SourceState.PENDING.value
                session.execute(update(Source).where(waits).values(next_attempt_at=0.0))
                if not session.scalar(select(func.count()).select_from(Source).where(waits)):
                    return
        pytest.fail("sources stay pending")

    def row(self, source_id: str) -> Source:
        """Return a source."""
        with self.sessions() as session:
            return session.get_one(Source, source_id)

    def job_of(self, source_id: str) -> Job:
        """Return the job of a source."""
        with self.sessions() as session:
            return session.get_one(Job, session.get_one(Source, source_id).job_id)

    def recordings(self, source_id: str) -> list[Recording]:
        """Return the recordings of a source in their order, each with its stage runs checked."""
        with self.sessions() as session:
            rows = session.scalars(
                select(Recording).where(Recording.source_id == source_id).order_by(Recording.entry)
            ).all()
            runs = select(func.count()).where(StageRun.recording_id.in_([r.id for r in rows]))
            assert session.scalar(runs) == len(rows)  # the jobs here have one stage
            return list(rows)

    def rejections(self, source_id: str) -> dict[str, str]:
        """Return the codes of the rejected entries by name."""
        return {row.name: row.error_code for row in self.rejection_rows(source_id)}

    def rejection_rows(self, source_id: str) -> list[Rejection]:
        """Return the rejections of a source in order."""
        with self.sessions() as session:
            return list(
                session.scalars(
                    select(Rejection)
                    .where(Rejection.source_id == source_id)
                    .order_by(Rejection.entry)
                )
            )

    def events(self, job_id: str) -> list[JobEvent]:
        """Return what happened to a job."""
        with self.sessions() as session:
            return list(session.scalars(select(JobEvent).where(JobEvent.job_id == job_id)))

    def objects(self) -> dict[str, bytes]:
        """Return everything in the store."""
        found = {}
        for item in self.store.list():
            with self.store.open(item.key) as blocks:
                found[item.key] = b"".join(blocks)
        return found

    def nothing_left_behind(self) -> None:
        """Check that the store holds the recordings and nothing else."""
        with self.sessions() as session:
            keys = set(session.scalars(select(Recording.object_key)))
        assert {item.key for item in self.store.list()} == keys
        assert not self.settings.scratch_dir.exists() or not any(
            self.settings.scratch_dir.iterdir()
        )


@pytest.fixture
def settings(tmp_path: Path, database_url: str, store_options: dict[str, Any]) -> Settings:
    return Settings(
        home=tmp_path,
        database_url=database_url,
        max_upload_bytes=4 << 20,
        max_recordings_per_job=2_000,
        url_timeout_s=5.0,
        retry_backoff_s=0.0,
        import_roots=str(tmp_path / "imports"),
        egress_allow="127.0.0.0/8",
        **store_options,
    )


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = make_engine(settings)
    prepare(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def bench(settings: Settings, engine: Engine) -> Iterator[Bench]:
    ingester = Ingester(settings)
    ingester.store.prepare()
    yield Bench(settings, ingester)
    ingester.close()


def end_job(bench: Bench, job_id: str) -> None:
    """Cancel a job as its owner would."""
    with bench.sessions.begin() as session:
        session.get_one(Job, job_id).state = JobState.CANCELLED.value
