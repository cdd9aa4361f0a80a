"""What there is to do, counted from the database and Redis, as gauges.

A thread of its own counts, from indexes alone and beside the writers, for at most a tenth of the
time; Prometheus is told the newest numbers. While one of the two does not answer, its gauges are
absent: no number is better than an old one. Every dispatcher counts the same, so whoever adds up
several dispatchers takes the largest.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import ColumnElement, Row, and_, func, or_, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from common import logs
from common.broker import queue_lengths
from common.db import DbNow, make_engine, make_readers
from common.domain import (
    TERMINAL_STATES,
    DeliveryState,
    JobState,
    Priority,
    RunState,
    SourceState,
    Stage,
    queue_name,
)
from common.metrics import NAMESPACE, count_broker_error
from common.settings import Settings
from common.tables import Job, Source, StageRun, WebhookDelivery

log = logs.get_logger(__name__)

COUNTING_SHARE = 0.1  # at most this share of the time goes into counting
SHORTEST_PAUSE_S = 5.0
OLD_AFTER_S = 60.0  # or three pauses: then a count that hangs no longer stands for now
REDIS_TIMEOUT_S = 5.0
LATE_SHARE = 0.1
"""A job whose speed nobody knows is late when less than this share of its time is left."""

Rows = Sequence[Row[Any]]
MOST_CODES = 100  # of failed runs, over all stages
OTHER = "other"
UNFINISHED = tuple(state.value for state in RunState if state not in TERMINAL_STATES)
WAITING = (RunState.READY.value, RunState.DISPATCHED.value)
AT_FAULT = (RunState.FAILED.value, RunState.QUARANTINED.value)
ACTIVE = (JobState.OPEN.value, JobState.CLOSED.value)
KEPT = Job.deleted_at.is_(None)
GOES_ON = and_(KEPT, Job.state.in_(ACTIVE))
GIVEN_UP = or_(
    Job.deleted_at.is_not(None), and_(Job.finished_at.is_(None), Job.state.not_in(ACTIVE))
)
PAUSED = and_(GOES_ON, Job.paused_at.is_not(None))
DATABASE_BYTES = {
    "sqlite": "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()",
    "postgresql": "SELECT pg_database_size(current_database())",
}


@dataclass(frozen=True)
class _Counted:
    """The gauges of one look, and until when they stand for now (on this process's clock)."""

    metrics: tuple[Metric, ...] = ()
    good_until: float = field(default=float("-inf"))


class Census(Collector):
    """Owns the connections of the thread, and the newest numbers."""

    def __init__(self, settings: Settings) -> None:
        self.engine = make_engine(settings)
        self.readers: sessionmaker[Session] = make_readers(self.engine)
        self.redis = redis.Redis.from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=REDIS_TIMEOUT_S,
            socket_connect_timeout=REDIS_TIMEOUT_S,
        )
        self._database = _Counted()
        self._broker = _Counted()

    def close(self) -> None:
        """Close every connection."""
        self.redis.close()
        self.engine.dispose()

    def run(self, stop: threading.Event) -> None:
        """Count until ``stop`` is set. Nothing that goes wrong here ends the process."""
        while not stop.is_set():
            started = time.monotonic()
            self.count()
            took_s = time.monotonic() - started
            stop.wait(max(SHORTEST_PAUSE_S, took_s * (1.0 / COUNTING_SHARE - 1.0)))

    def count(self) -> None:
        """Count anew what the database and Redis hold."""
        self._database = _look("the database", self._look_at_database)
        self._broker = _look("Redis", self._look_at_redis)

    def describe(self) -> list[Metric]:
        """Return nothing: the names are not needed before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the newest numbers, unless they are too old to stand for now."""
        now = time.monotonic()
        for counted in (self._database, self._broker):
            if now <= counted.good_until:
                yield from counted.metrics

    def _look_at_database(self) -> tuple[Metric, ...]:
        with self.readers() as session:
            return (*runs_of(session), *jobs_of(session), _bytes_of(session))

    def _look_at_redis(self) -> tuple[Metric, ...]:
        lengths = queue_lengths(self.redis)
        messages = _gauge("queue_messages", "Messages that wait in a queue.", "stage", "priority")
        for stage in Stage:
            for priority in Priority:
                labels = (stage.value, priority.value)
                messages.add_metric(labels, lengths[queue_name(stage, priority)])
        try:
            memory: Mapping[str, Any] = self.redis.info("memory")
        except redis.ResponseError:  # managed ones forbid it now and then
            memory = {}
        sizes = {
            ("redis_memory_bytes", "Memory that Redis has allocated."): memory.get("used_memory"),
            ("redis_max_memory_bytes", "Memory that Redis may allocate."): (
                memory.get("maxmemory") or memory.get("total_system_memory")
            ),
        }
        told = (_single(*which, size) for which, size in sizes.items() if size is not None)
        return messages, *told


