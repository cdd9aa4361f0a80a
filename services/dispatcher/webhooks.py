"""Delivers events to webhooks: at least once, in no promised order, each under an id that stays.

A thread of the dispatcher. A delivery is claimed by moving its next attempt behind the time that
this one may take; whoever dies with it leaves it to be sent again. Webhooks take turns, and each
has few deliveries on their way at once, so that a slow one does not hold up the others.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from common import logs, webhooks
from common.db import DbNow, make_engine, make_readers, make_sessions
from common.domain import DeliveryState
from common.settings import Settings
from common.tables import JobEvent, Webhook, WebhookDelivery
from common.webhooks import Answer
from services.dispatcher import observe

log = logs.get_logger(__name__)

IDLE_PAUSE_S = 0.5
OUTAGE_PAUSE_S = 2.0
MOST_AT_ONCE = 32
MOST_PER_WEBHOOK = 4
CLAIM_MARGIN_S = 60.0  # on top of the timeout: names to resolve, an outcome to record
MAX_JITTER = 0.2  # of a pause: those that failed together do not come back together
FINISH_S = 2.0  # for what is on its way when the process is to end
ERROR_LENGTH = 500
GONE = 410
PENDING = WebhookDelivery.state == DeliveryState.PENDING.value


@dataclass(frozen=True)
class Due:
    """A delivery that this process has claimed, and all that is needed to send it."""

    delivery_id: str
    webhook_id: str
    attempt: int  # from 1
    url: str
    secret: str
    message: dict[str, Any]


class Deliverer:
    """Owns the connections of the thread, and knows what is on its way."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine = make_engine(settings)
        self.sessions: sessionmaker[Session] = make_sessions(self.engine)
        self.readers: sessionmaker[Session] = make_readers(self.engine)
        self._under_way: Counter[str] = Counter()  # deliveries per webhook
        self._changed = threading.Condition()

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def run(self, stop: threading.Event) -> None:
        """Send what is due until ``stop`` is set."""
        while not stop.is_set():
            try:
                sent = self.turn()
            except DBAPIError as error:
                log.warning("no deliveries", detail=str(error.orig))
                stop.wait(OUTAGE_PAUSE_S)
                continue
            if not sent:
                with self._changed:  # an end makes room for the next
                    self._changed.wait(IDLE_PAUSE_S)
        self.finish(FINISH_S)

    def turn(self) -> int:
        """Begin to send what is due, as far as there is room; return how much was begun."""
        due = self._claim()
        for one in due:
            with self._changed:
                self._under_way[one.webhook_id] += 1
            # A daemon: a process that is to end does not wait for somebody else's server.
            deliver = partial(copy_context().run, self._deliver, one)
            threading.Thread(target=deliver, name="webhook", daemon=True).start()
        return len(due)

    def finish(self, timeout_s: float) -> None:
        """Wait until nothing is on its way, but not for ever."""
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way.total(), timeout_s)

    def _claim(self) -> list[Due]:
        with self._changed:
            busy = Counter(self._under_way)
        room = MOST_AT_ONCE - busy.total()
        due_now = (PENDING, WebhookDelivery.next_attempt_at <= DbNow())
        with self.readers() as session:
            waiting = session.scalars(
                select(Webhook.id).where(
                    Webhook.disabled_at.is_(None),
                    select(WebhookDelivery.id)
                    .where(WebhookDelivery.webhook_id == Webhook.id, *due_now)
                    .exists(),
                )
            ).all()
        waiting = [webhook_id for webhook_id in waiting if busy[webhook_id] < MOST_PER_WEBHOOK]
        if not waiting or room <= 0:
            return []
        random.shuffle(waiting)
        claimed: list[Due] = []
        with self.sessions.begin() as session:
            for webhook_id in waiting:
                most = min(MOST_PER_WEBHOOK - busy[webhook_id], room - len(claimed))
                rows = session.execute(
                    select(WebhookDelivery, Webhook, JobEvent)
                    .join(Webhook, Webhook.id == WebhookDelivery.webhook_id)
                    .join(JobEvent, JobEvent.id == WebhookDelivery.event_id)
                    .where(WebhookDelivery.webhook_id == webhook_id, *due_now)
                    .order_by(WebhookDelivery.next_attempt_at, WebhookDelivery.event_id)
                    .limit(most)
                    .with_for_update(of=WebhookDelivery, skip_locked=True)
                ).all()
                for delivery, webhook, event in rows:
                    delivery.attempts += 1
                    delivery.next_attempt_at = (
                        DbNow() + self.settings.webhook_timeout_s + CLAIM_MARGIN_S
                    )
                    claimed.append(
                        Due(
                            delivery_id=delivery.id,
                            webhook_id=webhook.id,
                            attempt=delivery.attempts,
                            url=webhook.url,
                            secret=webhook.secret,
                            message=webhooks.payload(event.kind, event.created_at, event.data),
                        )
                    )
        return claimed

    def _deliver(self, due: Due) -> None:
        try:
            self._record(due, self._send(due))
        except DBAPIError as error:  # it is sent again once the claim is over
            log.warning("delivery not recorded", detail=str(error.orig))
        finally:
            with self._changed:
                self._under_way[due.webhook_id] -= 1
                self._changed.notify_all()

    def _send(self, due: Due) -> Answer:
        try:
            answer = webhooks.send(self.settings, due.url, due.secret, due.delivery_id, due.message)
        except Exception as error:  # a fault of ours must not be tried for ever either
            log.error("webhook not sent", webhook_id=due.webhook_id, exc_info=error)
            return Answer(None, type(error).__name__, again=True)
        log.info(
            "webhook failed" if answer.error else "webhook answered",
            webhook_id=due.webhook_id,
            delivery_id=due.delivery_id,
            attempt=due.attempt,
            detail=answer.error,
        )
        return answer

    def _record(self, due: Due, answer: Answer) -> None:
        change: dict[str, Any] = {"status_code": answer.status_code}
        outcome = observe.FAILED
        pauses_s = self.settings.webhook_retries_s
        if answer.error is None:
            outcome = observe.DELIVERED
            change |= {
                "state": DeliveryState.DELIVERED.value,
                "delivered_at": DbNow(),
                "error": None,
            }
        elif answer.again and due.attempt <= len(pauses_s):
            outcome = observe.RETRIED
            pause_s = pauses_s[due.attempt - 1] * random.uniform(1.0, 1.0 + MAX_JITTER)  # noqa: S311
            change |= {"next_attempt_at": DbNow() + pause_s, "error": answer.error[:ERROR_LENGTH]}
        else:
            change |= {
                "state": DeliveryState.FAILED.value,
                "error": answer.error[:ERROR_LENGTH],
            }
        with self.sessions.begin() as session:
            if answer.status_code == GONE:
                _disable(session, due.webhook_id)
            recorded: Any = session.execute(
                update(WebhookDelivery)
                .where(
                    WebhookDelivery.id == due.delivery_id,
                    WebhookDelivery.attempts == due.attempt,
                    PENDING,
                )
                .values(**change)
            )
            given_up = _fail_pending(session, due.webhook_id) if answer.status_code == GONE else 0
        observe.WEBHOOK_DELIVERIES.labels(outcome).inc(recorded.rowcount)
        observe.WEBHOOK_DELIVERIES.labels(observe.FAILED).inc(given_up)


def _disable(session: Session, webhook_id: str) -> None:
    """Send a webhook nothing more: it has said that it is gone."""
    session.execute(
        update(Webhook)
        .where(Webhook.id == webhook_id, Webhook.disabled_at.is_(None))
        .values(disabled_at=DbNow())
    )
    log.warning("webhook disabled", webhook_id=webhook_id)


def _fail_pending(session: Session, webhook_id: str) -> int:
    failed: Any = session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.webhook_id == webhook_id, PENDING)
        .values(state=DeliveryState.FAILED.value, error="the webhook is disabled")
    )
    return int(failed.rowcount)
