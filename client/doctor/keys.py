"""Can somebody use the gateway, and nobody else?"""

from __future__ import annotations

from ipaddress import ip_address

from sqlalchemy.orm import Session

from client.doctor.sections import warning
from common import keys
from common.checks import Check
from common.checks.base import failed, ok
from common.settings import Settings

MAKE = "Make one: `soundmill keys create NAME`."


def check(session: Session, settings: Settings) -> Check:
    """Return whether there is a key where one is needed."""
    if settings.embedded and is_loopback(settings.host):
        return ok("keys", "none is needed: only this machine reaches the gateway")
    if keys.has_active(session):
        return ok("keys", "there is at least one that can be used")
    if is_loopback(settings.host):
        return warning("keys", "there is none that can be used, so nobody may do anything", MAKE)
    detail = f"there is none, and on {settings.host} the gateway does not start without"
    return failed("keys", detail, MAKE)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