def _look(at: str, take: Callable[[], tuple[Metric, ...]]) -> _Counted:
    started = time.monotonic()
    try:
        metrics = take()
    except Exception as error:
        if isinstance(error, redis.RedisError):
            count_broker_error(error)
        known = isinstance(error, SQLAlchemyError | redis.RedisError)
        log.warning("nothing counted", of=at, detail=str(error), exc_info=None if known else error)
        return _Counted()
    ended = time.monotonic()
    pause_s = (ended - started) / COUNTING_SHARE
    return _Counted(metrics, ended + max(OLD_AFTER_S, 3 * pause_s))


def runs_of(session: Session) -> list[Metric]:
    """Return what stage runs there are, how much audio waits, and for how long."""
    now = session.scalar(select(DbNow())) or 0.0
    groups = session.execute(runs_query()).all()
    given_up = session.scalar(select(Job.id).where(GIVEN_UP).limit(1)) is not None
    paused = session.scalar(select(Job.id).where(PAUSED).limit(1)) is not None
    unwanted = session.execute(_unwanted_query()).all() if given_up else []
    oldest = session.execute(_oldest_query()).all() if given_up or paused else groups
    return [_states(groups), _backlog(groups, unwanted), _ages(oldest, now), _failures(session)]


def runs_query() -> Any:
    """Select numbers, audio and the oldest of all runs. The index alone answers it."""
    return select(
        StageRun.state,
        StageRun.stage,
        StageRun.priority,
        func.count().label("number"),
        func.sum(StageRun.audio_s).label("audio_s"),
        func.min(StageRun.ready_at).label("ready_at"),
    ).group_by(StageRun.state, StageRun.stage, StageRun.priority)


def _unwanted_query() -> Any:
    """Select what of the backlog belongs to jobs that were given up and are being taken apart."""
    return (
        select(
            StageRun.stage,
            StageRun.priority,
            func.count().label("number"),
            func.sum(StageRun.audio_s).label("audio_s"),
        )
        .where(
            StageRun.job_id.in_(select(Job.id).where(GIVEN_UP)),
            StageRun.stage.in_([stage.value for stage in Stage]),
            StageRun.state.in_(UNFINISHED),
        )
        .group_by(StageRun.stage, StageRun.priority)
    )


def _oldest_query() -> Any:
    """Select since when runs wait that are not held back by their job."""
    return (
        select(StageRun.state, StageRun.stage, func.min(StageRun.ready_at).label("ready_at"))
        .join(Job, Job.id == StageRun.job_id)
        .where(StageRun.state.in_(WAITING), GOES_ON, Job.paused_at.is_(None))
        .group_by(StageRun.state, StageRun.stage)
    )


def _states(groups: Rows) -> Metric:
    numbers = {(stage.value, state.value): 0 for stage in Stage for state in RunState}
    for group in groups:
        numbers[group.stage, group.state] += group.number
    metric = _gauge("stage_runs", "Stage runs in a state.", "stage", "state")
    for labels, number in numbers.items():
        metric.add_metric(labels, number)
    return metric


def _backlog(groups: Rows, unwanted: Rows) -> Metric:
    numbers: dict[tuple[str, str], int] = defaultdict(int)
    seconds = {(stage.value, priority.value): 0.0 for stage in Stage for priority in Priority}
    for group in groups:
        if group.state in UNFINISHED:
            numbers[group.stage, group.priority] += group.number
            seconds[group.stage, group.priority] += group.audio_s
    for group in unwanted:
        numbers[group.stage, group.priority] -= group.number
        seconds[group.stage, group.priority] -= group.audio_s
    metric = _gauge(
        "backlog_audio_seconds",
        "Audio of stage runs that have not ended, of jobs that were not given up.",
        "stage",
        "priority",
    )
    for labels, audio_s in seconds.items():
        metric.add_metric(labels, max(0.0, audio_s) if numbers[labels] > 0 else 0.0)
    return metric


