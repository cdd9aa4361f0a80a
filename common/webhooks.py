"""One message to a webhook: signed, sent, and how it was answered.

Source: Standard Webhooks (standardwebhooks.com), version 1.0.0: headers ``webhook-id``,
``webhook-timestamp``, ``webhook-signature``; symmetric secrets ``whsec_`` + base64.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from standardwebhooks import Webhook as Signer

from common import egress
from common.errors import TransientError, UrlForbidden, UrlUnreachable
from common.settings import Settings

SECRET_PREFIX = "whsec_"  # noqa: S105  # what a secret begins with
SECRET_BYTES = 32
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64  # as the source has it


@dataclass(frozen=True)
class Answer:
    """How one attempt to deliver a message ended.

    ``status_code`` is None when there was no answer. ``error`` is None when it was delivered;
    ``again`` tells whether sending it again can help.
    """

    status_code: int | None
    error: str | None = None
    again: bool = False


def new_secret() -> str:
    """Return a secret that nobody can guess."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def check_secret(secret: str) -> str:
    """Return a secret as it is. Raises ValueError when it does not have the form of one."""
    try:
        if not secret.startswith(SECRET_PREFIX):
            raise ValueError
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (ValueError, binascii.Error):
        raise ValueError(f"a secret is {SECRET_PREFIX} followed by base64") from None
    if not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        raise ValueError(f"a secret holds {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes")
    return secret


def payload(kind: str, at: float, data: dict[str, Any]) -> dict[str, Any]:
    """Return what is told about an event, over webhooks and server-sent events alike.

    Args:
        at: When it happened, in seconds since 1970.
    """
    timestamp = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return {"type": kind, "timestamp": timestamp.replace("+00:00", "Z"), "data": data}


def send(
    settings: Settings, url: str, secret: str, message_id: str, message: dict[str, Any]
) -> Answer:
    """Send a message once. Redirects are not followed; whatever happens is an Answer."""
    body = json.dumps(message, separators=(",", ":"))
    now = datetime.now(UTC)
    headers = {
        "Content-Type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Signer(secret).sign(message_id, now, body),
    }
    try:
        with egress.request(
            settings,
            "POST",
            url,
            headers=headers,
            content=body.encode(),
            timeout_s=settings.webhook_timeout_s,
        ) as response:
            status = response.status
    except (UrlForbidden, UrlUnreachable) as error:
        return Answer(None, f"{error.code}: {error}", again=isinstance(error, TransientError))
    if 200 <= status < 300:
        return Answer(status)
    return Answer(status, f"answered with {status}", again=not 400 <= status < 500)
