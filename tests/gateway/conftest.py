"""A running gateway on a real port, with the parts behind it in reach of the tests."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs
from structlog.types import EventDict

from common import keys, runs
from common.db import DbNow, make_engine, make_sessions, new_id
from common.domain import ArtifactKind, JobState, RunState, Scope, Stage
from common.ends import Failed, Measures, Succeeded, end_runs
from common.errors import AudioUnreadable
from common.runs import Claim, Reusable, StoredArtifact
from common.settings import Settings
from common.stage_io import AudioFacts
from common.storage import ObjectStore, open_store
from common.tables import Job, StageRun
from services.gateway.__main__ import listen
from services.gateway.app import create_app
from tests.databases import prepare
from tests.gateway.documented import is_documented
from tests.servers import RedisServer

STACKS = pytest.mark.parametrize(
    ("database_url", "store_options"),
    [("sqlite", "directory"), ("postgresql", "s3")],
    indirect=True,
    ids=["embedded", "cluster"],
)
EVENTS = {
    "version": 1,
    "duration_s": 3.5,
    "events": [
        {"label": "dog", "onset_s": 0.25, "offset_s": 1.0, "confidence": 0.875},
        {"label": "siren", "onset_s": 1.5, "offset_s": 3.4567, "confidence": 0.5},
    ],
    "tags": [{"label": "dog", "confidence": 0.9}],
}
FACTS = AudioFacts(duration_s=3.5, sample_rate=48_000, channels=2)


@dataclass
class Gateway:
    """A gateway that runs in this process, and what stands behind it."""

    url: str
    client: httpx.Client
    settings: Settings
    sessions: sessionmaker[Session]
    store: ObjectStore
    log: list[EventDict]  # what it has logged so far

    def new_key(self, scopes: Collection[Scope], **limits: Any) -> dict[str, str]:
        """Make an API key; return the headers that send it."""
        with self.sessions.begin() as session:
            secret = keys.make(session, "test", scopes, keys.Limits(**limits)).secret
        return {"Authorization": f"Bearer {secret}"}

    def new_job(self, **request: Any) -> str:
        """Create an open job; return its id."""
        answer = self.client.post("/v1/jobs", json=request)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def upload(self, job_id: str, data: bytes = b"RIFF", name: str = "dog.wav") -> str:
        """Add a recording; return its id."""
        answer = self.client.post(
            f"/v1/jobs/{job_id}/recordings", params={"name": name}, content=data
        )
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def get(self, path: str, **options: Any) -> Any:
        """Return the decoded JSON of a page that is there."""
        answer = self.client.get(path, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def states(self, recording_id: str) -> dict[str, str]:
        """Return the state of every stage run of a recording."""
        detail = self.get(f"/v1/recordings/{recording_id}")
        return {run["stage"]: run["state"] for run in detail["runs"]}

    def claim(self, recording_id: str, stage: Stage) -> Claim:
        """Dispatch and claim a ready run, as dispatcher and worker would."""
        shard_id = new_id()
        with self.sessions.begin() as session:
            session.execute(
                update(StageRun)
                .where(
                    StageRun.recording_id == recording_id,
                    StageRun.stage == stage.value,
                    StageRun.state == RunState.READY.value,
                )
                .values(state=RunState.DISPATCHED.value, shard_id=shard_id, dispatched_at=DbNow())
            )
        with self.sessions.begin() as session:
            (claim,) = runs.claim(session, shard_id, "host:1", 30.0)
        return claim

    def succeed(self, recording_id: str, stage: Stage) -> None:
        """Do the work of a stage."""
        files = {
            Stage.SEGMENT: [(ArtifactKind.MASK, "mask.npz", "application/zip", b"mask" * 100)],
            Stage.CLASSIFY: [
                (
                    ArtifactKind.EVENTS,
                    "events.json",
                    "application/json",
                    json.dumps(EVENTS).encode(),
                )
            ],
            Stage.ENHANCE: [
                (ArtifactKind.ENHANCED, "enhanced.flac", "audio/flac", bytes(range(256)) * 40)
            ],
            Stage.RESTORE: [],
        }[stage]
        claim = self.claim(recording_id, stage)
        artifacts = []
        for kind, name, media_type, data in files:
            key = f"artifacts/{recording_id}/{name}"
            stored = self.store.put_stream(key, io.BytesIO(data), media_type)
            artifacts.append(
                StoredArtifact(kind, key, media_type, stored.size_bytes, stored.sha256)
            )
        measures = Measures({"infer": 0.25}, 3.5, 4, "cpu", 1 << 20, model_digest="d" * 64)
        with self.sessions.begin() as session:
            found = Reusable(tuple(artifacts), {"top": "dog"}, FACTS)
            end_runs(session, [Succeeded(claim, new_id() * 2, found, measures)], self.settings)

    def fail(self, recording_id: str, stage: Stage) -> None:
        """Fail a stage for good."""
        claim = self.claim(recording_id, stage)
        with self.sessions.begin() as session:
            end_runs(session, [Failed(claim, AudioUnreadable("not audio"))], self.settings)

    def complete(self, job_id: str) -> None:
        """End a job, as the dispatcher does when all of its runs have ended."""
        with self.sessions.begin() as session:
            job = session.get_one(Job, job_id)
            job.state, job.finished_at = JobState.COMPLETED.value, DbNow()

    def job_rows(self) -> int:
        """Return the number of jobs in the database."""
        with self.sessions() as session:
            return len(session.scalars(select(Job.id)).all())

    def left_out(self) -> list[str]:
        """Return the keys of what searches have logged as damaged."""
        event = "stored result left out of a search"
        return [entry["key"] for entry in self.log if entry["event"] == event]

    def objects(self) -> list[str]:
        """Return the keys of everything in the store."""
        return [found.key for found in self.store.list()]


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is this problem document; return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["code"] == code
    assert document["status"] == status
    assert document["type"] == f"urn:soundmill:problem:{code}"
    assert document["title"]
    assert document["detail"]
    assert document["instance"] == answer.request.url.path
    assert document["request_id"] == answer.headers["x-request-id"]
    assert is_documented(answer.request, status, code), f"{code} is not documented there"
    return document


@pytest.fixture
def gateway_settings(
    tmp_path: Path, database_url: str, store_options: dict[str, Any], redis_server: RedisServer
) -> Settings:
    return Settings(
        home=tmp_path,
        database_url=database_url,
        redis_url=redis_server.url,
        port=0,
        embedded=True,
        max_upload_bytes=20 << 20,
        max_recordings_per_job=1000,
        s3_public_endpoint=store_options.get("s3_endpoint", ""),
        **store_options,
    )


@pytest.fixture
def gateway(gateway_settings: Settings) -> Iterator[Gateway]:
    """A running gateway of an embedded stack: its user needs no key."""
    with running(gateway_settings) as gateway:
        yield gateway


@pytest.fixture
def gateway_with_keys(gateway_settings: Settings) -> Iterator[Gateway]:
    """A running gateway that nobody uses without a key."""
    with running(gateway_settings.model_copy(update={"embedded": False})) as gateway:
        yield gateway


@contextmanager
def running(settings: Settings) -> Iterator[Gateway]:
    """Run a gateway on a database that is ready for it."""
    engine = make_engine(settings)
    prepare(engine)
    with listen(settings) as listener:
        config = uvicorn.Config(create_app(settings), log_config=None, timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with (
                capture_logs([merge_contextvars]) as log,
                httpx.Client(base_url=url, timeout=30) as client,
            ):
                yield Gateway(
                    url,
                    client,
                    settings,
                    make_sessions(engine),
                    open_store(settings),
                    log,
                )
        finally:
            server.should_exit = True
            thread.join()
            engine.dispose()
