"""Whether the schema is current, asked as an init container asks it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sqlalchemy import text

from common.db import make_engine
from common.migrate import EXIT_NO_DATABASE, EXIT_OLD, is_current, migrate
from common.settings import Settings


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
