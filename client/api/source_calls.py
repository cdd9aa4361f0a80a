"""Calls that add what holds many recordings, and that send large files in parts."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any, Literal

from client.api.call import IDEMPOTENCY_KEY, Blocks, Call, Pages, given, nothing
from client.api.records import PartAddress, Source, Upload

Use = Literal["recording", "archive", "manifest"]


def add_urls(
    job_id: str, items: Iterable[dict[str, Any]], *, idempotency_key: str | None = None
) -> Call[Source]:
    """Add recordings by address. An item is a line of a manifest: ``{"url": ..., "name": ...}``."""
    return _add(job_id, {"kind": "urls", "items": list(items)}, idempotency_key)


def add_prefix(job_id: str, url: str, *, idempotency_key: str | None = None) -> Call[Source]:
    """Add everything below ``s3://bucket/prefix`` or ``file:///folder`` of the server."""
    return _add(job_id, {"kind": "prefix", "url": url}, idempotency_key)


def add_upload(
    job_id: str,
    upload_id: str,
    use: Use,
    *,
    all_files: bool = False,
    custom_id: str | None = None,
    labels: dict[str, str] | None = None,
    params: dict[str, Any] | None = None,
    idempotency_key: str | None = None,
) -> Call[Source]:
    """Add a complete upload: as one recording, an archive or a manifest.

    ``all_files`` is for an archive: also entries without the name of an audio file. The others
    describe a recording, as in ``upload``.
    """
    about = given(all_files=all_files or None, custom_id=custom_id, labels=labels, params=params)
    body = {"kind": "upload", "upload_id": upload_id, "as": use, **about}
    return _add(job_id, body, idempotency_key)


def send_source(
    job_id: str,
    name: str,
    blocks: Blocks,
    media_type: str,
    *,
    all_files: bool = False,
    sha256: str | None = None,
    idempotency_key: str | None = None,
) -> Call[Source]:
    """Send an archive or a manifest whole; recordings are made of its entries afterwards.

    ``media_type`` is ``application/zip``, ``application/x-tar``, ``application/gzip``,
    ``application/zstd``, ``application/x-ndjson`` or ``text/csv``.
    """
    check = {"X-Content-SHA256": sha256} if sha256 else {}
    return Call(
        "POST",
        f"/v1/jobs/{job_id}/sources",
        Source.model_validate,
        {"name": name, **given(all_files=all_files or None)},
        content=blocks,
        headers={**_once(idempotency_key), "Content-Type": media_type, **check},
    )


def source(job_id: str, source_id: str) -> Call[Source]:
    """Return a source and how far it has been read."""
    return Call("GET", f"/v1/jobs/{job_id}/sources/{source_id}", Source.model_validate)


def sources(job_id: str) -> Pages[Source]:
    """Yield the sources of a job."""
    return Pages(f"/v1/jobs/{job_id}/sources", "sources", Source)


def create_upload(
    name: str, size_bytes: int, *, sha256: str | None = None, idempotency_key: str | None = None
) -> Call[Upload]:
    """Announce a large file that comes in parts."""
    body = {"name": name, "size_bytes": size_bytes, **given(sha256=sha256)}
    headers = _once(idempotency_key)
    return Call("POST", "/v1/uploads", Upload.model_validate, json=body, headers=headers)


def upload_state(upload_id: str) -> Call[Upload]:
    """Return an upload and the parts that have arrived."""
    return Call("GET", f"/v1/uploads/{upload_id}", Upload.model_validate)


def part_addresses(upload_id: str, first: int, last: int) -> Call[list[PartAddress]]:
    """Return where the parts from ``first`` to ``last`` go, both included."""

    def read(content: Any) -> list[PartAddress]:
        return [PartAddress.model_validate(part) for part in content["parts"]]

    place = {"from": first, "to": last}
    return Call("GET", f"/v1/uploads/{upload_id}/parts", read, place)


def put_part(address: PartAddress, blocks: Blocks) -> Call[None]:
    """Send one part, all of its ``size_bytes``. A part that is sent again takes its place."""
    length = {"Content-Length": str(address.size_bytes)}
    return Call("PUT", address.url, nothing, content=blocks, headers=length)


def complete_upload(upload_id: str) -> Call[Upload]:
    """Say that every part was sent."""
    return Call("POST", f"/v1/uploads/{upload_id}/complete", Upload.model_validate)


def abort_upload(upload_id: str) -> Call[None]:
    """Give up an upload and what has arrived of it."""
    return Call("DELETE", f"/v1/uploads/{upload_id}", nothing)


def _add(job_id: str, body: dict[str, Any], idempotency_key: str | None) -> Call[Source]:
    path = f"/v1/jobs/{job_id}/sources"
    return Call("POST", path, Source.model_validate, json=body, headers=_once(idempotency_key))


def _once(idempotency_key: str | None) -> dict[str, str]:
    return {IDEMPOTENCY_KEY: idempotency_key or uuid.uuid4().hex}
