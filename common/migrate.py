"""Brings the database of the settings to the newest schema: ``python -m common.migrate``.

With ``--check`` it changes nothing, and ends with 0 where the schema is as new as this code or
newer: what waits for somebody else's migration asks that.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from common import logs
from common.db import make_engine
from common.settings import get_settings

log = logs.get_logger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
EXIT_OLD = os.EX_DATAERR
EXIT_NO_DATABASE = os.EX_UNAVAILABLE


def migrate(engine: Engine) -> None:
    """Run every migration that the database lacks. Safe to call from several processes."""
    config = _config()
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7083105)")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def is_current(engine: Engine) -> bool:
    """Return whether the schema is as new as this code, or newer (a migration only adds)."""
    newest = ScriptDirectory.from_config(_config()).get_current_head()
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_heads()
    return newest is not None and max(found, default="") >= newest


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m common.migrate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether it is needed")
    settings = get_settings()
    engine = make_engine(settings)
    if not parser.parse_args().check:
        logs.configure(settings, "migrate")
        try:
            migrate(engine)
        except Exception as error:
            log.error("the database was not migrated", exc_info=error)
            sys.exit(f"{type(error).__name__}: {error}".partition("\n")[0])
        return
    try:
        current = is_current(engine)
    except OperationalError as error:
        print(f"the database does not answer: {str(error.orig).strip()}", file=sys.stderr)
        sys.exit(EXIT_NO_DATABASE)
    if not current:
        print("the schema is older than this code, or missing", file=sys.stderr)
        sys.exit(EXIT_OLD)


if __name__ == "__main__":
    main()
