"""What is backed up is what comes back, whatever it comes back into."""

from __future__ import annotations

import copy
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from common import keys
from common.backup import database, make
from common.backup.make import Step, make_backup
from common.backup.manifest import MANIFEST, open_backup
from common.backup.restore import check_backup, restore_backup
from common.db import make_engine, make_sessions
from common.errors import BackupInvalid, Conflict, KeyRefused, NotEmpty, StoreUnavailable
from common.migrate import migrate
from common.storage.directory import DirectoryStore
from common.tables import Base, Job, JobEvent, Recording, Source
from tests.backup.conftest import CLUSTER, EMBEDDED, NAME, MakePlace, Place, fill, put

Rows = dict[str, list[dict[str, Any]]]
EVERY_TABLE = set(Base.metadata.tables)


def expected_after(rows: Rows) -> Rows:
    """Return what a restore makes of rows; None where it writes the time of the restore."""
    rows = copy.deepcopy(rows)
    for run in rows["stage_run"]:
        if run["state"] == "running":
            run["ready_at"] = None
        if run["state"] in ("running", "dispatched"):
            run |= {"state": "ready", "shard_id": None, "lease_expires_at": None}
    for attempt in rows["attempt"]:
        if attempt["outcome"] == "running":
            detail = "it ran when the backup was made"
            lost = {"error_code": "worker_lost", "error_detail": detail}
            attempt |= {"outcome": "lost", "finished_at": None, **lost}
    for source in rows["source"]:
        if source["state"] == "running":
            source |= {"state": "pending", "lease_expires_at": None}
    for upload in rows["upload"]:
        if upload["state"] == "open":
            upload |= {"state": "aborted", "expires_at": None}
    return rows


def without_times_of_restore(rows: Rows, like: Rows) -> Rows:
    """Return rows with None where ``like`` has it because the time of the restore is there."""
    rows = copy.deepcopy(rows)
    columns = {"stage_run": "ready_at", "attempt": "finished_at", "upload": "expires_at"}
    for table, column in columns.items():
        for row, other in zip(rows[table], like[table], strict=True):
            if other[column] is None and row[column] is not None:
                assert row[column] > 1.7e9
                row[column] = None
    return rows


@pytest.mark.parametrize("into", [EMBEDDED, CLUSTER])
def test_there_and_back(place: Place, make_place: MakePlace, into: str, tmp_path: Path) -> None:
    """Every row and every object, in both directions between the kinds."""
    before, objects = place.rows(), place.objects()
    assert {name for name, rows in before.items() if rows} == EVERY_TABLE
    made = make_backup(place.settings, tmp_path / "backup")
    assert place.rows() == before
    target = make_place(into)
    restored = restore_backup(target.settings, tmp_path / "backup")
    after = target.rows()
    expected = expected_after(before)
    assert without_times_of_restore(after, expected) == expected
    assert (restored.revived.runs, restored.revived.sources, restored.revived.uploads) == (2, 1, 1)
    kept = {key: data for key, data in objects.items() if "gone" not in data.decode("latin-1")}
    assert target.objects() == kept
    assert made.backup.manifest.objects.count == len(kept)
    assert made.backup.manifest.flaws == []
    assert check_backup(tmp_path / "backup").manifest == made.backup.manifest


def test_counters_go_on_where_they_were(make_place: MakePlace, tmp_path: Path) -> None:
    place, target = make_place(EMBEDDED), make_place(CLUSTER)
    filled = fill(place)
    make_backup(place.settings, tmp_path / "backup")
    restore_backup(target.settings, tmp_path / "backup")
    engine = make_engine(target.settings)
    with make_sessions(engine).begin() as session:
        last = session.scalar(select(JobEvent.id).order_by(JobEvent.id.desc()))
        event = JobEvent(job_id=filled.job_id, kind="job.closed", data={})
        session.add(event)
        session.flush()
        assert event.id == last + 1
        assert keys.verify(session, filled.secret).name == "alice"
        with pytest.raises(KeyRefused):
            keys.verify(session, "sm_" + "0" * 40)
        assert session.scalars(select(Recording.name).limit(1)).one() == NAME
    engine.dispose()


