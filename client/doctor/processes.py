"""Which processes live, as far as it can be told: by their connections and by their work.

Connections to Redis and PostgreSQL carry the name of their service. What is not seen may live all
the same: an idle one, one of an older release, one that only this machine cannot see.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import psutil
import redis
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from client.doctor.sections import warning
from client.doctor.target import Target
from client.home import Home
from common.broker import client_name
from common.checks import Check
from common.checks.base import failed, ok
from common.checks.broker import connect
from common.db import DbNow
from common.domain import SERVICE_OF, RunState, SourceState, Stage
from common.monitor import is_well
from common.settings import Settings
from common.tables import Attempt, Source, StageRun

SERVICES = ("gateway", "dispatcher", "ingester", *SERVICE_OF.values())
NEWEST_ATTEMPTS = 200
RECENT_S = 300.0
ANSWER_S = 5.0
WAITING = (RunState.READY.value, RunState.DISPATCHED.value)
START = "Start it, or read its log: it says why it does not get on."


@dataclass
class Seen:
    """What was seen of the processes and what they complain of, by service; what waits for each."""

    signs: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    troubles: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    waiting: dict[str, int] = field(default_factory=dict)


def checks(session: Session, target: Target, redis_answers: bool) -> Iterator[Check]:
    """Yield one check for each service."""
    if target.home is not None and target.state is None:
        return
    seen = Seen()
    if target.state is not None:
        look_at_stack(target.state.processes, seen)
    if target.state is not None and target.home is not None:
        ask_stack(target.home, seen)
    if redis_answers:
        look_at_redis(target.settings, seen)
    look_at_connections(session, seen)
    look_at_work(session, seen)
    for service in SERVICES:
        yield judge(service, seen)


def judge(service: str, seen: Seen) -> Check:
    """Return whether a service was seen, and whether work waits for it in vain."""
    signs, waiting = seen.signs.get(service), seen.waiting.get(service, 0)
    if seen.troubles.get(service):
        return failed(service, "; ".join(seen.troubles[service]), START)
    if signs:
        return ok(service, f"seen: {', '.join(signs)}")
    if waiting:
        wait = "waits" if waiting == 1 else "wait"
        detail = f"not seen, while {several(waiting, 'stage run')} {wait} for it"
        return failed(service, detail, START)
    advice = "If it should run, start it; an idle one of an older release is not seen."
    return warning(service, "not seen", advice)


def look_at_stack(running: dict[str, int], seen: Seen) -> None:
    """Note the processes that the supervisor of this machine's stack has started."""
    for name, pid in running.items():
        service = name.rpartition("-")[0] or name
        if service in SERVICES and psutil.pid_exists(pid):
            seen.signs[service].append(f"process {pid}")


def ask_stack(home: Home, seen: Seen) -> None:
    """Ask every process of this machine's stack whether it is ready."""
    try:
        targets = json.loads(home.targets_path.read_text())
        addresses = [(t["labels"]["job"], address) for t in targets for address in t["targets"]]
    except (OSError, ValueError, KeyError, TypeError):  # a stack of an older release
        return
    for service, address in addresses:
        try:
            answer = httpx.get(f"http://{address}/ready", timeout=ANSWER_S, trust_env=False)
            checks = answer.json()["checks"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            seen.troubles[service].append(f"does not answer at {address}")
            continue
        wrong = [f"{name}: {told}" for name, told in checks.items() if not is_well(told)]
        if wrong:
            seen.troubles[service].append(f"not ready: {', '.join(wrong)}")


def look_at_redis(settings: Settings, seen: Seen) -> None:
    """Note who is connected to Redis under the name of a service."""
    client = connect(settings)
    try:
        names = Counter(str(found.get("name")) for found in client.client_list())
    except redis.RedisError:  # not allowed on some
        return
    finally:
        client.close()
    for service in SERVICES:
        number = names[client_name(service)]
        if number:
            seen.signs[service].append(f"{several(number, 'connection')} to Redis")


def look_at_connections(session: Session, seen: Seen) -> None:
    """Note who is connected to PostgreSQL under the name of a service."""
    if session.get_bind().dialect.name != "postgresql":
        return
    found = session.execute(
        text(
            "SELECT application_name, count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " GROUP BY application_name"
        )
    ).all()
    for name, number in found:
        service = str(name).removeprefix("soundmill-")
        if service != name and service in SERVICES:
            seen.signs[service].append(f"{several(number, 'connection')} to PostgreSQL")


def look_at_work(session: Session, seen: Seen) -> None:
    """Note what is being worked on, what was not long ago, and what waits."""
    now = session.execute(select(DbNow())).scalar_one()
    held = session.execute(
        select(StageRun.stage, func.count())
        .where(StageRun.state == RunState.RUNNING.value, StageRun.lease_expires_at > now)
        .group_by(StageRun.stage)
    ).all()
    for stage, number in held:
        seen.signs[SERVICE_OF[Stage(stage)]].append(f"works on {several(number, 'stage run')}")
    newest = (  # ids sort by time
        select(Attempt.stage_run_id, Attempt.finished_at)
        .order_by(Attempt.id.desc())
        .limit(NEWEST_ATTEMPTS)
        .subquery()
    )
    ended = session.execute(
        select(StageRun.stage, func.max(newest.c.finished_at))
        .join(newest, newest.c.stage_run_id == StageRun.id)
        .group_by(StageRun.stage)
    ).all()
    for stage, at in ended:
        if at is not None and now - at < RECENT_S:
            seen.signs[SERVICE_OF[Stage(stage)]].append(f"ended work {now - at:.0f} s ago")
    reading = session.scalar(
        select(func.count())
        .select_from(Source)
        .where(Source.state == SourceState.RUNNING.value, Source.lease_expires_at > now)
    )
    if reading:
        seen.signs["ingester"].append(f"reads {several(reading, 'source')}")
    waiting = session.execute(
        select(StageRun.stage, func.count())
        .where(StageRun.state.in_(WAITING))
        .group_by(StageRun.stage)
    ).all()
    seen.waiting = {SERVICE_OF[Stage(stage)]: number for stage, number in waiting}


def several(number: int, thing: str) -> str:
    """Return a number of things: ``1 source``, ``1,200 sources``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
