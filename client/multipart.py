"""Sends one large file in parts, several at once; what has arrived is not sent again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from threading import Event

from client.api import Gateway, PartAddress, Upload
from client.errors import Problem
from client.parallel import in_parallel
from client.sources import BLOCK_BYTES, Source, Unreadable, unreadable
from client.submission import Submission
from common.domain import UploadState

LARGE_BYTES = 64 * 1024**2  # from here on a broken line costs enough to send parts
THREADS = 4
ADDRESSES_AT_ONCE = 100  # presigned ones expire


@dataclass(frozen=True)
class Way:
    """How parts go: to which gateway, as part of which submission; ``tick`` is called often."""

    gateway: Gateway
    submission: Submission
    tick: Callable[[], None]


def send_large(
    way: Way,
    source: Source,
    key: str,
    known: str | None = None,
    noted: Callable[[str], None] | None = None,
) -> str:
    """Send a file; return the id of its complete upload.

    Args:
        way: How.
        source: A file of its own, not an entry of an archive.
        key: Idempotency key of a new upload.
        known: Id of an upload of this file that was begun before.
        noted: Told the id of the upload before anything is sent.

    Raises:
        Unreadable: the file is gone, or is no longer as long as it was.
    """
    upload = find_upload(way.gateway, known, source.size_bytes())
    if upload is None:
        upload = way.gateway.create_upload(source.name, source.size_bytes(), idempotency_key=key)
        if upload.state is not UploadState.OPEN or upload.size_bytes != source.size_bytes():
            upload = way.gateway.create_upload(source.name, source.size_bytes())
        if noted is not None:
            noted(upload.id)
    if upload.state is UploadState.OPEN:
        arrived = {part.number for part in upload.received}
        stop = Event()
        parts = (
            partial(send_part, way, source, upload, address, stop)
            for address in missing_parts(way.gateway, upload, arrived)
        )
        for _ in in_parallel(parts, THREADS, way.tick, stop):
            pass
        way.gateway.complete_upload(upload.id)
    return upload.id


def find_upload(gateway: Gateway, upload_id: str | None, size_bytes: int) -> Upload | None:
    """Return an upload that was begun before, None when it cannot be gone on with."""
    if upload_id is None:
        return None
    try:
        upload = gateway.upload_state(upload_id)
    except Problem as problem:
        if problem.status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
            return None
        raise
    late = upload.expires_at is not None and upload.expires_at < datetime.now(UTC)
    gone = upload.state is UploadState.ABORTED or (upload.state is UploadState.OPEN and late)
    return None if gone or upload.size_bytes != size_bytes else upload


def missing_parts(gateway: Gateway, upload: Upload, arrived: set[int]) -> Iterator[PartAddress]:
    """Yield where the parts go that have not arrived. Parts are numbered from 1."""
    for first in range(1, upload.parts + 1, ADDRESSES_AT_ONCE):
        last = min(first + ADDRESSES_AT_ONCE - 1, upload.parts)
        if any(number not in arrived for number in range(first, last + 1)):
            for address in gateway.part_addresses(upload.id, first, last):
                if address.number not in arrived:
                    yield address


def send_part(way: Way, source: Source, upload: Upload, address: PartAddress, stop: Event) -> None:
    """Send one part. Raises Unreadable when the file has changed or is gone."""
    start = (address.number - 1) * upload.part_bytes
    blocks = partial(read_range, source, start, address.size_bytes)
    way.gateway.put_part(address, way.submission.counted(blocks, stop))


def read_range(source: Source, start: int, size_bytes: int) -> Iterator[bytes]:
    """Yield just so many bytes of a file. Raises Unreadable when it ends before."""
    try:
        descriptor = os.open(source.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            file.seek(start)
            while size_bytes:
                block = file.read(min(BLOCK_BYTES, size_bytes))
                if not block:
                    raise Unreadable("has become shorter while it was sent")
                size_bytes -= len(block)
                yield block
    except OSError as error:
        raise unreadable(error) from error