def test_only_what_is_new_is_copied_again(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    first = make_backup(place.settings, folder)
    assert (first.copied, first.kept) == (first.backup.manifest.objects.count, 0)
    again = make_backup(place.settings, folder)
    assert (again.copied, again.kept) == (0, first.copied)
    engine = make_engine(place.settings)
    with make_sessions(engine).begin() as session:
        job = session.scalars(select(Job).where(Job.name == "tapes")).one()
        for position in (3, 4):
            facts = put(place.store, f"recordings/{job.id}/{position}", b"new" * position)
            session.add(Recording(job_id=job.id, position=position, name="new", **facts))
    third = make_backup(place.settings, folder)
    assert (third.copied, third.kept) == (2, first.copied)
    with make_sessions(engine).begin() as session:
        session.execute(update(Job).values(deleted_at=1.0))
    engine.dispose()
    last = make_backup(place.settings, folder)
    left = [one.key for one in DirectoryStore(folder / "objects").list()]
    assert left == ["uploads/complete"]
    assert last.backup.manifest.objects.count == 1
    assert [entry.name for entry in folder.glob("copy-*")] == [last.backup.manifest.copy_name]
    check_backup(folder)


def test_nobody_else_may_read_it(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "backup"
    made = make_backup(place.settings, folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = [entry for entry in folder.rglob("*") if entry.is_file()]
    secret = [file for file in files if "objects" not in file.relative_to(folder).parts]
    assert {folder / MANIFEST, made.backup.copy / "webhook.jsonl.gz"} < set(secret)
    assert {stat.S_IMODE(file.stat().st_mode) for file in secret} == {0o600}


def test_a_job_that_is_deleted_meanwhile(
    place: Place, make_place: MakePlace, tmp_path: Path
) -> None:
    """It is deleted again after the restore; nothing is missing."""

    def delete(step: Step) -> None:
        if step.what == "rows" and not done:
            done.append(step)
            with make_sessions(engine).begin() as session:
                session.execute(update(Job).values(deleted_at=2.0))
            for one in list(place.store.list()):
                if one.key != "uploads/complete":
                    place.store.delete(one.key)

    done: list[Step] = []
    engine = make_engine(place.settings)
    job_id = job_named(engine, "tapes").id
    made = make_backup(place.settings, tmp_path / "backup", delete)
    engine.dispose()
    assert made.backup.manifest.deleted_jobs == [job_id]
    assert (made.backup.manifest.flaws, made.rounds) == ([], 1)
    target = make_place(EMBEDDED)
    assert restore_backup(target.settings, tmp_path / "backup").revived.deleted_jobs == 1
    assert all(job["deleted_at"] is not None for job in target.rows()["job"])


def job_named(engine: Any, name: str) -> Job:
    with Session(engine) as session:
        return session.scalars(select(Job).where(Job.name == name)).one()


def test_a_source_that_is_read_to_its_end_meanwhile(place: Place, tmp_path: Path) -> None:
    """The rows are copied again: the new ones do not need the archive that is gone."""

    def end(step: Step) -> None:
        if step.what == "rows" and not done:
            done.append(step)
            with make_sessions(engine).begin() as session:
                source = session.scalars(select(Source)).one()
                source.state, source.lease_expires_at = "done", None
                place.store.delete(source.spec["object_key"])

    done: list[Step] = []
    engine = make_engine(place.settings)
    made = make_backup(place.settings, tmp_path / "backup", end)
    engine.dispose()
    assert made.rounds == 2
    assert made.backup.manifest.flaws == []
    assert not list(made.backup.objects.rglob("zip"))


def test_what_the_store_has_lost(place: Place, make_place: MakePlace, tmp_path: Path) -> None:
    """A flaw is told and the rest is backed up; a restore does not stumble over it."""
    lost, changed = [one.key for one in place.store.list("artifacts/")][:2]
    place.store.delete(lost)
    put(place.store, changed, b"other bytes")
    made = make_backup(place.settings, tmp_path / "backup")
    flaws = {flaw.key: flaw.why for flaw in made.backup.manifest.flaws}
    assert flaws == {lost: "missing", changed: "differs"}
    target = make_place(EMBEDDED)
    restore_backup(target.settings, tmp_path / "backup")
    assert target.objects()[changed] == b"other bytes"
    assert lost not in target.objects()


def test_an_older_schema_is_brought_forward(make_place: MakePlace, tmp_path: Path) -> None:
    """Also into a database whose empty tables are newer; and it is backed up before migrating."""
    for kind, into in ((EMBEDDED, CLUSTER), (CLUSTER, EMBEDDED)):
        old, target = make_place(kind), make_place(into)
        old.store.prepare()
        engine = make_engine(old.settings)
        with engine.begin() as connection:
            database.upgrade(connection, "0002")
            connection.execute(
                text(
                    "INSERT INTO job (id, name, state, priority, stages, params, created_at,"
                    " dry_run, recordings, size_bytes, rejected, counts, errors, audio_s_total,"
                    " audio_s_done) VALUES ('j', 'old', 'open', 'bulk', '[]', '{}', 1, :no, 1, 4,"
                    " 0, '{}', '[]', 0, 0)"
                ),
                {"no": False},
            )
            facts = put(old.store, "recordings/j/0", b"old!")
            connection.execute(
                text(
                    "INSERT INTO recording (id, job_id, position, name, object_key, size_bytes,"
                    " sha256, created_at) VALUES ('r', 'j', 0, 'a', :object_key, :size_bytes,"
                    " :sha256, 2)"
                ),
                facts,
            )
        engine.dispose()
        folder = tmp_path / kind
        assert make_backup(old.settings, folder).backup.manifest.revision == "0002"
        engine = make_engine(target.settings)
        migrate(engine)
        engine.dispose()
        restore_backup(target.settings, folder)
        (recording,) = target.rows()["recording"]
        assert recording["traceparent"] is None
        assert recording["sha256"] == facts["sha256"]
        assert {table.name for table in Base.metadata.sorted_tables} == set(target.rows())


def test_into_what_is_not_empty(place: Place, make_place: MakePlace, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    make_backup(place.settings, folder)
    before = place.rows()
    with pytest.raises(NotEmpty, match="the database is not empty"):
        restore_backup(place.settings, folder)
    assert place.rows() == before
    target = make_place(EMBEDDED)
    target.store.prepare()
    put(target.store, "recordings/other", b"other")
    with pytest.raises(NotEmpty, match="recordings/other"):
        restore_backup(target.settings, folder)
    assert target.objects() == {"recordings/other": b"other"}
    assert target.rows() == {}


def test_an_interrupted_restore_goes_on(
    place: Place, make_place: MakePlace, tmp_path: Path
) -> None:
    folder, target = tmp_path / "backup", make_place(CLUSTER)
    make_backup(place.settings, folder)

    class Killed(Exception):
        pass

    for what in ("objects", "rows"):

        def kill(step: Step, what: str = what) -> None:
            if step.what == what and step.done >= 3:
                raise Killed

        with pytest.raises(Killed):
            restore_backup(target.settings, folder, kill)
        assert all(not rows for rows in target.rows().values())
    restore_backup(target.settings, folder)
    assert len(target.objects()) == open_backup(folder).manifest.objects.count
    assert len(target.rows()["recording"]) == 4


def test_an_interrupted_backup_leaves_the_one_before(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "backup"

    class Killed(BaseException):
        pass

    def kill(step: Step) -> None:
        if (step.what, step.done) == ("objects", 4):
            raise Killed

    with pytest.raises(Killed):
        make_backup(place.settings, folder, kill)
    with pytest.raises(BackupInvalid, match="no complete backup"):
        open_backup(folder)
    first = make_backup(place.settings, folder)
    assert first.kept >= 3  # what was copied before it was killed
    with pytest.raises(Killed):
        make_backup(place.settings, folder, kill)
    assert check_backup(folder) == first.backup
    (folder / "index.db").write_bytes(b"cut off by a power cut" * 100)
    assert make_backup(place.settings, folder).copied == first.backup.manifest.objects.count


def test_what_cannot_be_backed_up(place: Place, make_place: MakePlace, tmp_path: Path) -> None:
    nowhere = make_place(EMBEDDED)
    with pytest.raises(StoreUnavailable):
        make_backup(nowhere.settings, tmp_path / "a")
    nowhere.store.prepare()
    with pytest.raises(BackupInvalid, match="no Soundmill database"):
        make_backup(nowhere.settings, tmp_path / "a")
    engine = make_engine(place.settings)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(BackupInvalid, match="newer Soundmill"):
        make_backup(place.settings, tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    with pytest.raises(NotEmpty, match=r"thesis\.txt"):
        make_backup(place.settings, tmp_path / "b")
    assert os.listdir(tmp_path / "b") == ["thesis.txt"]


def test_the_tables_of_others_are_left_alone(make_place: MakePlace, tmp_path: Path) -> None:
    """A database may hold more than ours: its backup can be restored, and nothing is dropped."""
    place, target = make_place(EMBEDDED), make_place(EMBEDDED)
    fill(place)
    for one, revision in ((place, "head"), (target, "0002")):
        engine = make_engine(one.settings)
        with engine.begin() as connection:
            database.upgrade(connection, revision)
            connection.execute(text("CREATE TABLE theirs (id INTEGER PRIMARY KEY)"))
            connection.execute(text("INSERT INTO theirs VALUES (7)"))
        engine.dispose()
    make_backup(place.settings, tmp_path / "backup")
    restore_backup(target.settings, tmp_path / "backup")
    assert {name for name, rows in target.rows().items() if rows} == EVERY_TABLE
    engine = make_engine(target.settings)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT id FROM theirs")) == 7
    engine.dispose()


def test_an_empty_database_does_not_replace_a_backup(
    place: Place, make_place: MakePlace, tmp_path: Path
) -> None:
    """The database was lost, a new one was made, and the next backup runs as every night."""
    folder = tmp_path / "backup"
    before = make_backup(place.settings, folder).backup
    new = make_place(EMBEDDED)
    new.store.prepare()
    engine = make_engine(new.settings)
    migrate(engine)
    engine.dispose()
    with pytest.raises(NotEmpty, match="Name another folder"):
        make_backup(new.settings, folder)
    assert check_backup(folder).checksum == before.checksum
    make_backup(new.settings, tmp_path / "other")


def test_two_at_once(place: Place, tmp_path: Path) -> None:
    with make._own(tmp_path / "backup"), pytest.raises(Conflict):
        make_backup(place.settings, tmp_path / "backup")
