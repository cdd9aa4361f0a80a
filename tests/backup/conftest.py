"""Deployments to back up and to restore into: databases and stores of both kinds."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from common import keys
from common.backup.database import tables_of
from common.db import make_engine, make_sessions, new_id
from common.domain import STAGE_NEEDS, Scope, Stage
from common.settings import Settings
from common.storage import ObjectStore, open_store
from common.tables import (
    Artifact,
    Attempt,
    Garbage,
    IdempotencyKey,
    Job,
    JobEvent,
    Recording,
    Rejection,
    Source,
    StageRun,
    Upload,
    Webhook,
    WebhookDelivery,
)
from tests.databases import prepare
from tests.servers import PostgresServer, S3Server

EMBEDDED, CLUSTER = "embedded", "cluster"
NAME = "Früh am Morgen/„dawn“ 🐦.wav"
MakePlace = Callable[[str], "Place"]


@dataclass(frozen=True)
class Place:
    """A database and a store: SQLite and a directory, or PostgreSQL and S3."""

    settings: Settings

    @property
    def store(self) -> ObjectStore:
        return open_store(self.settings)

    def sessions(self) -> sessionmaker[Session]:
        return make_sessions(make_engine(self.settings))

    def environment(self) -> dict[str, str]:
        """Return the settings as a process is given them."""
        names = ["home", "store_url", "s3_endpoint", "s3_region", "s3_secure"]
        secrets = ["database_url", "s3_access_key", "s3_secret_key"]
        values = {name: str(getattr(self.settings, name)) for name in names}
        values |= {name: getattr(self.settings, name).get_secret_value() for name in secrets}
        return {f"SOUNDMILL_{name.upper()}": value for name, value in values.items()}

    def objects(self) -> dict[str, bytes]:
        """Return everything in the store."""
        found = {}
        for one in self.store.list():
            with self.store.open(one.key) as blocks:
                found[one.key] = b"".join(blocks)
        return found

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Return everything in the database, by table, in the order of the keys."""
        engine = make_engine(self.settings)
        try:
            with engine.connect() as connection:
                return {
                    table.name: [
                        dict(row._mapping)
                        for row in connection.execute(
                            table.select().order_by(*table.primary_key.columns)
                        )
                    ]
                    for table in tables_of(connection)
                }
        finally:
            engine.dispose()


@pytest.fixture
def make_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakePlace]:
    """Return what makes an empty place of a kind."""
    databases: list[str] = []

    def make(kind: str) -> Place:
        home = tmp_path / f"home-{new_id()}"
        if kind == EMBEDDED:
            return Place(Settings(home=home))
        postgres: PostgresServer = request.getfixturevalue("postgres_server")
        s3: S3Server = request.getfixturevalue("s3_server")
        databases.append(postgres.create_database())
        return Place(
            Settings(
                home=home,
                database_url=SecretStr(postgres.url(databases[-1])),
                store_url=f"s3://{s3.create_bucket()}",
                s3_endpoint=s3.endpoint,
                s3_access_key=SecretStr(s3.ACCESS_KEY),
                s3_secret_key=SecretStr(s3.SECRET_KEY),
                s3_region=s3.REGION,
                s3_secure=False,
            )
        )

    yield make
    for name in databases:
        request.getfixturevalue("postgres_server").drop_database(name)


@pytest.fixture(params=[EMBEDDED, CLUSTER])
def place(request: pytest.FixtureRequest, make_place: MakePlace) -> Place:
    """A place with something in every table, work in progress included."""
    place = make_place(request.param)
    fill(place)
    return place


@dataclass
class Filled:
    """Ids of what ``fill`` made."""

    secret: str = ""  # of the API key
    job_id: str = ""  # three recordings: done, in progress, waiting
    deleted_id: str = ""  # a job that is deleted, objects and all still there
    source_id: str = ""  # an archive that is being read


def fill(place: Place) -> Filled:
    """Put something into every table, and the objects that belong to it into the store."""
    store = place.store
    store.prepare()
    engine = make_engine(place.settings)
    try:
        prepare(engine)
        with make_sessions(engine).begin() as session:
            return _fill(session, store)
    finally:
        engine.dispose()


def put(store: ObjectStore, key: str, data: bytes) -> dict[str, Any]:
    """Store an object; return the columns that name it."""
    stored = store.put_stream(key, io.BytesIO(data), "application/octet-stream")
    return {"object_key": key, "size_bytes": stored.size_bytes, "sha256": stored.sha256}


