"""Uploads in parts: large files that may be interrupted anywhere and go on where they were.

The database knows what an upload is to become, the store knows which parts have arrived. Nothing
holds a transaction open while the store works, so an upload may be complete or gone in the store
and not yet in the database: every call here finds that and goes on from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from common import logs, quotas
from common.db import DbNow, new_id
from common.domain import UploadState
from common.errors import NotFound, QuotaExceeded, SoundmillError, StoreUnavailable
from common.settings import Settings
from common.storage import ObjectStore, Readable, StoredPart
from common.tables import Upload
from services.gateway.access import Caller
from services.gateway.idempotency import Once
from services.gateway.parts import (
    Checked,
    check_named,
    check_whole,
    part_bytes_of,
    part_count,
    part_size,
)
from services.gateway.problems import Problem, invalid, too_large
from services.gateway.service import Sessions
from services.gateway.source_schemas import (
    CompleteRequest,
    PartLink,
    PartLinks,
    PartOut,
    UploadOut,
    UploadRequest,
)

log = logs.get_logger(__name__)

MEDIA_TYPE = "application/octet-stream"
LINKED_FOR_S = 3600
MAX_OPEN_UPLOADS = 10_000  # of one key
UNUSED = (UploadState.OPEN.value, UploadState.COMPLETE.value)


def upload_key(upload_id: str) -> str:
    """Return where the bytes of an upload lie."""
    return f"uploads/{upload_id}"


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
        reader = body if sha256 is None else Checked(body, length, sha256.lower())
        try:
            etag = self.store.put_part(upload.object_key, upload.store_id, number, reader, length)
        except NotFound:
            with self.readers() as session:
                self._get(session, upload_id, taking=True)
            raise
        return PartOut(number=number, size_bytes=length, etag=etag)

    def complete(self, upload_id: str, request: CompleteRequest) -> bool:
        """Make one object of the parts; return whether it was not complete before.

        Raises:
            NotFound: no such upload.
            Problem: parts are missing, or are not those that the caller names.
        """
        with self.readers() as session:
            upload = self._get(session, upload_id)
            if upload.state in (UploadState.COMPLETE, UploadState.USED):
                return False
            upload = self._get(session, upload_id, taking=True)
        try:
            parts = self.store.list_parts(upload.object_key, upload.store_id)
            check_whole(upload, parts)
            if request.parts is not None:
                check_named(request.parts, parts)
            self.store.complete_multipart(upload.object_key, upload.store_id, parts)
        except NotFound:
            log.info("upload completed before, or gone", upload_id=upload_id)
        self._check_stored(upload)
        with self.sessions.begin() as session:
            completed: Any = session.execute(
                update(Upload)
                .where(Upload.id == upload_id, Upload.state == UploadState.OPEN.value)
                .values(state=UploadState.COMPLETE.value)
            )
            state = session.scalar(select(Upload.state).where(Upload.id == upload_id))
        if state in (None, UploadState.ABORTED):  # meanwhile
            self.store.delete(upload.object_key)
            raise NotFound(f"no upload {upload_id}")
        return bool(completed.rowcount)

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
