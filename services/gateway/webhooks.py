"""Webhooks of a caller: add, look at, test, remove. The dispatcher sends what they are told."""

from __future__ import annotations

import time
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session, sessionmaker

from common import webhooks
from common.addresses import check_url
from common.db import new_id
from common.domain import DeliveryState, JobEventKind
from common.errors import Conflict, NotFound
from common.settings import Settings
from common.tables import JobEvent, Webhook, WebhookDelivery
from common.webhooks import check_secret, new_secret
from services.gateway import cursors
from services.gateway.access import Caller
from services.gateway.idempotency import Once
from services.gateway.schemas import Out, Time

MAX_URL_LENGTH = 2_048
MAX_SECRET_LENGTH = 128
MOST_WEBHOOKS = 20  # of one owner: each costs a row per event
TEST = "webhook.test"

Sessions = sessionmaker[Session]
Secret = Annotated[str, Field(max_length=MAX_SECRET_LENGTH), AfterValidator(check_secret)]


class WebhookRequest(BaseModel):
    """Where to send what happens to the caller's jobs.

    ``kinds`` are the events to send; none: all. ``secret``, ``whsec_`` and the base64 of 24 to 64
    bytes, signs the messages; one is made where none is given.
    """

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, Field(min_length=1, max_length=MAX_URL_LENGTH)]
    kinds: set[JobEventKind] = Field(default_factory=set)
    secret: Secret | None = None


class WebhookOut(Out):
    """A webhook. One with ``disabled_at`` has answered 410 and is told nothing more."""

    id: str
    url: str
    kinds: list[JobEventKind]
    created_at: Time
    disabled_at: Time | None


class NewWebhookOut(WebhookOut):
    """A webhook that was just made: its secret is shown here and never again."""

    secret: str


class WebhookList(BaseModel):
    """All webhooks of the caller."""

    webhooks: list[WebhookOut]


class WebhookTestOut(BaseModel):
    """How a webhook answered to a message of type ``webhook.test``.

    ``status_code`` is null when it did not answer; ``error`` says why it was not delivered.
    """

    delivered: bool
    status_code: int | None
    error: str | None


class DeliveryOut(Out):
    """One event on its way to a webhook. ``id`` is the message's ``webhook-id``."""

    id: str
    kind: JobEventKind
    job_id: str
    happened_at: Time
    state: DeliveryState
    attempts: int
    next_attempt_at: Time | None
    status_code: int | None
    error: str | None
    delivered_at: Time | None


class DeliveryPage(BaseModel):
    """Deliveries, newest first. ``next_cursor`` asks for the page after this one."""

    deliveries: list[DeliveryOut]
    next_cursor: str | None


def add_webhook(
    sessions: Sessions, settings: Settings, caller: Caller, request: WebhookRequest, once: Once
) -> str:
    """Add a webhook; return its id.

    Raises:
        UrlForbidden: no http or https URL, or the address of a place that is not public.
        Conflict: the caller has as many as it may have.
    """
    check_url(settings, request.url)
    webhook_id = new_id()
    with sessions.begin() as session:
        once.claim(session, webhook_id, request.model_dump(mode="json"))
        mine = Webhook.owner.is_(None) if caller.owner is None else Webhook.owner == caller.owner
        if (session.scalar(select(func.count()).where(mine)) or 0) >= MOST_WEBHOOKS:
            raise Conflict(f"a key has at most {MOST_WEBHOOKS} webhooks")
        session.add(
            Webhook(
                id=webhook_id,
                owner=caller.owner,
                url=request.url,
                secret=request.secret or new_secret(),
                kinds=sorted(request.kinds),
            )
        )
    return webhook_id


def get_new_webhook(session: Session, caller: Caller, webhook_id: str) -> NewWebhookOut:
    """Return a webhook with its secret, for whoever makes it."""
    return NewWebhookOut.model_validate(_own(session, caller, webhook_id))


def get_webhook(session: Session, caller: Caller, webhook_id: str) -> WebhookOut:
    """Return a webhook. Raises NotFound."""
    return WebhookOut.model_validate(_own(session, caller, webhook_id))


def list_webhooks(session: Session, caller: Caller) -> WebhookList:
    """Return the webhooks of the caller, oldest first."""
    found = session.scalars(select(Webhook).where(caller.owns(Webhook.owner)).order_by(Webhook.id))
    return WebhookList(webhooks=[WebhookOut.model_validate(webhook) for webhook in found])


def remove_webhook(sessions: Sessions, caller: Caller, webhook_id: str) -> None:
    """Remove a webhook with all of its deliveries. Raises NotFound."""
    with sessions.begin() as session:
        webhook = _own(session, caller, webhook_id, lock=True)
        session.execute(delete(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook_id))
        session.delete(webhook)


def send_test(
    readers: Sessions, settings: Settings, caller: Caller, webhook_id: str
) -> WebhookTestOut:
    """Send a webhook a message at once and tell how it answered. Raises NotFound."""
    with readers() as session:
        webhook = _own(session, caller, webhook_id)
    message = webhooks.payload(TEST, time.time(), {"webhook_id": webhook_id})
    answer = webhooks.send(settings, webhook.url, webhook.secret, new_id(), message)
    return WebhookTestOut(
        delivered=answer.error is None, status_code=answer.status_code, error=answer.error
    )


def list_deliveries(
    session: Session,
    caller: Caller,
    webhook_id: str,
    state: DeliveryState | None,
    cursor: str | None,
    limit: int,
) -> DeliveryPage:
    """Return a page of what a webhook is told, newest first.

    Raises:
        NotFound: no such webhook.
        Problem: the cursor was not made here.
    """
    _own(session, caller, webhook_id)
    query = (
        select(WebhookDelivery, JobEvent)
        .join(JobEvent, JobEvent.id == WebhookDelivery.event_id)
        .where(WebhookDelivery.webhook_id == webhook_id)
        .order_by(WebhookDelivery.event_id.desc())
        .limit(limit + 1)
    )
    if state is not None:
        query = query.where(WebhookDelivery.state == state.value)
    if cursor is not None:
        query = query.where(WebhookDelivery.event_id < cursors.decode_position(cursor))
    found = session.execute(query).all()
    page = found[:limit]
    more = len(found) > limit
    return DeliveryPage(
        deliveries=[_delivery_out(delivery, event) for delivery, event in page],
        next_cursor=cursors.encode(str(page[-1][1].id)) if more else None,
    )


def _own(session: Session, caller: Caller, webhook_id: str, *, lock: bool = False) -> Webhook:
    webhook = session.get(Webhook, webhook_id, with_for_update=True if lock else None)
    if webhook is None or not (caller.sees_all or webhook.owner == caller.owner):
        raise NotFound(f"no webhook {webhook_id}")
    return webhook


def _delivery_out(delivery: WebhookDelivery, event: JobEvent) -> DeliveryOut:
    return DeliveryOut.model_validate(
        {
            **{name: getattr(delivery, name) for name in ("id", "state", "attempts", "error")},
            "kind": event.kind,
            "job_id": event.job_id,
            "happened_at": event.created_at,
            "next_attempt_at": (
                delivery.next_attempt_at if delivery.state == DeliveryState.PENDING else None
            ),
            "status_code": delivery.status_code,
            "delivered_at": delivery.delivered_at,
        }
    )
