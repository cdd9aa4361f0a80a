"""Webhooks: who is told what happens to jobs."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Annotated

from anyio import to_thread
from fastapi import Path, Request, Response

from common.domain import DeliveryState
from services.gateway import webhooks
from services.gateway.access import Reader, Submitter
from services.gateway.bodies import Body
from services.gateway.context import Around, Cursor, Limit, new_router
from services.gateway.idempotency import Idempotent
from services.gateway.json_bodies import described, read_model
from services.gateway.webhooks import (
    DeliveryPage,
    NewWebhookOut,
    WebhookList,
    WebhookOut,
    WebhookRequest,
    WebhookTestOut,
)

MAX_JSON_BYTES = 16 << 10
WebhookId = Annotated[str, Path(max_length=64)]

router = new_router()


@router.post("/webhooks", status_code=HTTPStatus.CREATED, openapi_extra=described(WebhookRequest))
async def post_webhook(
    request: Request, response: Response, around: Around, caller: Submitter, once: Idempotent
) -> NewWebhookOut:
    """Have a URL told what happens to jobs, by the rules of Standard Webhooks.

    The `secret` in the answer verifies the messages; it is not shown again. A message is sent until
    it is answered with 2xx, for some days, but not again after 4xx; 410 disables the webhook. It
    may arrive twice, under the same `webhook-id`, and not in order.
    """

    def add(body: Body) -> NewWebhookOut:
        wanted = read_model(body, WebhookRequest, MAX_JSON_BYTES)
        webhook_id = once.make(
            partial(webhooks.add_webhook, around.sessions, around.settings, caller, wanted, once)
        )
        with around.readers() as session:
            return webhooks.get_new_webhook(session, caller, webhook_id)

    made = await around.receiver.run(Body(request, around.receiver), add)
    response.headers["Location"] = f"/v1/webhooks/{made.id}"
    return made


@router.get("/webhooks")
def list_webhooks(around: Around, caller: Reader) -> WebhookList:
    """List webhooks, oldest first."""
    with around.readers() as session:
        return webhooks.list_webhooks(session, caller)


@router.get("/webhooks/{webhook_id}")
def get_webhook(around: Around, caller: Reader, webhook_id: WebhookId) -> WebhookOut:
    """Return a webhook."""
    with around.readers() as session:
        return webhooks.get_webhook(session, caller, webhook_id)


@router.delete("/webhooks/{webhook_id}", status_code=HTTPStatus.NO_CONTENT)
def delete_webhook(around: Around, caller: Submitter, webhook_id: WebhookId) -> None:
    """Remove a webhook. What is still on its way to it is not sent any more."""
    webhooks.remove_webhook(around.sessions, caller, webhook_id)


@router.post("/webhooks/{webhook_id}/test")
async def test_webhook(around: Around, caller: Submitter, webhook_id: WebhookId) -> WebhookTestOut:
    """Send a webhook a message of type `webhook.test` at once and tell how it answered."""
    send = partial(webhooks.send_test, around.readers, around.settings, caller, webhook_id)
    return await to_thread.run_sync(send, limiter=around.calls)


@router.get("/webhooks/{webhook_id}/deliveries")
def list_deliveries(
    around: Around,
    caller: Reader,
    webhook_id: WebhookId,
    state: DeliveryState | None = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> DeliveryPage:
    """List what a webhook was told and is about to be told, newest first."""
    with around.readers() as session:
        return webhooks.list_deliveries(session, caller, webhook_id, state, cursor, limit)
