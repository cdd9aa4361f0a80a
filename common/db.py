"""The database: connections to SQLite (WAL) and PostgreSQL, its clock, the types of its columns.

Owns no table: those are in ``common.tables``. Times are seconds since 1970 on the database's clock
(``DbNow``), so that leases do not depend on the clocks of the machines around it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Double,
    Engine,
    Integer,
    String,
    create_engine,
    event,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.expression import FunctionElement

from common.metrics import DATABASE_ERRORS
from common.settings import Settings

ID_LENGTH = 32
SQLITE_BUSY_TIMEOUT_S = 60
READ_ONLY = {"read_only": True}

Serial = BigInteger().with_variant(Integer(), "sqlite")  # SQLite counts up INTEGER alone
Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
Seconds = Double
IdType = String(ID_LENGTH)


def new_id() -> str:
    """Return a new id: 48 bits of milliseconds and 80 random bits, as 32 hexadecimal digits.

    Ids made later sort later, which keeps index pages warm and gives lists a natural order.
    """
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"


class DbNow(FunctionElement[float]):
    """The database's own clock, in seconds since 1970."""

    type = Double()
    inherit_cache = True


@compiles(DbNow, "postgresql")
def _now_postgresql(element: DbNow, compiler: Any, **options: Any) -> str:
    return "EXTRACT(EPOCH FROM clock_timestamp())::double precision"


@compiles(DbNow, "sqlite")
def _now_sqlite(element: DbNow, compiler: Any, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


def make_engine(settings: Settings) -> Engine:
    """Return an engine for SQLite or PostgreSQL. Connects to nothing yet."""
    url = make_url(settings.database_url.get_secret_value())
    if url.get_backend_name() == "sqlite":
        if url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(url, connect_args={"timeout": SQLITE_BUSY_TIMEOUT_S})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        engine = create_engine(url, pool_pre_ping=True, pool_size=5, max_overflow=10)
    event.listen(engine, "handle_error", _count_error)
    return engine


def make_sessions(engine: Engine) -> sessionmaker[Session]:
    """Return the session factory. ``with sessions.begin() as session`` is one transaction."""
    return sessionmaker(engine, expire_on_commit=False)


def make_readers(engine: Engine) -> sessionmaker[Session]:
    """Return a factory of sessions that only read: they never wait for a writer."""
    return sessionmaker(engine.execution_options(**READ_ONLY), expire_on_commit=False)


def _count_error(context: ExceptionContext) -> None:
    error = context.sqlalchemy_exception or context.original_exception
    DATABASE_ERRORS.labels(type(error).__name__).inc()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver must not begin transactions by itself: see _begin_sqlite.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # what was acknowledged survives a power cut
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Any) -> None:
    # A transaction that reads first and writes later fails at once ("database is locked") when
    # another wrote in between; taking the write lock first waits for it instead.
    readonly = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")
