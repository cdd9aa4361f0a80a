"""Puts a backup into an empty database and an empty store, of the same kind or the other.

Everything that can be looked at is looked at first. Then come the objects, each checked while it is
copied, and at last the rows, in one transaction: until then there is nothing that anybody could
take for a whole Soundmill. What was killed before goes on where it was.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.backup import database, objects
from common.backup.lines import read_lines
from common.backup.make import Step, Tell
from common.backup.manifest import LISTING, Backup, check_file, open_backup
from common.backup.revive import Revived, revive, silence
from common.backup.wanted import Stored
from common.db import make_engine
from common.errors import BackupInvalid, NotEmpty
from common.settings import Settings
from common.storage import ObjectStore, open_store

MARK = "restoring"  # an object of this name says which backup a restore had begun with


@dataclass(frozen=True)
class Restored:
    """What a restore put where it belongs."""

    backup: Backup
    revived: Revived


def check_backup(folder: Path, tell: Tell = lambda step: None) -> Backup:
    """Look at every byte of a backup.

    Raises:
        BackupInvalid: something is missing or damaged.
    """
    backup = open_backup(folder)
    _check_files(backup)
    done = 0
    for table in backup.manifest.tables:
        number = 0
        for row in read_lines(backup.copy / table.file_name):
            number += 1
            if len(row) != len(table.columns):
                raise BackupInvalid(f"{table.file_name} is damaged: line {number} is no row")
        if number != table.rows:
            raise BackupInvalid(f"{table.file_name} has {number} rows and should have {table.rows}")
        done += number
        tell(Step("rows", done, backup.manifest.rows))
    _each(objects.check(backup, whole=True), backup, tell)
    return backup


def restore_backup(
    settings: Settings,
    folder: Path,
    tell: Tell = lambda step: None,
    *,
    disable_webhooks: bool = False,
) -> Restored:
    """Restore a backup into the database and the store of the settings.

    Nothing else may use them meanwhile.

    Args:
        disable_webhooks: Tell nobody anything: for a drill beside the original.

    Raises:
        BackupInvalid: the backup is damaged, or of a newer version. The database is as it was.
        NotEmpty: there is something in the database or the store.
    """
    backup = open_backup(folder)
    if backup.manifest.revision not in database.known_revisions():
        raise BackupInvalid(
            f"{folder} has the schema {backup.manifest.revision},"
            " of a newer Soundmill than this one"
        )
    engine = make_engine(settings)
    store = open_store(settings)
    try:
        with engine.connect() as connection:
            database.check_empty(connection)
        store.prepare()
        store.check()
        resumed = _check_store(store, backup)
        _check_files(backup)
        for _ in objects.check(backup, whole=False):
            pass
        if not resumed:
            store.put_stream(_mark(backup), io.BytesIO(b"\n"), "text/plain")
        _each(objects.copy_in(backup, store, resumed), backup, tell)
        with engine.begin() as connection:
            database.check_empty(connection)
            rows = _teller("rows", backup.manifest.rows, tell)
            database.load(connection, backup, rows)
            revived = revive(connection, backup.manifest.deleted_jobs)
            if disable_webhooks:
                silence(connection)
        store.delete(_mark(backup))
        return Restored(backup, revived)
    finally:
        engine.dispose()


def _check_store(store: ObjectStore, backup: Backup) -> bool:
    """Return whether a restore of this backup had begun. Raises NotEmpty for anything else."""
    first = next(iter(store.list()), None)
    if first is None:
        return False
    if any(found.key == _mark(backup) for found in store.list(f"{MARK}/")):
        return True
    raise NotEmpty(f"the object store is not empty: it holds {first.key}. Restore into a new one.")


def _mark(backup: Backup) -> str:
    return f"{MARK}/{backup.checksum}"


def _check_files(backup: Backup) -> None:
    for table in backup.manifest.tables:
        check_file(backup.copy / table.file_name, table.file)
    check_file(backup.copy / LISTING, backup.manifest.objects.file)


def _each(found: Iterator[Stored], backup: Backup, tell: Tell) -> None:
    size_bytes = 0
    for number, one in enumerate(found, 1):
        size_bytes += one.size_bytes
        tell(Step("objects", number, backup.manifest.objects.count, size_bytes))


def _teller(what: str, total: int, tell: Tell) -> Callable[[int], None]:
    done = 0

    def add(number: int) -> None:
        nonlocal done
        done += number
        tell(Step(what, done, total))

    return add
