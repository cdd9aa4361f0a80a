"""Settings that cannot all be meant, or that name what is not there."""

from __future__ import annotations

import difflib
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from client.doctor.sections import warning
from common.checks import Check
from common.checks.base import failed, ok
from common.errors import StoreUnavailable
from common.settings import Settings
from common.storage import open_store

CONNECT_TIMEOUT_S = 3.0
SHORT_LEASE_S = 5.0
PREFIX = "SOUNDMILL_"
OTHER_NAMES = frozenset({"API_KEY", "URL", "STACK_ID"})  # of the client and the supervisor


def checks(settings: Settings, environment: Mapping[str, str] = os.environ) -> list[Check]:
    """Return what is strange, or that nothing is."""
    found = [
        *misspelt(environment),
        *times(settings),
        *sharing(settings),
        *imports(settings),
        *public_endpoint(settings),
    ]
    return found or [ok("settings", "nothing contradicts")]


def misspelt(environment: Mapping[str, str]) -> Iterator[Check]:
    """Yield variables that look like settings and are none."""
    known = {name.upper() for name in Settings.model_fields}
    for variable in sorted(environment):
        name = variable.removeprefix(PREFIX)
        if name == variable or name in known | OTHER_NAMES:
            continue
        longer = sorted(setting for setting in known if setting.startswith(name))
        close = longer or difflib.get_close_matches(name, known, 1)
        advice = f"Is {PREFIX}{close[0]} meant?" if close else "Remove it."
        yield warning("settings", f"{variable} is set, but there is no such setting", advice)


def times(settings: Settings) -> Iterator[Check]:
    """Yield times that do not fit each other."""
    soft, hard = settings.soft_time_limit_s, settings.hard_time_limit_s
    if hard <= soft:
        detail = f"hard_time_limit_s ({hard}) is not above soft_time_limit_s ({soft})"
        advice = "Leave a minute between: a worker gives back its work between the two."
        yield failed("time_limits", detail, advice)
    if settings.lease_s < SHORT_LEASE_S:
        detail = f"lease_s is {settings.lease_s:g}: a busy worker is taken for dead"
        yield warning("lease", detail, "30 is a good value.")
    if settings.lease_s > hard:
        detail = f"lease_s ({settings.lease_s:g}) is above hard_time_limit_s ({hard})"
        yield warning("lease", detail, "What a dead worker held waits as long; 30 is a good value.")
    longest = settings.max_duration_s
    if soft < longest / 10:
        detail = f"soft_time_limit_s ({soft}) is short for recordings of up to {longest / 3600:g} h"
        yield warning("time_limits", detail, "Raise it, or lower max_duration_s.")
    if settings.webhook_timeout_s > min(settings.webhook_retries_s, default=60.0) * 10:
        yield warning("webhooks", "webhook_timeout_s is far above the first pause between tries")


def sharing(settings: Settings) -> Iterator[Check]:
    """Yield places that only processes on one machine can share."""
    is_file = urlsplit(settings.store_url).scheme == "file"
    is_sqlite = settings.database_url.get_secret_value().startswith("sqlite")
    if settings.embedded:
        return
    if is_sqlite:
        detail = "SQLite serves processes on one machine alone"
        yield warning("database_url", detail, "Use PostgreSQL where there are several machines.")
    if is_file and not is_sqlite:
        detail = "a directory store must be the same folder for every process"
        yield warning("store_url", detail, "Use an S3 server where there are several machines.")
    if is_file and settings.s3_public_endpoint:
        detail = "s3_public_endpoint is set, but the store is a directory"
        yield warning("s3_public_endpoint", detail, "Remove it: everything goes by the gateway.")


def imports(settings: Settings) -> Iterator[Check]:
    """Yield buckets and folders for sources that are not there."""
    for bucket in filter(None, (part.strip() for part in settings.import_buckets.split(","))):
        try:
            open_store(settings.model_copy(update={"store_url": f"s3://{bucket}"})).check()
        except (StoreUnavailable, ValueError) as error:
            detail = f"{bucket} cannot be listed ({error})"
            yield warning("import_buckets", detail, "The key must be allowed to list and get.")
    for folder in filter(None, (part.strip() for part in settings.import_roots.split(","))):
        if not Path(folder).is_dir():
            detail = f"{folder} is no folder here"
            advice = "The ingester must see it: mount it there. Here it need not be."
            yield warning("import_roots", detail, advice)


def public_endpoint(settings: Settings) -> Iterator[Check]:
    """Yield whether clients would reach the store, as far as it can be told from here."""
    endpoint = settings.s3_public_endpoint
    if not endpoint or urlsplit(settings.store_url).scheme != "s3":
        return
    parts = urlsplit(f"//{endpoint}")
    try:
        port = parts.port or (443 if settings.s3_secure else 80)
        socket.create_connection((parts.hostname or "", port), CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        detail = f"{endpoint} cannot be reached from here ({why})"
        advice = "Clients send and fetch large files there: try it from where they are."
        yield warning("s3_public_endpoint", detail, advice)
    else:
        yield ok("s3_public_endpoint", f"{endpoint} answers")
