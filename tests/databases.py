"""Databases of tests: migrated once in a test run, made anew by the same statements after that."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, event, inspect

from common.migrate import migrate

NOTHING_CHANGES = ("SELECT", "PRAGMA", "BEGIN")

_statements: dict[str, list[str]] = {}
"""By dialect, what the migrations said to the first empty database."""


def prepare(engine: Engine) -> None:
    """Bring a database to the newest schema."""
    dialect = engine.dialect.name
    with engine.connect() as connection:
        empty = not inspect(connection).has_table("alembic_version")
    if not empty:
        migrate(engine)
    elif dialect not in _statements:
        _statements[dialect] = _recorded(engine)
    else:
        with engine.begin() as connection:
            for statement in _statements[dialect]:
                connection.exec_driver_sql(statement)


def _recorded(engine: Engine) -> list[str]:
    """Migrate; return the statements that changed something, in one where the driver takes that."""
    said: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not statement.lstrip().startswith(NOTHING_CHANGES):
            assert not parameters, f"cannot be repeated as it stands: {statement}"
            said.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        migrate(engine)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return [";\n".join(said)] if engine.dialect.name == "postgresql" else said