def _fill(session: Session, store: ObjectStore) -> Filled:
    filled = Filled()
    made = keys.make(session, "alice", [Scope.SUBMIT, Scope.READ])
    filled.secret = made.secret
    owner = made.key.id
    stages = [stage.value for stage in Stage]
    job = Job(name="tapes", owner=owner, stages=stages, recordings=3, params={"a": [1, 2.5, None]})
    gone = Job(name="gone", owner=owner, stages=stages, recordings=1, deleted_at=1.0)
    session.add_all([job, gone])
    session.flush()
    filled.job_id, filled.deleted_id = job.id, gone.id
    source = Source(
        job_id=job.id,
        kind="archive",
        name="tapes.zip",
        spec={"object_key": f"sources/{job.id}/zip", "format": "zip"},
        state="running",
        entries=2,
        fence=3,
        lease_expires_at=9e9,
        worker="host:1",
    )
    session.add(source)
    session.flush()
    filled.source_id = source.id
    put(store, f"sources/{job.id}/zip", b"PK" * 500)
    states = [["succeeded"] * 4, ["succeeded", "running", "dispatched", "blocked"], ["ready"] * 4]
    for position, of in enumerate(states):
        recording = Recording(
            job_id=job.id,
            position=position,
            name=NAME,
            labels={"site": "é"},
            custom_id=f"c-{position}",
            **put(store, f"recordings/{job.id}/{position}", bytes([position]) * 5000),
        )
        session.add(recording)
        session.flush()
        for stage, state in zip(STAGE_NEEDS, of, strict=True):
            _add_run(session, store, recording, stage, state)
    lost = Recording(
        job_id=gone.id,
        position=0,
        name="gone.wav",
        **put(store, f"recordings/{gone.id}/0", b"gone" * 10),
    )
    event = JobEvent(job_id=job.id, kind="job.created", data={"n": 1})
    hook = Webhook(owner=owner, url="https://hooks.example.org/", secret="whsec_x", kinds=[])
    session.add_all([lost, event, hook])
    session.flush()
    for state in ("open", "complete"):
        facts = put(store, f"uploads/{state}", b"wave" * 100) if state == "complete" else {}
        session.add(
            Upload(
                owner=owner,
                name="big.wav",
                store_id="x",
                part_bytes=1 << 23,
                state=state,
                expires_at=9e9,
                **{"object_key": "uploads/open", "size_bytes": 1 << 24, **facts},
            )
        )
    session.add_all(
        [
            WebhookDelivery(webhook_id=hook.id, event_id=event.id),
            Rejection(
                job_id=job.id,
                source_id=source.id,
                entry=1,
                name="readme.txt",
                error_code="not_audio",
                error_detail="no sound",
                again={"url": "https://example.org/a.wav"},
            ),
            IdempotencyKey(owner=owner, key="k", fingerprint="f" * 64, resource=job.id),
            Garbage(key="9" * 64),
        ]
    )
    return filled


def _add_run(
    session: Session, store: ObjectStore, recording: Recording, stage: Stage, state: str
) -> None:
    claimed = state in ("running", "succeeded")
    run = StageRun(
        job_id=recording.job_id,
        recording_id=recording.id,
        stage=stage.value,
        state=state,
        priority="bulk",
        position=recording.position,
        audio_s=1.5,
        fence=int(claimed),
        shard_id=new_id() if state in ("running", "dispatched", "succeeded") else None,
        ready_at=5.0,
        lease_expires_at=9e9 if state == "running" else None,
        result={"top": "dog", "deep": [{"a": None}]} if state == "succeeded" else None,
    )
    session.add(run)
    session.flush()
    if claimed:
        outcome = "running" if state == "running" else "succeeded"
        session.add(
            Attempt(
                stage_run_id=run.id,
                number=1,
                worker="host:1",
                shard_id=run.shard_id,
                outcome=outcome,
                claimed_at=6.0,
                infer_s=0.1 + 0.2,
                peak_memory_bytes=1 << 40,
            )
        )
    if state == "succeeded":
        key = f"artifacts/ab/{stage.value}-{recording.position}/mask.npz"
        session.add(
            Artifact(
                stage_run_id=run.id,
                recording_id=recording.id,
                kind="mask",
                media_type="application/zip",
                **put(store, key, f"{stage}{recording.position}".encode() * 300),
            )
        )


@pytest.fixture
def engine_of() -> Iterator[Callable[[Place], Engine]]:
    """Return what opens the database of a place; it is closed afterwards."""
    opened: list[Engine] = []

    def make(place: Place) -> Engine:
        opened.append(make_engine(place.settings))
        return opened[-1]

    yield make
    for engine in opened:
        engine.dispose()
