"""``keys``: API keys, in the database itself; whoever may write that may do this.

The database is the one of ``SOUNDMILL_DATABASE_URL``, else that of the home. The secret of a key is
printed once and kept nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from client.commands.options import DEFAULT_HOME, HomeOption, JsonOption
from client.commands.output import say, say_json, told_plainly
from client.errors import ClientError, InputInvalid
from client.home import Home
from common import keys
from common.db import make_engine, make_sessions
from common.domain import Scope
from common.settings import Settings
from common.tables import ApiKey

UNIT_S = {"m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, for people.")],
    home: HomeOption = DEFAULT_HOME,
    scope: Annotated[
        list[Scope] | None,
        typer.Option("--scope", help="What it may do. May be repeated. Default: submit and read."),
    ] = None,
    expires: Annotated[str, typer.Option(help="After this time, such as 12h, 90d or 8w.")] = "",
    max_jobs: Annotated[int | None, typer.Option(min=1, help="Jobs at once.")] = None,
    max_gb: Annotated[float | None, typer.Option(min=0, help="Gigabytes held.")] = None,
    max_hours: Annotated[float | None, typer.Option(min=0, help="Hours of audio held.")] = None,
    per_minute: Annotated[int | None, typer.Option(min=1, help="Requests per minute.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print its secret, once."""
    limits = keys.Limits(
        max_jobs=max_jobs,
        max_bytes=None if max_gb is None else round(max_gb * 1e9),
        max_audio_s=None if max_hours is None else max_hours * 3600.0,
        requests_per_minute=per_minute,
    )
    with told_plainly(as_json):
        expires_in_s = parse_duration_s(expires) if expires else None
        with database(home) as session:
            scopes = scope or [Scope.SUBMIT, Scope.READ]
            made = keys.make(session, name, scopes, limits, expires_in_s)
            facts = facts_of(made.key)
        if as_json:
            say_json({**facts, "secret": made.secret})
        else:
            typer.echo(f"Key {facts['id']} for {name}. Its secret, shown only now:", err=True)
            say(made.secret)


@app.command("list")
def list_all(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """List all keys, without their secrets."""
    with told_plainly(as_json):
        with database(home) as session:
            found = [facts_of(key) for key in keys.list_keys(session)]
        if as_json:
            say_json(found)
            return
        for key in found:
            say(f"{key['id']}  {key['state']:<8}  {','.join(key['scopes']):<12}  {key['name']}")
        if not found:
            say("There are no keys.")


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(help="Id of the key, or the end of it.")],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Let a key open nothing any more. Its jobs stay."""
    with told_plainly(as_json):
        with database(home) as session:
            fitting = [known.id for known in keys.list_keys(session) if known.id.endswith(key)]
            if len(fitting) != 1:
                raise InputInvalid(f"{'More than one' if fitting else 'No'} key fits {key!r}.")
            facts = facts_of(keys.revoke(session, fitting[0]))
        if as_json:
            say_json(facts)
        else:
            say(f"Key {facts['id']} for {facts['name']} is revoked.")


@contextmanager
def database(home: Path) -> Iterator[Session]:
    """Open a transaction in the database, whose tables are made or brought up to date first."""
    folder = Home.at(home)
    settings = Settings(home=folder.folder)
    try:
        from common.migrate import migrate
    except ImportError as error:
        raise ClientError("`soundmill keys` needs the extra soundmill[gateway].") from error
    engine = make_engine(settings)
    if engine.dialect.name == "sqlite":  # a container's home cannot be written to, and need not be
        folder.make()
    try:
        migrate(engine)
        with make_sessions(engine).begin() as session:
            yield session
    except SQLAlchemyError as error:
        raise ClientError(f"The database does not answer as it should: {error}.") from error
    finally:
        engine.dispose()


def facts_of(key: ApiKey) -> dict[str, Any]:
    """Return what may be told about a key."""
    now = datetime.now(UTC).timestamp()
    expired = key.expires_at is not None and key.expires_at <= now
    return {
        "id": key.id,
        "name": key.name,
        "state": "revoked" if key.revoked_at else "expired" if expired else "active",
        "scopes": key.scopes,
        "created_at": as_time(key.created_at),
        "expires_at": as_time(key.expires_at),
        "max_jobs": key.max_jobs,
        "max_bytes": key.max_bytes,
        "max_audio_s": key.max_audio_s,
        "requests_per_minute": key.requests_per_minute,
    }


def as_time(seconds: float | None) -> str | None:
    """Return seconds since 1970 as ISO 8601 in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


def parse_duration_s(text: str) -> float:
    """Return a duration such as ``90d`` in seconds. Raises InputInvalid."""
    found = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    if found is None:
        raise InputInvalid(f"{text!r} is no duration: a number and m, h, d or w, such as 90d.")
    return int(found[1]) * UNIT_S[found[2]]
