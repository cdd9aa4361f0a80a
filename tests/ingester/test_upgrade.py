"""A database of the first release, with rows in it, upgraded to the newest schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from pydantic import SecretStr
from sqlalchemy import Engine, MetaData, insert, select

from common.db import make_engine, make_sessions
from common.domain import JobEventKind, JobState, RunState, Stage
from common.jobs import NewRecording, add_recordings, lock_job, record_event
from common.migrate import MIGRATIONS, migrate
from common.params import JobParams
from common.settings import Settings
from common.tables import Artifact, Attempt, Base, Job, Recording, StageRun

JOB_ID, RECORDING_ID, RUN_ID = "a" * 32, "b" * 32, "c" * 32
STAGES = [stage.value for stage in Stage]


def migrate_to(engine: Engine, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def old_rows() -> dict[str, list[dict[str, Any]]]:
    """Return rows as the first release wrote them."""
    recording = {
        "job_id": JOB_ID, "name": "a.wav", "object_key": "x", "sha256": "0" * 64,
        "created_at": 1.0, "duration_s": 2.0, "sample_rate": 16_000, "channels": 1,
    }  # fmt: skip
    run = {
        "job_id": JOB_ID, "stage": "segment", "state": "succeeded", "priority": "bulk",
        "audio_s": 2.0, "next_attempt_at": 0.0, "fence": 1, "failures": 0, "crashes": 0,
        "idempotency_key": "d" * 64, "result": {"x": 1},
    }  # fmt: skip
    return {
        "job": [
            {
                "id": JOB_ID, "name": "old", "state": "closed", "priority": "bulk",
                "stages": STAGES, "params": JobParams().model_dump(mode="json"),
                "created_at": 1.0, "recordings": 2, "counts": {}, "audio_s_total": 2.0,
                "audio_s_done": 0.5,
            }
        ],
        "recording": [
            {**recording, "id": RECORDING_ID, "position": 0, "size_bytes": 1_000},
            {**recording, "id": "e" * 32, "position": 1, "size_bytes": 5 * 1024**3},
        ],
        "stage_run": [
            {**run, "id": RUN_ID, "recording_id": RECORDING_ID, "position": 0},
            {**run, "id": "f" * 32, "recording_id": "e" * 32, "position": 1},
        ],
        "attempt": [
            {
                "id": "1" * 32, "stage_run_id": RUN_ID, "number": 1, "worker": "w",
                "shard_id": "s", "outcome": "succeeded", "claimed_at": 1.0,
            }
        ],
        "artifact": [
            {
                "id": "2" * 32, "stage_run_id": RUN_ID, "recording_id": RECORDING_ID,
                "kind": "mask", "object_key": "artifacts/dd/x/mask.npz", "media_type": "x/y",
                "size_bytes": 1, "sha256": "0" * 64, "created_at": 1.0,
            }
        ],
    }  # fmt: skip


def test_rows_of_the_first_release_are_kept(database_url: str, tmp_path: Path) -> None:
    engine = make_engine(Settings(home=tmp_path, database_url=SecretStr(database_url)))
    migrate_to(engine, "0001")
    old = MetaData()
    old.reflect(engine)
    with engine.begin() as connection:
        for table, rows in old_rows().items():
            connection.execute(insert(old.tables[table]), rows)
    migrate(engine)
    migrate(engine)  # twice changes nothing

    with make_sessions(engine).begin() as session:
        job = session.get_one(Job, JOB_ID)
        assert (job.owner, job.paused_at, job.deleted_at, job.estimate) == (None,) * 4
        assert (job.dry_run, job.rejected, job.errors) == (False, 0, [])
        assert job.size_bytes == 1_000 + 5 * 1024**3
        assert (job.name, job.state, job.stages) == ("old", "closed", STAGES)
        recordings = session.scalars(select(Recording).order_by(Recording.position)).all()
        assert [r.size_bytes for r in recordings] == [1_000, 5 * 1024**3]
        assert {r.custom_id for r in recordings} == {r.source_id for r in recordings} == {None}
        runs = session.scalars(select(StageRun)).all()
        assert {run.state for run in runs} == {RunState.SUCCEEDED.value}
        assert [run.result for run in runs] == [{"x": 1}] * 2
        assert session.scalars(select(Attempt.worker)).all() == ["w"]
        assert session.scalars(select(Artifact.kind)).all() == ["mask"]

    with make_sessions(engine).begin() as session:  # and the old job can be worked with
        job = lock_job(session, JOB_ID)
        job.state = JobState.OPEN.value
        new = NewRecording("9" * 32, "new.wav", "y", 10, "1" * 64, custom_id="mine")
        add_recordings(session, job, [new], 100)
        record_event(session, job, JobEventKind.CLOSED)
        assert (job.recordings, job.size_bytes) == (3, 1_010 + 5 * 1024**3)
    engine.dispose()


def test_the_migrations_make_the_tables_of_the_code(database_url: str, tmp_path: Path) -> None:
    engine = make_engine(Settings(home=tmp_path, database_url=SecretStr(database_url)))
    migrate(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()
