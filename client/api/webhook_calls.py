"""Calls about webhooks: addresses that are told what happens to jobs."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from client.api.call import IDEMPOTENCY_KEY, Call, Pages, given, nothing
from client.api.records import Delivery, Tested, Webhook
from common.domain import DeliveryState, JobEventKind


def create_webhook(
    url: str,
    *,
    kinds: Iterable[JobEventKind] = (),
    secret: str | None = None,
    idempotency_key: str | None = None,
) -> Call[Webhook]:
    """Have ``url`` told of events, all or those of ``kinds``. The answer alone has the secret."""
    body = {"url": url, "kinds": list(kinds), **given(secret=secret)}
    headers = {IDEMPOTENCY_KEY: idempotency_key or uuid.uuid4().hex}
    return Call("POST", "/v1/webhooks", Webhook.model_validate, json=body, headers=headers)


def webhooks() -> Pages[Webhook]:
    """Yield the webhooks of this key."""
    return Pages("/v1/webhooks", "webhooks", Webhook)


def webhook(webhook_id: str) -> Call[Webhook]:
    """Return a webhook."""
    return Call("GET", f"/v1/webhooks/{webhook_id}", Webhook.model_validate)


def delete_webhook(webhook_id: str) -> Call[None]:
    """Tell this address nothing any more."""
    return Call("DELETE", f"/v1/webhooks/{webhook_id}", nothing)


def test_webhook(webhook_id: str) -> Call[Tested]:
    """Have a test message sent at once and return how it was answered."""
    path = f"/v1/webhooks/{webhook_id}/test"
    return Call("POST", path, Tested.model_validate, repeatable=False)


def deliveries(webhook_id: str, *, state: DeliveryState | None = None) -> Pages[Delivery]:
    """Yield what a webhook was told and is about to be told, newest first."""
    path = f"/v1/webhooks/{webhook_id}/deliveries"
    return Pages(path, "deliveries", Delivery, given(state=state))
