"""Takes sources in: stored archives and manifests, lists of addresses, prefixes, uploads.

The bytes are stored first, then one transaction records the source. An ingester reads it from
there; what is wrong inside shows then, as rejections or as the failure of the source.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from common import logs, quotas, traces
from common.db import new_id
from common.domain import SourceKind, UploadState
from common.errors import Conflict, NotFound, SoundmillError
from common.params import merge_params
from common.settings import Settings
from common.sources import (
    AnySpec,
    ArchiveSpec,
    ManifestSpec,
    PrefixSpec,
    UploadSpec,
    UrlsSpec,
    source_key,
)
from common.storage import ObjectStore, Readable, StoredObject
from common.tables import Job, Source
from services.gateway import cursors
from services.gateway.access import Caller
from services.gateway.idempotency import Once
from services.gateway.multipart import get_upload
from services.gateway.problems import Problem, invalid
from services.gateway.service import Sessions, require_open
from services.gateway.sniffing import HEAD_BYTES, archive_format, manifest_format
from services.gateway.source_schemas import (
    PrefixRequest,
    SourceOut,
    SourcePage,
    SourceRequest,
    UploadSourceRequest,
    UploadUse,
    UrlsRequest,
)

log = logs.get_logger(__name__)

MAX_SOURCES_PER_JOB = 10_000
MEDIA_TYPE = "application/octet-stream"


@dataclass(frozen=True)
class _Plan:
    """What a source is going to be."""

    kind: SourceKind
    name: str
    spec: AnySpec


@dataclass(frozen=True)
class Sources:
    """The sources of one caller's jobs."""

    caller: Caller
    settings: Settings
    sessions: Sessions
    readers: Sessions
    store: ObjectStore

    def take_archive(
        self,
        body: Readable,
        once: Once,
        *,
        job_id: str,
        name: str,
        all_files: bool,
        sha256: str | None,
    ) -> str:
        """Store a ZIP or TAR as a source of an open job; return its id.

        Raises:
            Problem: no archive, or other bytes than announced.
        """
        self._check_open(job_id, once)
        opened = _Opened(body)
        found = archive_format(opened.head)
        if found is None:
            raise _no_archive()
        source_id = new_id()
        with self._stored(opened, job_id, source_id, sha256) as stored:
            spec = ArchiveSpec(object_key=stored.key, format=found, all_files=all_files)
            content = {"sha256": stored.sha256, "name": name, "all_files": all_files}
            with self.sessions.begin() as session:
                job = self._claim(session, job_id, source_id, once, content)
                quotas.check_room(session, job.owner, size_bytes=stored.size_bytes)
                _add(session, job, source_id, _Plan(SourceKind.ARCHIVE, name, spec))
        return source_id

    def take_manifest(
        self, body: Readable, once: Once, *, job_id: str, name: str, sha256: str | None
    ) -> str:
        """Store JSON lines or CSV as a source of an open job; return its id.

        Raises:
            Problem: no text, or other bytes than announced.
        """
        self._check_open(job_id, once)
        opened = _Opened(body)
        found = manifest_format(opened.head)
        if found is None:
            raise _no_manifest()
        source_id = new_id()
        with self._stored(opened, job_id, source_id, sha256) as stored:
            spec = ManifestSpec(object_key=stored.key, format=found)
            content = {"sha256": stored.sha256, "name": name}
            with self.sessions.begin() as session:
                job = self._claim(session, job_id, source_id, once, content)
                _add(session, job, source_id, _Plan(SourceKind.MANIFEST, name, spec))
        return source_id

    def take_request(self, request: SourceRequest, once: Once, job_id: str) -> str:
        """Add a source whose bytes are elsewhere to an open job; return its id.

        Raises:
            NotFound: no such job or upload.
            Problem: the upload is not complete, or not what it is said to be.
        """
        wanted = request.root
        source_id = new_id()
        with self.sessions.begin() as session:
            content = wanted.model_dump(mode="json")
            job = self._claim(session, job_id, source_id, once, content)
            if isinstance(wanted, UrlsRequest):
                plan = _Plan(SourceKind.URLS, wanted.name, UrlsSpec(items=wanted.items))
            elif isinstance(wanted, PrefixRequest):
                plan = _Plan(
                    SourceKind.PREFIX, wanted.name or wanted.url, PrefixSpec(url=wanted.url)
                )
            else:
                plan = self._use_upload(session, job, wanted)
            _add(session, job, source_id, plan)
        return source_id

    def list(self, job_id: str, cursor: str | None, limit: int) -> SourcePage:
        """Return a page of a job's sources, oldest first. Raises NotFound."""
        query = select(Source).where(Source.job_id == job_id).order_by(Source.id)
        if cursor is not None:
            query = query.where(Source.id > cursors.decode(cursor))
        with self.readers() as session:
            self.caller.job(session, job_id)
            found = session.scalars(query.limit(limit + 1)).all()
        more = len(found) > limit
        return SourcePage(
            sources=[SourceOut.model_validate(source) for source in found[:limit]],
            next_cursor=cursors.encode(found[limit - 1].id) if more else None,
        )

    def get(self, job_id: str, source_id: str) -> SourceOut:
        """Return one source of a job. Raises NotFound."""
        with self.readers() as session:
            self.caller.job(session, job_id)
            source = session.get(Source, source_id)
            if source is None or source.job_id != job_id:
                raise NotFound(f"no source {source_id} of job {job_id}")
            return SourceOut.model_validate(source)

    def _check_open(self, job_id: str, once: Once) -> None:
        """Return if the body is worth storing: later would do, but not as early."""
        with self.readers() as session:
            job = self.caller.job(session, job_id)
            if not once.known(session):
                require_open(job)

    def _claim(
        self, session: Session, job_id: str, source_id: str, once: Once, content: Any
    ) -> Job:
        """Return the job, locked and open, after noting that this request makes the source."""
        job = self.caller.job(session, job_id, lock=True)
        once.claim(session, source_id, content)
        require_open(job)
        count = select(func.count()).where(Source.job_id == job_id)
        if (session.scalar(count) or 0) >= MAX_SOURCES_PER_JOB:
            raise Conflict(f"a job holds at most {MAX_SOURCES_PER_JOB} sources")
        return job

    @contextmanager
    def _stored(
        self, body: Readable, job_id: str, source_id: str, sha256: str | None
    ) -> Iterator[StoredObject]:
        """Store a body; remove it again when its hash is wrong or the block fails."""
        key = source_key(job_id, source_id)
        stored = self.store.put_stream(key, body, MEDIA_TYPE, self.settings.max_upload_bytes)
        try:
            if sha256 is not None and sha256.lower() != stored.sha256:
                raise invalid(
                    "hash_mismatch", f"The bytes that arrived have the SHA-256 {stored.sha256}."
                )
            yield stored
        except BaseException as error:
            if isinstance(error, DBAPIError) and error.connection_invalidated:
                # The row may be there: an object too many is better than one too few.
                log.warning("object left behind", key=key)
                raise
            try:
                self.store.delete(key)
            except SoundmillError as left:
                log.warning("object left behind", key=key, detail=str(left))
            raise

    def _use_upload(self, session: Session, job: Job, wanted: UploadSourceRequest) -> _Plan:
        """Take a complete upload into the job."""
        upload = get_upload(
            session, self.caller, wanted.upload_id, lock=True, state=UploadState.COMPLETE
        )
        upload.state = UploadState.USED.value
        key = upload.object_key
        if wanted.use is UploadUse.RECORDING:
            if wanted.params is not None:
                merge_params(job.params, wanted.params)  # what is wrong is said at once
            return _Plan(
                SourceKind.UPLOAD,
                upload.name,
                UploadSpec(
                    upload_id=upload.id,
                    object_key=key,
                    name=upload.name,
                    size_bytes=upload.size_bytes,
                    sha256=upload.sha256,
                    custom_id=wanted.custom_id,
                    labels=wanted.labels,
                    params=wanted.params,
                ),
            )
        with self.store.open(key, 0, HEAD_BYTES) as blocks:
            head = b"".join(blocks)
        if wanted.use is UploadUse.ARCHIVE:
            packed = archive_format(head)
            if packed is None or wanted.format not in (None, packed):
                raise _no_archive()
            archive = ArchiveSpec(
                object_key=key, format=packed, sha256=upload.sha256, all_files=wanted.all_files
            )
            return _Plan(SourceKind.ARCHIVE, upload.name, archive)
        written = manifest_format(head)
        if written is None or wanted.format not in (None, written):
            raise _no_manifest()
        manifest = ManifestSpec(object_key=key, format=written, sha256=upload.sha256)
        return _Plan(SourceKind.MANIFEST, upload.name, manifest)


def _add(session: Session, job: Job, source_id: str, plan: _Plan) -> None:
    total = None
    if isinstance(plan.spec, UrlsSpec):
        total = len(plan.spec.items)
    elif isinstance(plan.spec, UploadSpec):
        total = 1
    session.add(
        Source(
            id=source_id,
            job_id=job.id,
            kind=plan.kind.value,
            name=plan.name,
            spec=plan.spec.model_dump(mode="json"),
            total=total,
            traceparent=traces.current(),
        )
    )


def _no_archive() -> Problem:
    return invalid("archive_unreadable", "Not a ZIP, a TAR, a TAR.GZ or a TAR.ZST.")


def _no_manifest() -> Problem:
    return invalid("manifest_unreadable", "Neither JSON lines nor CSV.")


class _Opened:
    """A body whose first bytes have been looked at. Reads as if they had not."""

    def __init__(self, body: Readable) -> None:
        self._body = body
        self.head = b""
        while len(self.head) < HEAD_BYTES and (block := body.read(HEAD_BYTES - len(self.head))):
            self.head += block
        self._unread = self.head

    def read(self, size: int, /) -> bytes:
        if self._unread:
            block, self._unread = self._unread[:size], self._unread[size:]
            return block
        return self._body.read(size)
