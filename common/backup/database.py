"""The rows of the database: out of one snapshot, and into an empty database of either kind.

The tables are those that the database itself has, not those of this code, so that a backup can be
made before a migration, and an older one restored: its rows go into the schema that they are of,
and migrations bring them forward, all in one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    JSON,
    Connection,
    Engine,
    Integer,
    MetaData,
    Table,
    func,
    select,
    text,
)
from sqlalchemy.exc import DataError, IntegrityError, InterfaceError, ProgrammingError

from common.backup.lines import read_lines, write_lines
from common.backup.manifest import Backup, Manifest, TableCopy
from common.db import READ_ONLY
from common.errors import BackupInvalid, NotEmpty
from common.migrate import MIGRATIONS
from common.tables import Base

ROWS_AT_ONCE = 1_000
REVISIONS = "alembic_version"
UNFIT = (ValueError, TypeError, DataError, IntegrityError, InterfaceError, ProgrammingError)
Tell = Callable[[int], None]  # how many more of something are done


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """Open a connection that sees the database as it is now, and keeps no writer waiting."""
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            seen = connection.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        else:  # a transaction of SQLite in WAL mode is a snapshot
            seen = connection.execution_options(**READ_ONLY)
        seen.scalar(select(1))
        yield seen


def revision_of(connection: Connection) -> str | None:
    """Return the revision of a database's schema; None where it has no tables of ours."""
    return MigrationContext.configure(connection).get_current_revision()


def known_revisions() -> set[str]:
    """Return the revisions of the schema that this program knows."""
    return {script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()}


def tables_of(connection: Connection) -> list[Table]:
    """Return the tables of ours that the database has, each after those that it refers to.

    What others keep in the same database is not ours to copy, to count or to drop.
    """
    metadata = MetaData()
    metadata.reflect(connection, only=lambda name, _: name in Base.metadata.tables)
    tables = metadata.sorted_tables
    for table in tables:
        for column in table.columns:
            if isinstance(column.type, JSON):
                column.type.none_as_null = True
    return tables


def dump(connection: Connection, folder: Path, tell: Tell) -> list[TableCopy]:
    """Write the rows of every table into files of their own; ``tell`` is told of rows."""
    copies = []
    for table in tables_of(connection):
        number = 0

        def rows(table: Table = table) -> Iterator[list[Any]]:
            nonlocal number
            found = connection.execute(select(table), execution_options={"yield_per": ROWS_AT_ONCE})
            for part in found.partitions():
                yield from map(list, part)
                number += len(part)
                tell(len(part))

        name = table.name
        file = write_lines(folder / f"{name}.jsonl.gz", rows())
        columns = [column.name for column in table.columns]
        copies.append(TableCopy(name=name, columns=columns, rows=number, file=file))
    return copies


def check_empty(connection: Connection) -> None:
    """Raise NotEmpty when a table of ours has a row."""
    for table in tables_of(connection):
        if connection.scalar(select(func.count()).select_from(table.select().limit(1).subquery())):
            raise NotEmpty(
                f"the database is not empty: it has rows in the table {table.name}."
                " Restore into a new one."
            )


def load(connection: Connection, backup: Backup, tell: Tell) -> None:
    """Put the rows of a backup into an empty database and bring its schema up to date.

    Everything is in the connection's transaction.

    Raises:
        BackupInvalid: the rows do not fit the schema that they are said to be of.
    """
    manifest = backup.manifest
    _make_schema(connection, manifest.revision)
    tables = {table.name: table for table in tables_of(connection)}
    _check_columns(manifest, tables)
    copies = {copy.name: copy for copy in manifest.tables}
    for name, table in tables.items():
        _load_table(connection, table, backup.copy, copies[name], tell)
    _advance_counters(connection, tables.values())
    upgrade(connection, "head")
    if connection.dialect.name == "postgresql":
        connection.execute(text("ANALYZE"))


def upgrade(connection: Connection, revision: str) -> None:
    """Bring the schema to a revision, in the connection's transaction."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _make_schema(connection: Connection, revision: str) -> None:
    there = revision_of(connection)
    if there == revision:
        return
    if there is not None:  # of another revision, and empty
        for table in reversed(tables_of(connection)):
            table.drop(connection)
        connection.execute(text(f"DROP TABLE {REVISIONS}"))
    upgrade(connection, revision)


def _check_columns(manifest: Manifest, tables: dict[str, Table]) -> None:
    expected = {name: {column.name for column in table.columns} for name, table in tables.items()}
    found = {copy.name: set(copy.columns) for copy in manifest.tables}
    if found != expected or len(found) != len(manifest.tables):
        raise BackupInvalid(f"its tables are not those of the schema {manifest.revision}")
    if any(len(copy.columns) != len(set(copy.columns)) for copy in manifest.tables):
        raise BackupInvalid("a table has a column twice")


def _load_table(
    connection: Connection, table: Table, folder: Path, copy: TableCopy, tell: Tell
) -> None:
    number = 0
    rows = read_lines(folder / copy.file_name)
    while part := list(islice(rows, ROWS_AT_ONCE)):
        try:
            connection.execute(
                table.insert(), [dict(zip(copy.columns, row, strict=True)) for row in part]
            )
        except UNFIT as error:
            reason = str(getattr(error, "orig", error)).partition("\n")[0]
            raise BackupInvalid(f"a row of {copy.name} cannot be stored: {reason}") from error
        number += len(part)
        tell(len(part))
    if number != copy.rows:
        raise BackupInvalid(f"{copy.file_name} has {number} rows and should have {copy.rows}")


def _advance_counters(connection: Connection, tables: Sequence[Table] | Any) -> None:
    """Have PostgreSQL count on where the rows end; SQLite does so by itself."""
    if connection.dialect.name != "postgresql":
        return
    for table in tables:
        for column in table.primary_key.columns:
            if isinstance(column.type, Integer):
                last = connection.scalar(select(func.max(column)))
                counter = connection.scalar(
                    select(func.pg_get_serial_sequence(table.name, column.name))
                )
                if last is not None and counter is not None:
                    connection.execute(select(func.setval(counter, last)))
