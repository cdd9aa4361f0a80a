"""The object store: is the bucket there, are the keys right, can objects be kept in it?"""

from __future__ import annotations

import io
from collections.abc import Callable
from urllib.parse import urlsplit

from common.checks.base import (
    EXIT_CONFIG,
    EXIT_REFUSED,
    Check,
    Clock,
    Found,
    failed,
    ok,
)
from common.db import new_id
from common.errors import DiskFull, SoundmillError, StoreRefused, StoreUnavailable
from common.settings import Settings
from common.storage import ObjectStore, open_store

STORE = "store"
DATE_ERROR_S = 0.5  # of a clock that is told in whole seconds
PROBE = b"Written by a check of Soundmill. It may be deleted.\n"
KEYS = "Set SOUNDMILL_S3_ACCESS_KEY and SOUNDMILL_S3_SECRET_KEY as the S3 server knows them."
ENDPOINT = "Look at SOUNDMILL_S3_ENDPOINT (host:port, without http://) and SOUNDMILL_S3_SECURE."
MAKE_BUCKET = "The gateway makes it when it starts, if its key may; else make it by hand."
REGION = "Set SOUNDMILL_S3_REGION to the region of the bucket."
CLOCK = "Set this machine's clock by NTP: S3 servers refuse what is signed minutes off."
WORDS = {
    "ConnectTimeoutError": "no answer",
    "ReadTimeoutError": "no answer",
    "NewConnectionError": "nothing listens there",
    "NameResolutionError": "the name is not known",
    "SSLError": "it speaks no TLS, or its certificate is not trusted",
    "InvalidResponseError": "what answers is no S3 server",
    "ServerError": "what answers is in trouble, or no S3 server",
}


class StoreLook:
    """Looks at the store of the settings.

    Args:
        deep: Also write, read and delete a small object.
        now: This machine's clock, seconds since 1970.
    """

    def __init__(self, settings: Settings, deep: bool, now: Callable[[], float]) -> None:
        self._settings = settings
        self._deep = deep
        self._now = now
        self._store: ObjectStore | None = None

    def __call__(self) -> Found:
        is_s3 = self._settings.store_url.startswith("s3:")
        if is_s3 and not self._settings.s3_access_key.get_secret_value():
            return Found((failed(STORE, "no access key is set", KEYS, EXIT_CONFIG),))
        try:
            if self._store is None:
                self._store = open_store(self._settings)
        except ValueError as error:
            advice = ENDPOINT if is_s3 else "Set SOUNDMILL_STORE_URL: s3://bucket or file:///path."
            return Found((failed(STORE, str(error), advice, EXIT_CONFIG),))
        before, theirs = self._now(), None
        try:
            theirs = self._store.check()
            after = self._now()
            check = self._probe(self._store) if self._deep else ok(STORE, f"answers, {self._where}")
        except StoreRefused as error:
            after, theirs = self._now(), error.store_time_s
            check = self._refusal(error)
        except StoreUnavailable as error:
            return Found((self._outage(error),))
        if theirs is None:
            return Found((check,))
        ahead_s = (before + after) / 2 - (theirs + DATE_ERROR_S)
        return Found((check,), Clock(STORE, ahead_s, (after - before) / 2 + DATE_ERROR_S))

    @property
    def _where(self) -> str:
        parts = urlsplit(self._settings.store_url)
        if parts.scheme == "s3":
            return f"bucket {parts.netloc} at {self._settings.s3_endpoint}"
        return f"folder {parts.path}"

    def _probe(self, store: ObjectStore) -> Check:
        """Write, read and delete an object."""
        key = f"checks/{new_id()}"
        doing = "written"
        try:
            store.put_stream(key, io.BytesIO(PROBE), "text/plain")
            doing = "read back"
            with store.open(key) as blocks:
                whole = b"".join(blocks) == PROBE
            doing = "deleted"
            store.delete(key)
        except DiskFull:
            return failed(STORE, f"{self._where} is full", "Make room, or delete old jobs.")
        except SoundmillError as error:
            detail = f"an object cannot be {doing} in {self._where} ({error})"
            return failed(STORE, detail, "The key must be allowed to put, get, list and delete.")
        if not whole:
            return failed(STORE, f"{self._where} gives back other bytes than it was given")
        return ok(STORE, f"keeps objects, {self._where}")

    def _refusal(self, error: StoreRefused) -> Check:
        reason, where = error.reason, self._where
        if reason == "NoSuchBucket":
            return failed(STORE, str(error), MAKE_BUCKET, passes=True)
        if reason == "RequestTimeTooSkewed":
            return failed(
                STORE, f"{where} refuses: this machine's clock is off", CLOCK, passes=True
            )
        if reason in ("AuthorizationHeaderMalformed", "PermanentRedirect", "InvalidRegion"):
            return failed(STORE, f"{where} is in another region", REGION, EXIT_CONFIG)
        if reason == "SignatureDoesNotMatch":
            detail = f"{where} refuses the secret key: it does not fit the access key"
            return failed(STORE, detail, KEYS, EXIT_REFUSED)
        if reason in ("InvalidAccessKeyId", "InvalidToken", "ExpiredToken"):
            detail = f"{where} does not know the access key ({reason})"
            return failed(STORE, detail, KEYS, EXIT_REFUSED)
        if reason in ("AccessDenied", "AllAccessDisabled", "AccountProblem"):
            advice = f"Allow the key to list, get, put and delete there. {KEYS}"
            return failed(STORE, f"{where} lets the key not in ({reason})", advice, EXIT_REFUSED)
        return failed(STORE, f"{where} refuses ({reason})", ENDPOINT, passes=True)

    def _outage(self, error: StoreUnavailable) -> Check:
        if not self._settings.store_url.startswith("s3:"):
            advice = "Make the folder, or mount it, and give it to this user."
            return failed(STORE, str(error), advice, passes=True)
        kind = str(error).partition(" ")[0]
        return failed(STORE, f"{self._where}: {WORDS.get(kind, kind)}", ENDPOINT, passes=True)
