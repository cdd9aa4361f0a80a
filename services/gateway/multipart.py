"""Uploads in parts: large files that may be interrupted anywhere and go on where they were.

The database knows what an upload is to become, the store knows which parts have arrived. Nothing
holds a transaction open while the store works, so an upload may be complete or gone in the store
and not yet in the database: every call here finds that and goes on from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from common import logs, quotas
from common.db import DbNow, Upload, new_id
from common.domain import UploadState
from common.errors import NotFound, QuotaExceeded, SoundmillError, StoreUnavailable
from common.settings import Settings
from common.storage import ObjectStore, Readable, StoredPart
from services.gateway.access import Caller
from services.gateway.idempotency import Once
from services.gateway.problems import Problem, invalid, too_large
from services.gateway.service import Sessions
from services.gateway.source_schemas import (
    CompleteRequest,
    PartLink,
    PartLinks,
    PartOut,
    SentPart,
    UploadOut,
    UploadRequest,
)

log = logs.get_logger(__name__)

MEDIA_TYPE = "application/octet-stream"
MIN_PART_BYTES = 8 << 20  # S3 asks for 5 MiB
AIMED_PARTS = 1_000  # some servers take no more by default
LINKED_FOR_S = 3600
MAX_OPEN_UPLOADS = 10_000  # of one key
MAX_NAMED_PARTS = 100  # in a problem
UNUSED = (UploadState.OPEN.value, UploadState.COMPLETE.value)


def upload_key(upload_id: str) -> str:
    """Return where the bytes of an upload lie."""
    return f"uploads/{upload_id}"


def part_bytes_of(size_bytes: int) -> int:
    """Return the size of the parts of a file: whole mebibytes."""
    mebibyte = 1 << 20
    return max(MIN_PART_BYTES, -(-size_bytes // (AIMED_PARTS * mebibyte)) * mebibyte)


def part_count(upload: Upload) -> int:
    """Return of how many parts an upload is made."""
    return -(-upload.size_bytes // upload.part_bytes)


def part_size(upload: Upload, number: int) -> int:
    """Return the size of a part. Raises Problem when there is no such part."""
    count = part_count(upload)
    if not 1 <= number <= count:
        raise invalid("part_number_invalid", f"The parts of this upload are 1 to {count}.")
    return min(upload.part_bytes, upload.size_bytes - (number - 1) * upload.part_bytes)


@dataclass(frozen=True)
class Uploads:
    """The uploads of one caller."""

    caller: Caller
    settings: Settings
    sessions: Sessions
    readers: Sessions
    store: ObjectStore

    def start(self, request: UploadRequest, once: Once) -> str:
        """Begin an upload; return its id.

        Raises:
            Problem: larger than any upload may be.
            QuotaExceeded: the key may not hold as much.
        """
        if request.size_bytes > self.settings.max_upload_bytes:
            raise too_large(self.settings.max_upload_bytes)
        upload_id = new_id()
        part_bytes = part_bytes_of(request.size_bytes)
        key = upload_key(upload_id)
        store_id = self.store.start_multipart(key, MEDIA_TYPE, part_bytes)
        try:
            with self.sessions.begin() as session:
                once.claim(session, upload_id, request.model_dump(mode="json"))
                self._check_room(session, request.size_bytes)
                session.add(
                    Upload(
                        id=upload_id,
                        owner=self.caller.owner,
                        object_key=key,
                        store_id=store_id,
                        part_bytes=part_bytes,
                        expires_at=DbNow() + self.settings.upload_ttl_s,
                        **request.model_dump(),
                    )
                )
        except BaseException:
            with suppress(SoundmillError):  # the dispatcher finds what is left
                self.store.abort_multipart(key, store_id)
            raise
        return upload_id

    def look(self, upload_id: str) -> UploadOut:
        """Return an upload and the parts that have arrived. Raises NotFound."""
        with self.readers() as session:
            upload = self._get(session, upload_id)
        received: Sequence[StoredPart] = []
        if upload.state == UploadState.OPEN:
            with suppress(NotFound):  # completed or aborted in the store, not yet in the database
                received = self.store.list_parts(upload.object_key, upload.store_id)
        facts = {
            name: getattr(upload, name)
            for name in UploadOut.model_fields
            if name not in ("parts", "received")
        }
        parts = [PartOut.model_validate(part) for part in received]
        return UploadOut.model_validate({**facts, "parts": part_count(upload), "received": parts})

    def links(self, upload_id: str, first: int, last: int) -> PartLinks:
        """Return where to send parts ``first`` to ``last``; the last part at most."""
        with self.readers() as session:
            upload = self._get(session, upload_id, taking=True)
            now = session.scalar(select(DbNow())) or 0.0
        part_size(upload, first)
        links = []
        for number in range(first, min(last, part_count(upload)) + 1):
            url = self.store.presign_part(upload.object_key, upload.store_id, number, LINKED_FOR_S)
            link = {
                "number": number,
                "size_bytes": part_size(upload, number),
                "url": url or f"/v1/uploads/{upload.id}/parts/{number}",
                "expires_at": now + LINKED_FOR_S if url else None,
            }
            links.append(PartLink.model_validate(link))
        return PartLinks(parts=links)

    def take_part(
        self, body: Readable, upload_id: str, number: int, length: int, sha256: str | None
    ) -> PartOut:
        """Store a part of ``length`` bytes. One that was sent before is replaced.

        Raises:
            NotFound: no such upload.
            Problem: it takes no parts, not this one, or not with this size or content.
        """
        with self.readers() as session:
            upload = self._get(session, upload_id, taking=True)
        expected = part_size(upload, number)
        if length != expected:
            raise invalid("part_size_wrong", f"Part {number} has {expected} bytes, not {length}.")
        reader = body if sha256 is None else _Checked(body, length, sha256.lower())
        try:
            etag = self.store.put_part(upload.object_key, upload.store_id, number, reader, length)
        except NotFound:
            with self.readers() as session:
                self._get(session, upload_id, taking=True)
            raise
        return PartOut(number=number, size_bytes=length, etag=etag)

    def complete(self, upload_id: str, request: CompleteRequest) -> None:
        """Make one object of the parts. Completing again changes nothing.

        Raises:
            NotFound: no such upload.
            Problem: parts are missing, or are not those that the caller names.
        """
        with self.readers() as session:
            upload = self._get(session, upload_id)
            if upload.state in (UploadState.COMPLETE, UploadState.USED):
                return
            upload = self._get(session, upload_id, taking=True)
        try:
            parts = self.store.list_parts(upload.object_key, upload.store_id)
            _check_whole(upload, parts)
            if request.parts is not None:
                _check_named(request.parts, parts)
            self.store.complete_multipart(upload.object_key, upload.store_id, parts)
        except NotFound:
            log.info("upload completed before, or gone", upload_id=upload_id)
        self._check_stored(upload)
        with self.sessions.begin() as session:
            session.execute(
                update(Upload)
                .where(Upload.id == upload_id, Upload.state == UploadState.OPEN.value)
                .values(state=UploadState.COMPLETE.value)
            )
            state = session.scalar(select(Upload.state).where(Upload.id == upload_id))
        if state in (None, UploadState.ABORTED):  # meanwhile
            self.store.delete(upload.object_key)
            raise NotFound(f"no upload {upload_id}")

    def abort(self, upload_id: str) -> None:
        """Give an upload up and remove what has arrived.

        Its time is over from then on, so that the dispatcher removes what the store keeps now.

        Raises:
            NotFound: no such upload (any more).
            Problem: it belongs to a job already.
        """
        with self.sessions.begin() as session:
            upload = self._get(session, upload_id, lock=True)
            if upload.state == UploadState.USED:
                raise _not_open(upload_id, UploadState.USED)
            upload.state = UploadState.ABORTED.value
            upload.expires_at = DbNow()
        self.store.abort_multipart(upload.object_key, upload.store_id)
        self.store.delete(upload.object_key)

    def _get(
        self, session: Session, upload_id: str, *, lock: bool = False, taking: bool = False
    ) -> Upload:
        """Return an upload of the caller; ``taking``: one that is open and in time."""
        return get_upload(
            session, self.caller, upload_id, lock=lock, state=UploadState.OPEN if taking else None
        )

    def _check_room(self, session: Session, size_bytes: int) -> None:
        owner = self.caller.owner
        mine = Upload.owner.is_(None) if owner is None else Upload.owner == owner
        count, held = session.execute(
            select(func.count(), func.coalesce(func.sum(Upload.size_bytes), 0)).where(
                mine, Upload.state.in_(UNUSED)
            )
        ).one()
        if count >= MAX_OPEN_UPLOADS:
            raise QuotaExceeded(f"{count} uploads wait to be used; that is the most there may be")
        quotas.check_room(session, owner, size_bytes=size_bytes + int(held))

    def _check_stored(self, upload: Upload) -> None:
        try:
            found = self.store.stat(upload.object_key)
        except NotFound as error:
            raise NotFound(f"the parts of upload {upload.id} are gone") from error
        if found.size_bytes != upload.size_bytes:
            raise StoreUnavailable(f"the store has not put upload {upload.id} together (yet)")


def get_upload(
    session: Session,
    caller: Caller,
    upload_id: str,
    *,
    lock: bool = False,
    state: UploadState | None = None,
) -> Upload:
    """Return an upload of the caller; with ``state``, one in this state whose time is not over.

    Raises:
        NotFound: no such upload, or somebody else's.
        Problem: it is in another state, or expired.
    """
    query = select(Upload).where(Upload.id == upload_id, caller.owns(Upload.owner))
    upload = session.scalar(query.with_for_update() if lock else query)
    if upload is None or upload.state == UploadState.ABORTED:
        raise NotFound(f"no upload {upload_id}")
    if state is not None:
        if upload.state != state:
            raise _not_open(upload_id, UploadState(upload.state))
        if upload.expires_at < (session.scalar(select(DbNow())) or 0.0):
            raise Problem(
                HTTPStatus.GONE, "upload_expired", f"The time of upload {upload_id} is over."
            )
    return upload


def _not_open(upload_id: str, state: UploadState) -> Problem:
    return Problem(
        HTTPStatus.CONFLICT, "upload_not_open", f"Upload {upload_id} is {state}.", state=state
    )


def _check_whole(upload: Upload, parts: Sequence[StoredPart]) -> None:
    """Return if every part is there with its size; else raise a Problem that names those missing.

    What was sent by a presigned link can have any size or number.
    """
    there = {part.number: part.size_bytes for part in parts}
    count = part_count(upload)
    missing = [
        number for number in range(1, count + 1) if there.get(number) != part_size(upload, number)
    ]
    if missing or len(there) > count:
        raise Problem(
            HTTPStatus.CONFLICT,
            "upload_incomplete",
            f"{len(missing)} of {count} parts are missing or have another size."
            if missing
            else f"There are parts after number {count}.",
            missing=missing[:MAX_NAMED_PARTS],
            missing_count=len(missing),
        )


def _check_named(named: Sequence[SentPart], parts: Sequence[StoredPart]) -> None:
    """Return if the caller names the very parts that have arrived, in order."""
    if [part.number for part in named] != [part.number for part in parts]:
        raise invalid("parts_order_wrong", f"Name parts 1 to {len(parts)}, each once, in order.")
    other = [
        part.number
        for part, sent in zip(parts, named, strict=True)
        if part.etag != sent.etag.strip('"')
    ]
    if other:
        raise Problem(
            HTTPStatus.CONFLICT,
            "part_etag_wrong",
            f"{len(other)} parts have arrived with another content.",
            parts=other[:MAX_NAMED_PARTS],
        )


class _Checked:
    """Reads a part of known length and keeps its end back when its hash is wrong.

    So a wrong part never becomes whole in the store.
    """

    def __init__(self, reader: Readable, length: int, sha256: str) -> None:
        self._reader = reader
        self._missing = length
        self._expected = sha256
        self._sha256 = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        block = self._reader.read(size)
        self._sha256.update(block)
        self._missing -= len(block)
        if block and self._missing <= 0 and self._sha256.hexdigest() != self._expected:
            raise invalid(
                "hash_mismatch",
                f"The bytes that arrived have the SHA-256 {self._sha256.hexdigest()}.",
            )
        return block
