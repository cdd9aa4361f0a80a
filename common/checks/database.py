"""The database: can it be reached and written, and does its schema fit this code?"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, inspect, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from common import db
from common.checks.base import (
    EXIT_CONFIG,
    EXIT_REFUSED,
    EXIT_SCHEMA,
    Check,
    Clock,
    Found,
    failed,
    first_line,
    ok,
    unknown,
    without_secrets,
)
from common.db import READ_ONLY, DbNow, make_engine
from common.settings import Settings
from common.tables import Base

DATABASE, SCHEMA = "database", "schema"
CONNECT_TIMEOUT_S = 2
MIGRATE = "Run `python -m common.migrate` once, with the settings of this process."
ADDRESS = "Look at SOUNDMILL_DATABASE_URL."
SPECIAL = "Write special characters of the password as %40, %2F and so on."


class DatabaseLook:
    """Looks at the database of the settings, on a new connection each time.

    Args:
        now: This machine's clock, seconds since 1970.
    """

    def __init__(self, settings: Settings, now: Callable[[], float]) -> None:
        self._settings = settings
        self._now = now
        self._engine: Engine | None = None

    def __call__(self) -> Found:
        raw = self._settings.database_url.get_secret_value()
        password = raw.partition("://")[2].partition("/")[0].partition(":")[2]
        if password.count("@") > 1:  # one ends it; a user's name may hold one
            return _lost(failed(DATABASE, "its address holds two @", SPECIAL, EXIT_CONFIG))
        try:
            url = make_url(raw)
            if _is_missing_file(url):
                detail = f"there is no file {url.database}"
                return _lost(failed(DATABASE, detail, MIGRATE, EXIT_SCHEMA))
            if self._engine is None:
                self._engine = _engine(self._settings, url)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            kind = type(error).__name__
            detail = f"its address cannot be used ({kind})"
            return _lost(failed(DATABASE, detail, f"{ADDRESS} {SPECIAL}", EXIT_CONFIG))
        try:
            with self._engine.connect() as connection:
                return self._look(connection, url)
        except DBAPIError as error:
            told = without_secrets(str(error.orig), self._settings)
            return _lost(_refusal(told, url))

    def _look(self, connection: Connection, url: URL) -> Found:
        if connection.dialect.name == "sqlite":  # it has no clock of its own
            return Found((ok(DATABASE, f"answers, {where(url)}"), schema(connection)))
        before = self._now()
        theirs = float(connection.execute(select(DbNow())).scalar_one())
        after = self._now()
        clock = Clock("database", (before + after) / 2 - theirs, (after - before) / 2)
        if connection.execute(text("SHOW transaction_read_only")).scalar() == "on":
            detail = f"{where(url)} can only be read: a standby, or set so"
            return Found(
                (failed(DATABASE, detail, ADDRESS, passes=True), schema(connection)), clock
            )
        return Found((ok(DATABASE, f"answers, {where(url)}"), schema(connection)), clock)


def schema(connection: Connection) -> Check:
    """Return whether the tables are those that this code needs, or newer ones.

    A newer schema is fine: old processes drain beside a database that has been migrated.
    """
    needed = newest_version()
    expected = set(Base.metadata.tables)
    there = set(inspect(connection).get_table_names())
    if not expected & there:
        return failed(SCHEMA, "the database holds no tables yet", MIGRATE, EXIT_SCHEMA)
    version = None
    if "alembic_version" in there:
        version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if version is None:
        detail = "the tables do not say which version they have"
        return failed(SCHEMA, detail, f"A migration was cut short. {MIGRATE}", EXIT_SCHEMA)
    if version < needed:
        detail = f"version {version} is older than this code, which needs {needed}"
        return failed(SCHEMA, detail, MIGRATE, EXIT_SCHEMA)
    missing = sorted(expected - there)
    if missing:
        detail = f"tables are missing: {', '.join(missing)}"
        advice = "Restore a backup, or install the release that fits this database."
        return failed(SCHEMA, detail, advice, EXIT_SCHEMA)
    if version > needed:
        return ok(SCHEMA, f"version {version}, newer than this code ({needed}): it may still drain")
    return ok(SCHEMA, f"version {version}, as this code needs it")


@cache
def newest_version() -> str:
    """Return the version of the newest migration of this code: ``0003``."""
    folder = Path(db.__file__).parent / "migrations" / "versions"
    return max(path.name.partition("_")[0] for path in folder.glob("[0-9]*.py"))


def where(url: URL) -> str:
    """Return what a database may be called in front of people: without user and password."""
    if url.get_backend_name() == "sqlite":
        return f"SQLite in {url.database}"
    return f"{url.get_backend_name()} {url.database} at {url.host}:{url.port or 5432}"


def _engine(settings: Settings, url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        return make_engine(settings).execution_options(**READ_ONLY)
    patience = {"connect_timeout": CONNECT_TIMEOUT_S}
    return create_engine(url, poolclass=NullPool, connect_args=patience)


def _is_missing_file(url: URL) -> bool:
    """Whether connecting would make an empty SQLite database."""
    name = url.database if url.get_backend_name() == "sqlite" else None
    return bool(name) and name != ":memory:" and not Path(str(name)).exists()


def _lost(check: Check) -> Found:
    return Found((check, unknown(SCHEMA, "the database cannot be used")))


def _refusal(told: str, url: URL) -> Check:
    """Return the check of a database that gave an error instead of an answer."""
    text = told.lower()
    host = f"{url.host}:{url.port or 5432}"
    if "password authentication failed" in text or "no password supplied" in text:
        detail = f"{host} refuses the password of user {url.username}"
        return failed(DATABASE, detail, f"{ADDRESS} {SPECIAL}", EXIT_REFUSED)
    if 'role "' in text and "does not exist" in text:
        return failed(DATABASE, f"{host} knows no user {url.username}", ADDRESS, EXIT_REFUSED)
    if 'database "' in text and "does not exist" in text:
        return failed(DATABASE, f"{host} has no database {url.database}", ADDRESS, EXIT_CONFIG)
    if "no pg_hba.conf entry" in text:
        detail = f"{host} lets user {url.username} not come from this machine"
        return failed(DATABASE, detail, "Allow it in pg_hba.conf.", EXIT_REFUSED)
    for words, detail in (
        ("connection refused", f"nothing listens at {host}"),
        ("timeout", f"no answer from {host} within {CONNECT_TIMEOUT_S} s"),
        ("resolve host", f"the name {url.host} is not known"),
        ("translate host", f"the name {url.host} is not known"),
        ("too many clients", f"{host} has no connection left (max_connections)"),
        ("remaining connection slots", f"{host} has no connection left (max_connections)"),
    ):
        if words in text:
            return failed(DATABASE, detail, ADDRESS, passes=True)
    return failed(DATABASE, first_line(told), ADDRESS, passes=True)
