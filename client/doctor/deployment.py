"""Examines a deployment whose settings are at hand: its servers, settings, processes, models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sqlalchemy.exc import SQLAlchemyError

from client.doctor import contradictions, keys, machine, processes, weights
from client.doctor.sections import Section, section, warning
from client.doctor.target import Target
from common.checks import Check, Checker, Status
from common.checks.base import EXIT_SCHEMA
from common.db import make_engine, make_readers

UP = "`soundmill up` makes it, or brings it up to date."


def examine(target: Target) -> list[Section]:
    """Return all that was found, in the order of a sensible reading."""
    found = Checker(target.settings, target.parts, deep=True).report().checks
    checks = [in_words_of(target, check) for check in found]
    sections = [
        section("Servers and disks", checks),
        section("Settings", contradictions.checks(target.settings)),
        section("Models", weights.checks()),
        section("This machine", machine.checks()),
    ]
    if target.home is not None and target.state is None:
        sections.insert(0, section("Stack", [stopped(target)]))
    readable = {check.name for check in checks if check.status is not Status.FAILED}
    if {"database", "schema"} <= readable:
        sections[-1:-1] = [section("Access and processes", inside(target, "redis" in readable))]
    return sections


def inside(target: Target, redis_answers: bool) -> Iterable[Check]:
    """Return what only the database, and Redis, can tell."""
    engine = make_engine(target.settings)
    try:
        with make_readers(engine)() as session:
            return [
                keys.check(session, target.settings),
                *processes.checks(session, target, redis_answers),
            ]
    except SQLAlchemyError as error:
        detail = f"the database does not say ({type(error).__name__})"
        return [warning("processes", detail)]
    finally:
        engine.dispose()


def stopped(target: Target) -> Check:
    """Return the check of a stack that does not run."""
    folder = target.settings.home
    if not target.is_used:
        return warning("stack", f"nothing has run in {folder} yet", "`soundmill up` starts it.")
    return warning("stack", f"nothing runs in {folder}", "`soundmill up` starts it.")


def in_words_of(target: Target, check: Check) -> Check:
    """Return the check with an advice that fits a stack on this machine."""
    if target.home is not None and check.exit_code == EXIT_SCHEMA:
        return replace(check, advice=UP)
    return check
