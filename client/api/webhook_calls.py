"""Calls about webhooks: addresses that are told what happens to jobs."""

from __future__ import annotations

from collections.abc import Iterable

from client.api.call import IDEMPOTENCY_KEY, Call, Pages, given, nothing
from client.api.records import Delivery, Webhook
from common.domain import JobEventKind


def create_webhook(
    url: str,
    *,
    kinds: Iterable[JobEventKind] = (),
    secret: str | None = None,
    idempotency_key: str | None = None,
) -> Call[Webhook]:
    """Have ``url`` told of events, all or those of ``kinds``. The answer alone has the secret."""
    body = {"url": url, "kinds": list(kinds), **given(secret=secret)}
    headers = {IDEMPOTENCY_KEY: idempotency_key} if idempotency_key else {}
    return Call(
        "POST",
        "/v1/webhooks",
        Webhook.model_validate,
        json=body,
        headers=headers,
        repeatable=idempotency_key is not None,
    )


def webhooks() -> Pages[Webhook]:
    """Yield the webhooks of this key."""
    return Pages("/v1/webhooks", "webhooks", Webhook)


def delete_webhook(webhook_id: str) -> Call[None]:
    """Tell this address nothing any more."""
    return Call("DELETE", f"/v1/webhooks/{webhook_id}", nothing)


def test_webhook(webhook_id: str) -> Call[None]:
    """Have a test event sent now."""
    return Call("POST", f"/v1/webhooks/{webhook_id}/test", nothing, repeatable=False)


def deliveries(webhook_id: str) -> Pages[Delivery]:
    """Yield what was sent to a webhook, newest first."""
    return Pages(f"/v1/webhooks/{webhook_id}/deliveries", "deliveries", Delivery)
