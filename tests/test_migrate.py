"""Whether the schema is current, asked as an init container asks it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, MetaData, inspect, text

from common.db import make_engine
from common.migrate import EXIT_NO_DATABASE, EXIT_OLD, is_current, migrate
from common.settings import Settings
from tests.databases import prepare


def check(database_url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "SOUNDMILL_DATABASE_URL": database_url}
    command = [sys.executable, "-m", "common.migrate", "--check"]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)


def test_the_schema_is_current_once_migrated_and_stays_so_beside_newer_code(
    database_url: str, tmp_path: Path
) -> None:
    asked = check(database_url, tmp_path)
    assert asked.returncode == EXIT_OLD
    assert "older than this code, or missing" in asked.stderr

    engine = make_engine(Settings(home=tmp_path, database_url=database_url))
    assert not is_current(engine)  # asking has not migrated it
    migrate(engine)
    assert check(database_url, tmp_path).returncode == 0

    # A pod of the old version starts anew beside a database that the new one has migrated.
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert is_current(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    assert not is_current(engine)
    engine.dispose()


def test_a_database_that_does_not_answer_is_told_apart(tmp_path: Path) -> None:
    asked = check("postgresql+psycopg://soundmill:secret@127.0.0.1:1/soundmill", tmp_path)
    assert asked.returncode == EXIT_NO_DATABASE
    assert "does not answer" in asked.stderr
    assert "Traceback" not in asked.stderr
    assert "secret" not in asked.stderr


def schema_of(engine: Engine) -> dict[str, Any]:
    """Return all that the database says of each table."""
    looking = inspect(engine)
    return {
        table: [
            sorted(json.dumps(one, default=str, sort_keys=True) for one in found)
            for found in (
                looking.get_columns(table),
                looking.get_pk_constraint(table).items(),
                looking.get_foreign_keys(table),
                looking.get_unique_constraints(table),
                looking.get_check_constraints(table),
                looking.get_indexes(table),
            )
        ]
        for table in looking.get_table_names()
    }


def test_databases_of_tests_are_made_as_by_the_migrations(
    database_url: str, tmp_path: Path
) -> None:
    engine = make_engine(Settings(home=tmp_path, database_url=database_url))
    migrate(engine)
    wanted = schema_of(engine)
    assert len(wanted) > 5
    for _ in range(2):  # the second time, at the latest, by the statements of the first
        tables = MetaData()
        tables.reflect(engine)
        tables.drop_all(engine)
        prepare(engine)
        assert is_current(engine)
        assert schema_of(engine) == wanted
    engine.dispose()
