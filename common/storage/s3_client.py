"""The connection to an S3 server: clients, time-outs, retries, and its errors as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from xml.etree.ElementTree import ParseError

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error
from urllib3.exceptions import HTTPError

from common.errors import Conflict, DiskFull, NotFound, StoreRefused, StoreUnavailable
from common.settings import Settings

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
RETRIES = 3
CONNECTIONS = 64
INSUFFICIENT_STORAGE = 507
MISSING = frozenset({"NoSuchKey", "NoSuchUpload"})
WRONG_PARTS = frozenset({"InvalidPart", "InvalidPartOrder", "EntityTooSmall"})


class PastTheEnd(Exception):
    """The stretch asked for begins past the end of the object."""


def make_pool() -> urllib3.PoolManager:
    """Return the connections of one store. Connects to nothing yet."""
    return urllib3.PoolManager(
        maxsize=CONNECTIONS,
        timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
        retries=urllib3.Retry(
            total=RETRIES,
            backoff_factor=0.2,
            status_forcelist=(500, 502, 503, 504),
            allowed_methods=None,  # each call has the same effect when repeated
            raise_on_status=False,
        ),
    )


def make_client(settings: Settings, endpoint: str, pool: urllib3.PoolManager) -> Minio:
    """Return a client of the server at ``endpoint`` (host:port). Connects to nothing yet."""
    return Minio(
        endpoint,
        access_key=settings.s3_access_key.get_secret_value(),
        secret_key=settings.s3_secret_key.get_secret_value(),
        region=settings.s3_region,
        secure=settings.s3_secure,
        http_client=pool,
    )


def refusal(response: urllib3.BaseHTTPResponse) -> Exception:
    """Return the error that a response with a bad status stands for."""
    try:
        return S3Error.fromxml(response)
    except (ParseError, ValueError):  # not from the server itself, but from something before it
        return StoreUnavailable(f"the object store answers with status {response.status}")


@contextmanager
def s3_errors(doing: str) -> Iterator[None]:
    """Turn the errors of the client into those of our tree."""
    try:
        yield
    except S3Error as error:
        if error.code in MISSING:
            raise NotFound(f"nothing there while {doing}") from error
        if error.code in WRONG_PARTS:
            raise Conflict(f"{error.code} ({error.message}) while {doing}") from error
        if error.code == "InvalidRange":
            raise PastTheEnd from error
        if error.response.status == INSUFFICIENT_STORAGE:
            raise DiskFull(f"the object store is full while {doing}") from error
        told = f"{error.code} ({error.message}) while {doing}"
        if error.response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise StoreUnavailable(told) from error
        raise StoreRefused(error.code or "", told, time_of(error.response)) from error
    except (MinioException, HTTPError) as error:
        # What urllib3 gave up for says more, and its text would name the signed address.
        reason = getattr(error, "reason", None) or error
        raise StoreUnavailable(f"{type(reason).__name__} while {doing}") from error


def time_of(response: urllib3.BaseHTTPResponse) -> float | None:
    """Return the time that a server put on its answer: seconds since 1970, rounded down."""
    try:
        return parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None
