"""Every code that a problem document may carry: its status, what it means, where it can occur.

The OpenAPI document is made from these tables, and the tests hold every problem that is answered
against them. A code, once published, keeps its meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus


@dataclass(frozen=True)
class Code:
    """A kind of problem. ``meaning`` is one sentence for people."""

    status: HTTPStatus
    meaning: str


BAD_REQUEST = HTTPStatus.BAD_REQUEST
UNAUTHORIZED = HTTPStatus.UNAUTHORIZED
FORBIDDEN = HTTPStatus.FORBIDDEN
NOT_FOUND = HTTPStatus.NOT_FOUND
CONFLICT = HTTPStatus.CONFLICT
UNPROCESSABLE = HTTPStatus.UNPROCESSABLE_ENTITY
UNAVAILABLE = HTTPStatus.SERVICE_UNAVAILABLE

CODES: dict[str, Code] = {
    # Who asks
    "key_missing": Code(UNAUTHORIZED, "No API key was sent, and one is needed here."),
    "key_invalid": Code(UNAUTHORIZED, "The API key does not exist or was revoked."),
    "key_expired": Code(UNAUTHORIZED, "The API key was good until a while ago."),
    "scope_missing": Code(FORBIDDEN, "The API key may not do this."),
    "host_forbidden": Code(FORBIDDEN, "Without a key, the Host header must name this machine."),
    "origin_forbidden": Code(FORBIDDEN, "Without a key, no page of another site may ask."),
    "quota_exceeded": Code(FORBIDDEN, "The API key would hold more than it may."),
    "rate_limited": Code(
        HTTPStatus.TOO_MANY_REQUESTS, "Too many requests of this key: see Retry-After."
    ),
    # What is asked
    "request_invalid": Code(UNPROCESSABLE, "A field or parameter is missing, unknown or wrong."),
    "parameters_invalid": Code(UNPROCESSABLE, "A stage has no such parameter or value."),
    "cursor_invalid": Code(UNPROCESSABLE, "The cursor was not made by this list."),
    "name_invalid": Code(UNPROCESSABLE, "The name is empty, too long or holds control characters."),
    "idempotency_key_reused": Code(
        UNPROCESSABLE, "The Idempotency-Key was used for a request with another content."
    ),
    "not_found": Code(NOT_FOUND, "There is no such thing, or it belongs to another key."),
    "url_forbidden": Code(UNPROCESSABLE, "No http or https URL of a public address."),
    "deadline_invalid": Code(UNPROCESSABLE, "The deadline lies behind, or absurdly far ahead."),
    "text_empty": Code(UNPROCESSABLE, "The text holds nothing: `known` lists the sounds."),
    "text_not_understood": Code(
        UNPROCESSABLE, "The text names no sound that is known: `known` lists those that are."
    ),
    "region_invalid": Code(
        UNPROCESSABLE, "The region is empty, too long, or not in the recording."
    ),
    "vectors_missing": Code(
        CONFLICT,
        "The recording has no vectors: ask for them with `classify.embeddings` when it is sent.",
    ),
    "range_not_satisfiable": Code(
        HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "The range lies outside the file."
    ),
    "too_many_streams": Code(
        HTTPStatus.TOO_MANY_REQUESTS, "The API key follows too many jobs at once."
    ),
    "too_many_downloads": Code(
        HTTPStatus.TOO_MANY_REQUESTS, "So many tables and archives are being sent already."
    ),
    "too_many_searches": Code(
        HTTPStatus.TOO_MANY_REQUESTS, "So many searches of this kind are at work or wait already."
    ),
    "conflict": Code(CONFLICT, "What is asked does not fit the state of the job."),
    "deadline_passed": Code(CONFLICT, "The job's deadline has passed."),
    "custom_id_taken": Code(CONFLICT, "Another recording of the job has this custom_id."),
    "dry_run": Code(UNPROCESSABLE, "A dry run takes sources alone."),
    "method_not_allowed": Code(HTTPStatus.METHOD_NOT_ALLOWED, "This address has other methods."),
    # What is sent
    "unsupported_media_type": Code(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body is of a kind that is not taken here."
    ),
    "form_malformed": Code(BAD_REQUEST, "The body is no form as RFC 7578 has it."),
    "too_many_parts": Code(UNPROCESSABLE, "The form has more parts than one request may bring."),
    "no_recordings": Code(UNPROCESSABLE, "The form holds no part named file."),
    "too_large": Code(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is longer than is taken here."
    ),
    "hash_mismatch": Code(UNPROCESSABLE, "The bytes that arrived have another SHA-256."),
    "upload_stalled": Code(HTTPStatus.REQUEST_TIMEOUT, "Nothing arrived for a minute."),
    "length_required": Code(
        HTTPStatus.LENGTH_REQUIRED, "A part is sent with its Content-Length, not in chunks."
    ),
    "archive_unreadable": Code(UNPROCESSABLE, "Not a ZIP, a TAR, a TAR.GZ or a TAR.ZST."),
    "manifest_unreadable": Code(UNPROCESSABLE, "Neither JSON lines nor CSV."),
    # Uploads in parts
    "upload_not_open": Code(CONFLICT, "The upload is in another state than is needed here."),
    "upload_expired": Code(HTTPStatus.GONE, "The time of the upload is over."),
    "upload_incomplete": Code(CONFLICT, "Parts are missing or short: `missing` has the first."),
    "part_number_invalid": Code(UNPROCESSABLE, "The upload has no part of this number."),
    "part_size_wrong": Code(UNPROCESSABLE, "The part has another size than it must have."),
    "part_etag_wrong": Code(CONFLICT, "A part has arrived with another content than was named."),
    "parts_order_wrong": Code(UNPROCESSABLE, "Parts are named in order, each once."),
    # What cannot be done now
    "shutting_down": Code(UNAVAILABLE, "This process is about to end: try again."),
    "database_unavailable": Code(UNAVAILABLE, "The database does not answer: try again."),
    "store_unavailable": Code(UNAVAILABLE, "The object store does not answer: try again."),
    "disk_full": Code(HTTPStatus.INSUFFICIENT_STORAGE, "The object store has no room left."),
    "not_ready": Code(UNAVAILABLE, "Something that the gateway leans on does not answer."),
    "artifact_invalid": Code(
        HTTPStatus.INTERNAL_SERVER_ERROR, "A stored result cannot be read back."
    ),
    "internal_error": Code(
        HTTPStatus.INTERNAL_SERVER_ERROR, "Something went wrong here: the log has the request id."
    ),
}

ALWAYS = ("request_invalid", "internal_error", "database_unavailable")
WITH_CALLER = (  # where a caller is asked for
    "key_missing",
    "key_invalid",
    "key_expired",
    "scope_missing",
    "host_forbidden",
    "origin_forbidden",
    "rate_limited",
)
WITH_PATH = ("not_found",)  # where the path names something
BODY = ("upload_stalled", "shutting_down", "too_large")
STORES = (*BODY, "store_unavailable", "disk_full")
MAKES = ("quota_exceeded", "idempotency_key_reused", "not_found")  # made before, deleted since
LOADS = ("store_unavailable", "artifact_invalid", "not_found")
MADE = (*LOADS, "too_many_downloads")  # while it is sent
FORM = ("form_malformed", "too_many_parts", "no_recordings", "unsupported_media_type")
PART = ("upload_not_open", "upload_expired", "store_unavailable")
LIST = ("cursor_invalid",)
JOB = ("parameters_invalid", "deadline_invalid")

OF_OPERATION: dict[str, tuple[str, ...]] = {  # what an operation adds to those above
    "post_job": (*STORES, *MAKES, *FORM, *JOB, "name_invalid", "dry_run"),
    "change_job": (*BODY, "deadline_invalid", "conflict"),
    "close_job": ("conflict",),
    "cancel_job": ("conflict",),
    "pause_job": ("conflict",),
    "resume_job": ("conflict",),
    "retry_job": ("conflict", "deadline_passed", "quota_exceeded"),
    "list_jobs": LIST,
    "list_rejections": LIST,
    "post_recording": (
        *STORES,
        *MAKES,
        "name_invalid",
        "parameters_invalid",
        "hash_mismatch",
        "conflict",
        "custom_id_taken",
        "dry_run",
    ),
    "list_recordings": LIST,
    "post_source": (
        *STORES,
        *MAKES,
        *PART,
        "unsupported_media_type",
        "parameters_invalid",
        "url_forbidden",
        "hash_mismatch",
        "archive_unreadable",
        "manifest_unreadable",
        "conflict",
        "custom_id_taken",
        "dry_run",
    ),
    "list_sources": LIST,
    "post_upload": (*STORES, *MAKES),
    "get_upload": ("store_unavailable",),
    "get_part_links": (*PART, "part_number_invalid"),
    "put_part": (
        *STORES,
        *PART,
        "length_required",
        "part_number_invalid",
        "part_size_wrong",
        "hash_mismatch",
        "conflict",
    ),
    "complete_upload": (
        *STORES,
        *PART,
        "upload_incomplete",
        "parts_order_wrong",
        "part_etag_wrong",
        "conflict",
    ),
    "delete_upload": PART,
    "get_artifact": (*LOADS, "range_not_satisfiable"),
    "get_events": LOADS,
    "get_job_events": MADE,
    "get_job_recordings": MADE,
    "get_job_errors": MADE,
    "get_job_attempts": MADE,
    "get_job_manifest": MADE,
    "get_job_labels": MADE,
    "get_job_artifacts": MADE,
    "get_text": ("text_empty",),
    "search_job": (
        "cursor_invalid",
        "text_empty",
        "text_not_understood",
        "too_many_searches",
        "store_unavailable",
        "not_found",
    ),
    "find_similar": (
        "cursor_invalid",
        "region_invalid",
        "vectors_missing",
        "too_many_searches",
        "disk_full",
        *LOADS,
    ),
    "follow_job": ("too_many_streams", "shutting_down"),
    "post_webhook": (*BODY, "url_forbidden", "conflict", "idempotency_key_reused", "not_found"),
    "list_deliveries": LIST,
    "ready": ("not_ready",),
}


def codes_of(operation: str, *, caller: bool, path: bool) -> list[str]:
    """Return the codes that an operation may answer with, those of one status together."""
    codes = {*ALWAYS, *OF_OPERATION.get(operation, ())}
    codes |= set(WITH_CALLER) if caller else set()
    codes |= set(WITH_PATH) if path else set()
    return sorted(codes, key=lambda code: (CODES[code].status, code))
