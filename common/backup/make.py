"""Makes a backup while everything goes on.

First the rows of the database, in one snapshot; then the objects that it names. Whatever is named
was stored before, so an object can only be missing because it was removed since, and then:

- its job was deleted: that is noted, and done again after a restore;
- a source was read to its end and its archive removed: the snapshot is out of date, so the rows are
  copied again, and what was copied stays. What the new snapshot names as well is lost: a flaw.

Killed at any point, it leaves the backup before it whole, and what was copied need not be again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, select

from common.backup import database, objects
from common.backup.lines import write_lines
from common.backup.manifest import (
    COPY,
    INDEX,
    LISTING,
    MANIFEST,
    MOST_NAMED,
    OBJECTS,
    Backup,
    Flaw,
    Manifest,
    ObjectsCopy,
    TableCopy,
    open_backup,
    write_manifest,
)
from common.backup.wanted import Index, deleted_among, named_objects
from common.db import DbNow, make_engine
from common.errors import BackupInvalid, Conflict, NotEmpty
from common.settings import Settings
from common.storage import ObjectStore, open_store
from common.storage.directory import DirectoryStore
from common.storage.files import sync_folder

LOCK = ".lock"
ROUNDS = 5
MOST_OF_A_JOB = 1_000  # missing objects by name
NOTED_EVERY = 500  # objects


@dataclass(frozen=True)
class Step:
    """How far it is. ``what``: rows, objects or removed; ``total`` is None while nobody knows."""

    what: str
    done: int
    total: int | None = None
    size_bytes: int = 0


Tell = Callable[[Step], None]


@dataclass(frozen=True)
class Made:
    """A backup that is complete, and what it took."""

    backup: Backup
    copied: int  # objects
    copied_bytes: int
    kept: int  # objects that were there from before
    rounds: int


def make_backup(settings: Settings, folder: Path, tell: Tell = lambda step: None) -> Made:
    """Back up database and object store into a folder that is new, or has an earlier backup.

    Raises:
        NotEmpty: the folder holds something else, or recordings where the database has none.
        Conflict: another backup into the same folder is being made.
        BackupInvalid: there is no database of a version that this program knows.
        StoreUnavailable, DiskFull: try again; what was copied is kept.
    """
    store = open_store(settings)
    store.check()
    engine = make_engine(settings)
    try:
        with _own(folder):
            return _Maker(engine, store, folder, tell).make()
    finally:
        engine.dispose()


@dataclass
class _Round:
    """One snapshot and the objects that it names."""

    created_at: float
    revision: str
    tables: list[TableCopy]
    copied: int = 0
    copied_bytes: int = 0
    kept: int = 0
    flaws: list[Flaw] = field(default_factory=list)
    missing: dict[str | None, list[str]] = field(default_factory=lambda: defaultdict(list))
    deleted_jobs: set[str] = field(default_factory=set)


class _Maker:
    def __init__(self, engine: Engine, store: ObjectStore, folder: Path, tell: Tell) -> None:
        self.engine = engine
        self.store = store
        self.folder = folder
        self.tell = tell
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        self.copy = folder / f"copy-{moment}Z"
        self.index = Index(folder)
        (folder / OBJECTS).mkdir(mode=0o700, exist_ok=True)
        DirectoryStore(folder / OBJECTS).prepare()  # clears what a killed one left half written

    def make(self) -> Made:
        try:
            copied = copied_bytes = rounds = 0
            before: set[str] = set()
            while True:
                found = self._round()
                rounds += 1
                copied, copied_bytes = copied + found.copied, copied_bytes + found.copied_bytes
                missing = {key for keys in found.missing.values() for key in keys}
                if missing <= before or rounds == ROUNDS:  # they are named still: they are lost
                    break
                before = missing
            found.flaws += [Flaw(key=key, why="missing") for key in sorted(missing)]
            backup = self._complete(found)
            self._remove_unwanted()
            return Made(backup, copied, copied_bytes, found.kept, rounds)
        except BaseException:
            shutil.rmtree(self.copy, ignore_errors=True)
            raise
        finally:
            self.index.close()

    def _round(self) -> _Round:
        shutil.rmtree(self.copy, ignore_errors=True)
        self.copy.mkdir(mode=0o700)
        with database.snapshot(self.engine) as connection:
            revision = database.revision_of(connection)
            if revision is None:
                raise BackupInvalid("there is no Soundmill database to back up")
            if revision not in database.known_revisions():
                raise BackupInvalid(
                    f"the database has the schema {revision}, of a newer Soundmill than this one"
                )
            now = connection.scalar(select(DbNow())) or 0.0
            rows = _Counter("rows", self.tell)
            tables = database.dump(connection, self.copy, rows.add)
            self.index.want(named_objects(connection))
        if self.index.totals()[0] == 0 and self._has_objects():
            raise NotEmpty(
                f"{self.folder} holds a backup with recordings, and this database names none: it is"
                " another one, or a new one. Name another folder."
            )
        found = _Round(now, revision, tables)
        self._copy_objects(found)
        if found.missing:
            with self.engine.connect() as connection:
                jobs = {job_id for job_id in found.missing if job_id is not None}
                found.deleted_jobs = deleted_among(connection, jobs)
            for job_id in found.deleted_jobs:
                del found.missing[job_id]
        return found

    def _has_objects(self) -> bool:
        """Whether the backup before this one has any."""
        try:
            return open_backup(self.folder).manifest.objects.count > 0
        except BackupInvalid:  # there is none
            return False

    def _copy_objects(self, found: _Round) -> None:
        total, _ = self.index.totals()
        size_bytes = 0
        copied = objects.copy_out(self.store, self.folder / OBJECTS, self.index.wanted())
        for handled, one in enumerate(copied, 1):
            wanted, stored = one.wanted, one.stored
            if stored is None:
                if wanted.needed and len(found.missing[wanted.job_id]) < MOST_OF_A_JOB:
                    found.missing[wanted.job_id].append(wanted.key)
            else:
                self.index.note(wanted.key, None if one.kept else stored)
                size_bytes += stored.size_bytes
                if one.kept:
                    found.kept += 1
                else:
                    found.copied += 1
                    found.copied_bytes += stored.size_bytes
                if wanted.sha256 not in (None, stored.sha256):
                    found.flaws.append(Flaw(key=wanted.key, why="differs"))
            if handled % NOTED_EVERY == 0:
                self.index.commit()
            self.tell(Step("objects", handled, total, size_bytes))
        self.index.commit()

    def _complete(self, found: _Round) -> Backup:
        number = size_bytes = 0

        def rows() -> Iterator[list[object]]:
            nonlocal number, size_bytes
            for one in self.index.found():
                number += 1
                size_bytes += one.size_bytes
                yield [one.key, one.size_bytes, one.sha256, one.media_type]

        file = write_lines(self.copy / LISTING, rows())
        manifest = Manifest(
            created_at=found.created_at,
            database="postgresql" if self.engine.dialect.name == "postgresql" else "sqlite",
            revision=found.revision,
            copy_name=self.copy.name,
            tables=found.tables,
            objects=ObjectsCopy(count=number, size_bytes=size_bytes, file=file),
            deleted_jobs=sorted(found.deleted_jobs),
            flaws=found.flaws[:MOST_NAMED],
        )
        sync_folder(self.copy)
        sync_folder(self.folder)
        return write_manifest(self.folder, manifest)

    def _remove_unwanted(self) -> None:
        """Remove the copies before this one, and the objects that nothing wants any more."""
        for entry in self.folder.iterdir():
            if COPY.fullmatch(entry.name) and entry != self.copy:
                shutil.rmtree(entry)
        target = DirectoryStore(self.folder / OBJECTS)
        removed = _Counter("removed", self.tell)
        for keys in self.index.unwanted():
            for key in keys:
                target.delete(key)
            self.index.forget(keys)
            removed.add(len(keys))


class _Counter:
    def __init__(self, what: str, tell: Tell) -> None:
        self._what = what
        self._tell = tell
        self._done = 0

    def add(self, number: int) -> None:
        self._done += number
        self._tell(Step(self._what, self._done))


@contextmanager
def _own(folder: Path) -> Iterator[None]:
    """Make the folder, for its owner alone, and let nobody else make a backup in it meanwhile."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mine = {MANIFEST, OBJECTS, INDEX, f"{INDEX}-journal", LOCK}
    others = [
        entry.name
        for entry in folder.iterdir()
        if entry.name not in mine
        and not COPY.fullmatch(entry.name)
        and not entry.name.startswith(f".{MANIFEST}.")
    ]
    if others:
        raise NotEmpty(f"{folder} holds something else: {others[0]}. Name another folder.")
    folder.chmod(0o700)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Conflict(f"another backup into {folder} is being made") from None
    else:
        yield
    finally:
        os.close(descriptor)
