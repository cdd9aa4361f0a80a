"""Which objects belong to a backup: those that a snapshot of the database names.

The index beside the backup, a small SQLite file, holds them and what has been copied so far, so
that the memory does not grow with the archive and an interrupted copy goes on where it was. It may
be lost: then everything is copied again.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Select, select

from common.backup.manifest import INDEX
from common.domain import SourceState, UploadState
from common.sources import owned_object
from common.tables import Artifact, Job, Recording, Source, Upload

SCHEMA = """
CREATE TABLE IF NOT EXISTS stored (key TEXT PRIMARY KEY, size INTEGER, sha256 TEXT) WITHOUT ROWID;
DROP TABLE IF EXISTS wanted;
CREATE TABLE wanted (
    place INTEGER PRIMARY KEY, key TEXT UNIQUE, size INTEGER, sha256 TEXT, media_type TEXT,
    job_id TEXT, needed INTEGER, soon_gone INTEGER, found INTEGER DEFAULT 0
);
CREATE INDEX wanted_order ON wanted (soon_gone, place);
"""
AUDIO = "application/octet-stream"
ROWS_AT_ONCE = 1_000
UNREAD = (SourceState.PENDING.value, SourceState.RUNNING.value)
PERHAPS = (SourceState.CANCELLED.value, SourceState.FAILED.value)  # a retry may read on


@dataclass(frozen=True)
class Wanted:
    """An object that a snapshot names. Size and hash are None where nobody noted them.

    ``needed``: without it the backup has a flaw. ``soon_gone``: it is removed once it was read.
    """

    key: str
    size_bytes: int | None
    sha256: str | None
    media_type: str
    job_id: str | None
    needed: bool = True
    soon_gone: bool = False


@dataclass(frozen=True)
class Stored:
    """An object that lies in the backup."""

    key: str
    size_bytes: int
    sha256: str
    media_type: str = AUDIO


def named_objects(connection: Connection) -> Iterator[Wanted]:
    """Yield the objects that the database names, some more than once, but of deleted jobs."""
    alive = Job.deleted_at.is_(None)

    def rows(query: Select[*tuple[Any, ...]]) -> Any:
        return connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE})

    for row in rows(
        select(Recording.object_key, Recording.size_bytes, Recording.sha256, Recording.job_id)
        .join(Job, Job.id == Recording.job_id)
        .where(alive)
    ):
        yield Wanted(row.object_key, row.size_bytes, row.sha256, AUDIO, row.job_id)
    for row in rows(
        select(
            Artifact.object_key,
            Artifact.size_bytes,
            Artifact.sha256,
            Artifact.media_type,
            Recording.job_id,
        )
        .join(Recording, Recording.id == Artifact.recording_id)
        .join(Job, Job.id == Recording.job_id)
        .where(alive)
    ):
        yield Wanted(row.object_key, row.size_bytes, row.sha256, row.media_type, row.job_id)
    for row in rows(
        select(Source.spec, Source.state, Source.job_id)
        .join(Job, Job.id == Source.job_id)
        .where(alive, Source.state.in_([*UNREAD, *PERHAPS]))
    ):
        key = owned_object(row.spec)
        if key is not None:
            yield Wanted(key, None, None, AUDIO, row.job_id, row.state in UNREAD, soon_gone=True)
    for row in rows(
        select(Upload.object_key, Upload.size_bytes).where(
            Upload.state == UploadState.COMPLETE.value
        )
    ):
        yield Wanted(row.object_key, row.size_bytes, None, AUDIO, None, soon_gone=True)


def deleted_among(connection: Connection, jobs: Iterable[str]) -> set[str]:
    """Return those jobs that are deleted by now, or gone."""
    asked = sorted(set(jobs))
    there = connection.scalars(
        select(Job.id).where(Job.id.in_(asked), Job.deleted_at.is_(None))
    ).all()
    return set(asked) - set(there)


class Index:
    """What is wanted and what is copied. One thread at a time."""

    def __init__(self, folder: Path) -> None:
        path = folder / INDEX
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600))
        try:
            self._db = self._open(path)
        except sqlite3.DatabaseError:  # cut off by a power cut: it can be had again
            path.unlink()
            self._db = self._open(path)

    def close(self) -> None:
        """Close it; what was noted since the last commit is kept too."""
        with suppress(sqlite3.Error):
            self._db.commit()
        self._db.close()

    def commit(self) -> None:
        """Keep what was noted."""
        self._db.commit()

    def want(self, objects: Iterable[Wanted]) -> None:
        """Begin anew with these objects. Of one that comes twice, what came first counts."""
        self._db.executescript(SCHEMA)
        self._db.executemany(
            "INSERT INTO wanted (key, size, sha256, media_type, job_id, needed, soon_gone)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (key) DO UPDATE SET"
            " needed = max(needed, excluded.needed),"
            " soon_gone = max(soon_gone, excluded.soon_gone)",
            (
                (o.key, o.size_bytes, o.sha256, o.media_type, o.job_id, o.needed, o.soon_gone)
                for o in objects
            ),
        )
        self._db.commit()

    def wanted(self) -> Iterator[tuple[Wanted, Stored | None]]:
        """Yield what is wanted, with what was copied under its key; what is soon gone first."""
        for soon_gone in (1, 0):
            last = 0
            while True:
                rows = self._db.execute(
                    "SELECT w.key, w.size, w.sha256, w.media_type, w.job_id, w.needed,"
                    " s.size, s.sha256, w.place"
                    " FROM wanted w LEFT JOIN stored s ON s.key = w.key"
                    " WHERE w.soon_gone = ? AND w.place > ? ORDER BY w.place LIMIT ?",
                    (soon_gone, last, ROWS_AT_ONCE),
                ).fetchall()
                for row in rows:
                    key, size_bytes, sha256, media_type, job_id, needed, size, digest, last = row
                    wanted = Wanted(
                        key,
                        size_bytes,
                        sha256,
                        media_type,
                        job_id,
                        bool(needed),
                        bool(soon_gone),
                    )
                    yield wanted, None if size is None else Stored(key, size, digest)
                if len(rows) < ROWS_AT_ONCE:
                    break

    def totals(self) -> tuple[int, int]:
        """Return how many objects are wanted, and how many bytes they have as far as is known."""
        row = self._db.execute("SELECT count(*), coalesce(sum(size), 0) FROM wanted").fetchone()
        return int(row[0]), int(row[1])

    def note(self, key: str, stored: Stored | None) -> None:
        """Note that a wanted object is in the backup; ``stored``: copied just now."""
        if stored is not None:
            self._db.execute(
                "INSERT OR REPLACE INTO stored VALUES (?, ?, ?)",
                (key, stored.size_bytes, stored.sha256),
            )
        self._db.execute("UPDATE wanted SET found = 1 WHERE key = ?", (key,))

    def found(self) -> Iterator[Stored]:
        """Yield the wanted objects that are in the backup, by key."""
        last = ""
        while True:
            rows = self._db.execute(
                "SELECT w.key, s.size, s.sha256, w.media_type FROM wanted w"
                " JOIN stored s ON s.key = w.key WHERE w.found AND w.key > ?"
                " ORDER BY w.key LIMIT ?",
                (last, ROWS_AT_ONCE),
            ).fetchall()
            yield from (Stored(*row) for row in rows)
            if len(rows) < ROWS_AT_ONCE:
                return
            last = rows[-1][0]

    def unwanted(self) -> Iterator[list[str]]:
        """Yield, some at a time, the keys that were copied and that nothing wants any more."""
        last = ""
        while True:
            rows = self._db.execute(
                "SELECT key FROM stored WHERE key > ? AND NOT EXISTS"
                " (SELECT 1 FROM wanted w WHERE w.key = stored.key AND w.found)"
                " ORDER BY key LIMIT ?",
                (last, ROWS_AT_ONCE),
            ).fetchall()
            if not rows:
                return
            yield [row[0] for row in rows]
            last = rows[-1][0]

    def forget(self, keys: Iterable[str]) -> None:
        """Forget that objects were copied."""
        self._db.executemany("DELETE FROM stored WHERE key = ?", ((key,) for key in keys))
        self._db.commit()

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path)
        try:
            db.executescript(SCHEMA)
            db.execute("SELECT count(*) FROM stored").fetchone()
        except sqlite3.DatabaseError:
            db.close()
            raise
        return db
