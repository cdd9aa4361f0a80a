"""Jobs whose recordings have been through the pipeline, written straight into the database."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import insert, select
from sqlalchemy.orm import Session, sessionmaker

from common.db import new_id
from common.domain import ArtifactKind, Event, Priority, RunState, Stage
from common.results import Events, Tag, summary
from common.storage import ObjectStore, StoredObject
from common.tables import Artifact, Job, Recording, StageRun

DURATION_S = 10.0
DONE = (Stage.SEGMENT, Stage.CLASSIFY)
NO_EVENTS = (b"cake", b"[" * 100_000, b'{"version": 1, "duration_s": 1e400}', b" " * 2_000)
"""What is no document of events; the last is long."""


@dataclass(frozen=True)
class Filled:
    """A job and its recordings, in order."""

    job_id: str
    recording_ids: list[str]


def heard(*labels: str) -> Events:
    """Return one event of half a second for each label, a second apart."""
    events = tuple(Event(label, n + 0.25, n + 0.75, 0.5) for n, label in enumerate(labels))
    return Events(DURATION_S, events, (Tag(labels[0] if labels else "rain", 0.9),))


def fill(
    sessions: sessionmaker[Session],
    found: Sequence[Events],
    names: Sequence[str] | None = None,
    mask: StoredObject | None = None,
) -> Filled:
    """Write a job of recordings that have been segmented, all with one mask, and classified."""
    names = names or [f"tapes/number {n}.wav" for n in range(len(found))]
    ids = [new_id() for _ in found]
    with sessions.begin() as session:
        job = Job(name="tapes", stages=["segment", "classify"], recordings=len(found))
        session.add(job)
        session.flush()
        for first in range(0, len(found), 5_000):
            part = range(first, min(first + 5_000, len(found)))
            session.execute(
                insert(Recording),
                [
                    {
                        "id": ids[n],
                        "job_id": job.id,
                        "position": n,
                        "name": names[n],
                        "object_key": f"recordings/{job.id}/{ids[n]}",
                        "size_bytes": 1000 + n,
                        "sha256": f"{n:064x}",
                        "duration_s": DURATION_S,
                        "sample_rate": 48_000,
                        "channels": 1,
                    }
                    for n in part
                ],
            )
            runs = {(n, stage): new_id() for n in part for stage in DONE}
            session.execute(
                insert(StageRun),
                [
                    {
                        "id": runs[n, stage],
                        "job_id": job.id,
                        "recording_id": ids[n],
                        "stage": stage.value,
                        "state": RunState.SUCCEEDED.value,
                        "priority": Priority.BULK.value,
                        "position": n,
                        "audio_s": DURATION_S,
                        "idempotency_key": f"{n:063x}{stage.value[0]}",
                        "result": summary(found[n]) if stage is Stage.CLASSIFY else {},
                    }
                    for n, stage in runs
                ],
            )
            if mask is not None:
                session.execute(
                    insert(Artifact),
                    [
                        {
                            "stage_run_id": runs[n, Stage.SEGMENT],
                            "recording_id": ids[n],
                            "kind": ArtifactKind.MASK.value,
                            "object_key": mask.key,
                            "media_type": "application/zip",
                            "size_bytes": mask.size_bytes,
                            "sha256": mask.sha256,
                        }
                        for n in part
                    ],
                )
    return Filled(job.id, ids)


def give_events(
    sessions: sessionmaker[Session], store: ObjectStore, recording_id: str, document: bytes
) -> str:
    """Store a document as the events of a recording, none in the database; return its key."""
    with sessions.begin() as session:
        _classified(session, recording_id).result = {"events": 99}
    name, media_type = "events.json", "application/json"
    return _give(sessions, store, recording_id, ArtifactKind.EVENTS, name, media_type, document)


def give_vectors(
    sessions: sessionmaker[Session], store: ObjectStore, recording_id: str, path: Path
) -> str:
    """Store a file as the vectors of a recording; return its key."""
    name, media_type, content = "vectors.npz", "application/zip", path.read_bytes()
    return _give(sessions, store, recording_id, ArtifactKind.VECTORS, name, media_type, content)


def _give(
    sessions: sessionmaker[Session],
    store: ObjectStore,
    recording_id: str,
    kind: ArtifactKind,
    name: str,
    media_type: str,
    content: bytes,
) -> str:
    """Store what the classifier would have made of a recording; return its key."""
    key = f"artifacts/{recording_id}/{name}"
    stored = store.put_stream(key, io.BytesIO(content), media_type)
    with sessions.begin() as session:
        session.add(
            Artifact(
                stage_run_id=_classified(session, recording_id).id,
                recording_id=recording_id,
                kind=kind.value,
                object_key=key,
                media_type=media_type,
                size_bytes=stored.size_bytes,
                sha256=stored.sha256,
            )
        )
    return key


def _classified(session: Session, recording_id: str) -> StageRun:
    """Return the classifier's run of a recording."""
    return session.scalars(
        select(StageRun).where(
            StageRun.recording_id == recording_id, StageRun.stage == Stage.CLASSIFY.value
        )
    ).one()