def _ages(groups: Rows, now: float) -> Metric:
    ages = {stage.value: 0.0 for stage in Stage}
    for group in groups:
        if group.state in WAITING and group.ready_at is not None:
            ages[group.stage] = max(ages[group.stage], now - group.ready_at)
    metric = _gauge(
        "oldest_ready_age_seconds",
        "How long the stage run has waited that waits longest and is not paused; 0: none waits.",
        "stage",
    )
    for stage, age_s in ages.items():
        metric.add_metric((stage,), age_s)
    return metric


def _failures(session: Session) -> Metric:
    groups = session.execute(
        select(StageRun.stage, StageRun.error_code, func.count().label("number"))
        .where(StageRun.state.in_(AT_FAULT), StageRun.stage.in_([stage.value for stage in Stage]))
        .group_by(StageRun.stage, StageRun.error_code)
        .order_by(func.count().desc(), StageRun.stage, StageRun.error_code)
    ).all()
    numbers: dict[tuple[str, str], int] = defaultdict(int)
    for place, group in enumerate(groups):
        code = group.error_code if place < MOST_CODES and group.error_code else OTHER
        numbers[group.stage, code] += group.number
    metric = _gauge("failed_runs", "Stage runs failed or quarantined.", "stage", "code")
    for labels, number in numbers.items():
        metric.add_metric(labels, number)
    return metric


def jobs_of(session: Session) -> list[Metric]:
    """Return what jobs, sources and deliveries there are."""
    jobs = _gauge("jobs", "Jobs in a state, without deleted ones.", "state")
    counted = _by_state(session, Job.state, KEPT)
    for job_state in JobState:
        jobs.add_metric((job_state.value,), counted.get(job_state.value, 0))
    sources = _gauge("sources", "Sources in a state.", "state")
    counted = _by_state(session, Source.state)
    for source_state in SourceState:
        sources.add_metric((source_state.value,), counted.get(source_state.value, 0))
    pending = select(func.count()).where(WebhookDelivery.state == DeliveryState.PENDING.value)
    return [
        jobs,
        sources,
        _single(
            "jobs_paused", "Jobs of which nothing new is dispatched.", _number(session, PAUSED)
        ),
        _single("jobs_late", "Jobs that will not end before their deadline.", _late(session)),
        _single(
            "webhook_deliveries_pending",
            "Events on their way to a webhook.",
            session.scalar(pending) or 0,
        ),
    ]


def _late(session: Session) -> int:
    now = session.scalar(select(DbNow())) or 0.0
    due = session.execute(
        select(
            Job.created_at,
            Job.deadline_at,
            Job.counted_at,
            Job.rate,
            Job.audio_s_total,
            Job.audio_s_done,
        ).where(GOES_ON, Job.paused_at.is_(None), Job.deadline_at.is_not(None))
    )
    return sum(is_late(job, now) for job in due)


def is_late(job: Any, now: float) -> bool:
    """Return whether a job with a deadline will probably not end before it.

    By its recent speed, like ``eta_s`` of the API. Where nothing of it moves, or nothing is known
    yet: whether less than a tenth is left of the time between its making and its deadline.
    """
    if job.rate and job.counted_at is not None:
        left_s = max(0.0, job.audio_s_total - job.audio_s_done)
        return bool(job.counted_at + left_s / job.rate > job.deadline_at)
    return bool(job.deadline_at - now < LATE_SHARE * (job.deadline_at - job.created_at))


def _bytes_of(session: Session) -> Metric:
    size = session.scalar(text(DATABASE_BYTES[session.connection().dialect.name]))
    return _single("database_bytes", "Size of the database.", size or 0)


def _by_state(session: Session, state: Any, *which: ColumnElement[bool]) -> dict[str, int]:
    numbers = session.execute(select(state, func.count()).where(*which).group_by(state))
    return {row[0]: row[1] for row in numbers}


def _number(session: Session, jobs: ColumnElement[bool]) -> int:
    return session.scalar(select(func.count()).select_from(Job).where(jobs)) or 0


def _gauge(name: str, meaning: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{NAMESPACE}_{name}", meaning, labels=labels)


def _single(name: str, meaning: str, value: float) -> Metric:
    metric = _gauge(name, meaning)
    metric.add_metric((), value)
    return metric
