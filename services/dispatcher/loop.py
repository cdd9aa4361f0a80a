"""The dispatcher's turn, again and again: recover, end, dispatch, count.

Every step is its own short transaction. When the database or Redis does not answer, the turn is
given up and tried again; nothing is kept in memory that a new dispatcher would miss.
"""

from __future__ import annotations

import threading
import time

import redis
from celery import Celery
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from common import logs
from common.broker import make_app, publish, queue_lengths
from common.db import make_engine, make_readers, make_sessions
from common.domain import STAGE_NEEDS, Priority, Stage
from common.messages import ShardMessage
from common.metrics import count_broker_error
from common.monitor import Pulse
from common.settings import Settings
from services.dispatcher import counters, lifecycle, observe, recovery, shards

log = logs.get_logger(__name__)

OUTAGE_PAUSE_S = 1.0
TURN_WITHIN_S = 300.0  # a turn that takes longer hangs: SQLite alone makes writers wait for 60 s
COUNTING_SHARE = 0.1  # at most this share of the time goes into counting


class Dispatcher:
    """Owns the connections and the little that is remembered between turns."""

    def __init__(self, settings: Settings) -> None:
        self.engine = make_engine(settings)
        self.settings = settings
        self.sessions: sessionmaker[Session] = make_sessions(self.engine)
        self.readers: sessionmaker[Session] = make_readers(self.engine)
        self.app: Celery = make_app(settings)
        self.redis = redis.Redis.from_url(settings.redis_url.get_secret_value())
        self.turns = {stage: shards.Turns() for stage in Stage}
        self.rates = counters.Rates()
        self.empty_queues = recovery.EmptyQueues()
        self.count_again_at = 0.0
        self.pulse = Pulse("the dispatcher", TURN_WITHIN_S)

    def close(self) -> None:
        """Close every connection."""
        self.app.close()
        self.redis.close()
        self.engine.dispose()

    def run(self, stop: threading.Event) -> None:
        """Take turns until ``stop`` is set."""
        while not stop.is_set():
            self.pulse.beat()
            try:
                with observe.TURN_SECONDS.time():
                    published = self.turn()
            except (DBAPIError, redis.RedisError, BrokerError) as error:
                log.warning("turn given up", error=type(error).__name__, detail=str(error))
                _count_failure(error)
                stop.wait(OUTAGE_PAUSE_S)
                continue
            if not published:
                stop.wait(self.settings.dispatch_interval_s)

    def turn(self) -> int:
        """Recover, end, dispatch and, when it is time, count; return the shards published."""
        self.recover()
        lifecycle.expire_jobs(self.readers, self.sessions)
        lifecycle.end_jobs(self.readers, self.sessions)
        published = sum(self.dispatch(stage) for stage in reversed(STAGE_NEEDS))
        if time.monotonic() >= self.count_again_at:
            self.count()
        return published

    def recover(self) -> None:
        """Take back what was lost."""
        empty = self.empty_queues.longer_than(
            queue_lengths(self.redis), self.settings.lost_message_grace_s
        )
        with self.readers() as session:
            if not recovery.anything_lost(session, empty, self.settings):
                return
        with self.sessions.begin() as session:
            leases = recovery.recover_leases(session, self.settings)
            messages = recovery.recover_messages(session, empty, self.settings)
        observe.add(observe.LEASES_EXPIRED, leases.expired)
        observe.add(observe.QUARANTINED, leases.quarantined)
        observe.add(observe.MESSAGES_LOST, messages)
        if leases.expired or messages:
            log.warning(
                "taken back",
                expired_leases=leases.expired.total(),
                lost_messages=messages.total(),
            )

    def dispatch(self, stage: Stage) -> int:
        """Fill the queues of one stage, keys and jobs in turn; return the shards published."""
        published = 0
        with self.readers() as session:
            waiting = {p: shards.waiting_jobs(session, stage, p) for p in Priority}
            places = (
                shards.free_places(session, stage, self.settings) if any(waiting.values()) else {}
            )
        for priority in Priority:
            jobs = {job.job_id: job for job in waiting[priority]}
            while jobs and places[priority] > 0:
                job = self.turns[stage].next(jobs.values())
                if self._publish_next(job.job_id, stage, priority):
                    self.turns[stage].served(job)
                    places[priority] -= 1
                    published += 1
                else:
                    del jobs[job.job_id]
        return published

    def _publish_next(self, job_id: str, stage: Stage, priority: Priority) -> bool:
        with self.sessions.begin() as session:
            shard = shards.take_shard(session, job_id, stage, priority, self.settings)
        if shard is None:
            return False
        try:
            publish(self.app, ShardMessage(shard_id=shard.id, stage=stage), priority)
        except (BrokerError, redis.RedisError):
            with self.sessions.begin() as session:
                recovery.return_shard(session, shard.id)
            raise
        observe.note_shard(shard, self.settings)
        log.info(
            "shard published",
            shard_id=shard.id,
            stage=stage,
            priority=priority,
            job_id=job_id,
            runs=len(shard.stage_run_ids),
            audio_s=round(shard.audio_s, 1),
        )
        return True

    def count(self) -> None:
        """Refresh the counters of active jobs; the next time depends on how long it took."""
        started = time.monotonic()
        with self.readers() as session:
            stale = counters.stale_jobs(session)
        for job_id in stale:
            counters.count_job(self.readers, self.sessions, job_id, self.rates)
        took_s = time.monotonic() - started
        pause_s = max(self.settings.count_interval_s, took_s / COUNTING_SHARE)
        self.count_again_at = time.monotonic() + pause_s


def _count_failure(error: Exception) -> None:
    if isinstance(error, DBAPIError):
        observe.TURNS_FAILED.labels(observe.DATABASE).inc()
    else:
        observe.TURNS_FAILED.labels(observe.BROKER).inc()
        count_broker_error(error)
