"""Celery over Redis, set up once for dispatcher and workers.

Redis carries messages and nothing else: no results, no countdowns, no chords, no priorities. A lost
message is found by the dispatcher, a lost worker by its lease, so none of the broker's own
recovery is relied upon.
"""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import redis
from celery import Celery

from common.domain import SERVICE_OF, Priority, queue_name
from common.messages import ShardMessage, task_name
from common.settings import Settings

SOFT_SHUTDOWN_S = 20.0


def kombu_url(redis_url: str) -> str:
    """Return the broker URL that kombu understands for a redis-py URL.

    They differ for Unix sockets: ``unix:///run/redis.sock?db=1`` and
    ``redis+socket:///run/redis.sock?virtual_host=1``.
    """
    parts = urlsplit(redis_url)
    if parts.scheme != "unix":
        return redis_url
    db = parse_qs(parts.query).get("db", ["0"])[0]
    return f"redis+socket://{parts.path}?virtual_host={db}"


def client_name(service: str) -> str:
    """Return the name under which a service's connections appear in Redis' ``CLIENT LIST``."""
    return f"soundmill-{service}"


def make_app(settings: Settings, service: str | None = None) -> Celery:
    """Return the Celery app of a worker service, or of the dispatcher when ``service`` is None.

    A worker listens on its ``<service>.interactive`` queue first, then on ``<service>.bulk``.
    """
    app = Celery(service or "dispatcher", broker=kombu_url(settings.redis_url.get_secret_value()))
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=True,
        task_soft_time_limit=settings.soft_time_limit_s,
        task_time_limit=settings.hard_time_limit_s,
        # A child takes a message only when it is idle. The multiplier must be 0 for that: with 1, a
        # message whose acknowledgement met a dead Redis counts as held for ever, and the worker
        # never asks for another (docs/decisions/0007).
        worker_prefetch_multiplier=0,
        worker_disable_prefetch=True,
        worker_soft_shutdown_timeout=SOFT_SHUTDOWN_S,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": settings.visibility_timeout_s,
            "queue_order_strategy": "priority",
            "socket_keepalive": True,
            "health_check_interval": 10,
            "client_name": client_name(service or "dispatcher"),
        },
    )
    if service is not None:
        app.conf.task_default_queue = f"{service}.{Priority.BULK}"
    return app


def publish(app: Celery, message: ShardMessage, priority: Priority) -> None:
    """Put a shard on its queue.

    Raises:
        kombu.exceptions.OperationalError: when Redis cannot be reached.
    """
    app.send_task(
        task_name(message.stage),
        kwargs={"message": message.model_dump(mode="json")},
        task_id=message.shard_id,  # so that Celery's own log lines name the shard
        queue=queue_name(message.stage, priority),
        retry=False,
        ignore_result=True,
    )


def queue_lengths(client: redis.Redis) -> dict[str, int]:
    """Return the number of waiting messages of every queue."""
    names = [queue_name(stage, priority) for stage in SERVICE_OF for priority in Priority]
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.llen(name)
        return dict(zip(names, pipe.execute(), strict=True))
