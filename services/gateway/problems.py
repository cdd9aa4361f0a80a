"""Every error as a problem document (RFC 9457) with a stable code.

The tree of ``common.errors`` is mapped to HTTP here, and so are the errors of the framework and of
the database. Only HTTP's own problems have a class here.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import iter_route_contexts
from sqlalchemy.exc import DataError, InterfaceError, OperationalError, TimeoutError
from starlette.exceptions import HTTPException

from common import logs
from common.errors import (
    ArtifactInvalid,
    Conflict,
    DiskFull,
    KeyRefused,
    NotFound,
    ObjectTooLarge,
    PermanentError,
    QuotaExceeded,
    SoundmillError,
    TransientError,
)

log = logs.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5
MAX_DETAIL_LENGTH = 2_000  # what was sent may be named in it, and that may be long
MAX_FIELD_LENGTH = 200
MAX_FAULTS = 20
DATABASE_FULL = ("disk is full", "No space left on device")  # SQLite, PostgreSQL
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="soundmill"'}

STATUS_OF: dict[type[SoundmillError], HTTPStatus] = {  # the first that fits counts
    NotFound: HTTPStatus.NOT_FOUND,
    Conflict: HTTPStatus.CONFLICT,
    QuotaExceeded: HTTPStatus.FORBIDDEN,
    KeyRefused: HTTPStatus.UNAUTHORIZED,
    ObjectTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ArtifactInvalid: HTTPStatus.INTERNAL_SERVER_ERROR,
    PermanentError: HTTPStatus.UNPROCESSABLE_ENTITY,
    DiskFull: HTTPStatus.INSUFFICIENT_STORAGE,
    TransientError: HTTPStatus.SERVICE_UNAVAILABLE,
}
DETAIL_OF = {  # of the framework's own errors
    HTTPStatus.NOT_FOUND: "There is nothing at this address.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This address does not take this method.",
}


class Problem(Exception):
    """A problem of HTTP itself. ``extra`` becomes members of the document."""

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})
        self.extra = extra


def invalid(code: str, detail: str) -> Problem:
    """Return the problem of a request that is well formed but cannot be followed."""
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, code, detail)


def too_large(limit_bytes: int) -> Problem:
    """Return the problem of a body that is longer than allowed."""
    return Problem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", f"More than {limit_bytes} bytes."
    )


def respond(request: Request, problem: Problem) -> Response:
    """Return the response for a problem."""
    request_id = getattr(request.state, "request_id", "")
    status = problem.status
    document = {
        "type": f"urn:soundmill:problem:{problem.code}",
        "title": status.phrase,
        "status": status.value,
        "detail": str(problem)[:MAX_DETAIL_LENGTH],
        "instance": request.url.path,
        "code": problem.code,
        "request_id": request_id,
        **problem.extra,
    }
    headers = dict(problem.headers)
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers.setdefault("Retry-After", str(RETRY_AFTER_S))
    return JSONResponse(
        jsonable_encoder(document), status.value, headers=headers, media_type=MEDIA_TYPE
    )


def internal_error() -> Problem:
    """Return the problem of an error that nobody foresaw. The log has the rest."""
    return Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "internal_error",
        "Something went wrong here. The log has it under the request_id.",
    )


def install(app: FastAPI) -> None:
    """Answer every error of ``app`` with a problem document."""
    for kind in (
        Problem,
        SoundmillError,
        HTTPException,
        RequestValidationError,
        DataError,
        OperationalError,
        InterfaceError,
        TimeoutError,
    ):
        app.add_exception_handler(kind, _handle)


def _handle(request: Request, error: Exception) -> Response:
    problem = _as_problem(error)
    if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        cause = None if isinstance(error, Problem) else error
        log.warning("request failed", code=problem.code, detail=str(problem), exc_info=cause)
    if problem.status is HTTPStatus.METHOD_NOT_ALLOWED:
        problem.headers["Allow"] = ", ".join(_methods_here(request))
    return respond(request, problem)


def _methods_here(request: Request) -> list[str]:
    """Return the methods that an address takes: the framework names those of one route alone."""
    here = (
        route
        for route in iter_route_contexts(request.app.routes)
        if route.path_regex.match(request.scope["path"])
    )
    return sorted({method for route in here for method in route.methods or ()})


def _as_problem(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, SoundmillError):
        found = (status for kind, status in STATUS_OF.items() if isinstance(error, kind))
        status = next(found, HTTPStatus.INTERNAL_SERVER_ERROR)
        headers = CHALLENGE if status is HTTPStatus.UNAUTHORIZED else None
        return Problem(status, error.code, str(error), headers)
    if isinstance(error, HTTPException):
        status = HTTPStatus(error.status_code)
        detail = DETAIL_OF.get(status, error.detail)
        return Problem(status, status.name.lower(), detail, error.headers)
    if isinstance(error, RequestValidationError):
        faults = [
            {
                "field": ".".join(str(part) for part in fault["loc"])[:MAX_FIELD_LENGTH],
                "message": fault["msg"].removeprefix("Value error, ")[:MAX_DETAIL_LENGTH],
            }
            for fault in error.errors()[:MAX_FAULTS]
        ]
        detail = "; ".join(f"{fault['field']}: {fault['message']}" for fault in faults)
        status = HTTPStatus.UNPROCESSABLE_ENTITY
        return Problem(status, "request_invalid", detail, errors=faults)
    if isinstance(error, DataError):
        return invalid("request_invalid", "A value is not one that the database can hold.")
    full = any(words in str(error) for words in DATABASE_FULL)
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "database_unavailable",
        f"The database {'has no room left' if full else 'does not answer, or not in time'}.",
    )
