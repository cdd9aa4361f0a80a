"""The object store of a cluster: a bucket of any S3 server."""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path

import urllib3
from minio.datatypes import ListMultipartUploadsResult, Part

from common.errors import NotFound, SoundmillError, StoreRefused
from common.settings import Settings
from common.storage.base import (
    BLOCK_BYTES,
    Exactly,
    Hashing,
    MultipartStat,
    ObjectStat,
    Readable,
    StoredObject,
    StoredPart,
    StoredParts,
    check_key,
    check_size,
    os_errors,
)
from common.storage.measure import measured, measured_list, measured_stream
from common.storage.s3_client import (
    PastTheEnd,
    make_client,
    make_pool,
    refusal,
    s3_errors,
    time_of,
)

MAX_PARTS = 10_000  # of one upload
MIN_PART_BYTES = 8 << 20
PARTS_AT_ONCE = 3  # sent while the next one is read: more costs memory and gains little
SIGNED_FOR_S = 900
NO_BUCKET = "NoSuchBucket"

Parts = list[Part]
Query = dict[str, str | list[str] | tuple[str]]


class S3Store:
    """Objects in a bucket of any S3 server. Nothing but plain S3 calls is used.

    Links for clients are signed for the endpoint at which they reach the server, if they do.
    """

    def __init__(self, settings: Settings, bucket: str) -> None:
        self.bucket = bucket
        self._region = settings.s3_region
        self._part_bytes = max(MIN_PART_BYTES, -(-settings.max_upload_bytes // MAX_PARTS))
        self._pool = make_pool()
        self._client = make_client(settings, settings.s3_endpoint, self._pool)
        public = settings.s3_public_endpoint
        self._public = make_client(settings, public, self._pool) if public else None

    @measured("prepare")
    def prepare(self) -> None:
        with s3_errors("preparing the bucket"):
            if not self._client.bucket_exists(self.bucket):
                self._client.make_bucket(self.bucket, self._region)

    @measured("check")
    def check(self) -> float | None:
        # Not HEAD, as the client has it: refusals of that have no body that says why.
        query: Query = {"list-type": "2", "max-keys": "1"}
        try:
            with s3_errors("checking the bucket"):
                answer = self._client._execute("GET", self.bucket, query_params=query)
        except StoreRefused as error:
            if error.reason != NO_BUCKET:
                raise
            told = f"bucket {self.bucket} does not exist"
            raise StoreRefused(NO_BUCKET, told, error.store_time_s) from error
        return time_of(answer)

    @measured("put")
    def put_stream(
        self, key: str, reader: Readable, media_type: str, max_bytes: int | None = None
    ) -> StoredObject:
        check_key(key)
        source = Hashing(reader, max_bytes)
        first = source.read(self._part_bytes)
        if len(first) == self._part_bytes:
            etag = self._put_in_parts(key, first, source, media_type)
        else:
            etag = self._put_whole(key, first, media_type)
        return source.stored(key, etag)

    @measured("put")
    def put_file(self, key: str, path: Path, media_type: str) -> StoredObject:
        with path.open("rb") as file:
            return self.put_stream(key, file, media_type)

    @measured_stream("read")
    @contextmanager
    def open(
        self, key: str, start: int = 0, length: int | None = None
    ) -> Iterator[Iterator[bytes]]:
        check_key(key)
        if length == 0:
            self.stat(key)
            yield iter(())
            return
        try:
            with s3_errors(f"opening {key}"):
                response = self._client.get_object(self.bucket, key, start, length or 0)
        except PastTheEnd:
            yield iter(())
            return
        try:
            yield _blocks(response, key)
        finally:
            response.close()  # drops the connection when not everything was read
            response.release_conn()

    @measured("fetch")
    def fetch(self, key: str, path: Path, max_bytes: int | None = None) -> None:
        partial = path.with_name(f"{path.name}.partial")
        size_bytes = 0
        try:
            with self.open(key) as blocks, os_errors(f"fetching {key}"):
                with partial.open("wb") as file:
                    for block in blocks:
                        size_bytes += len(block)
                        check_size(size_bytes, max_bytes)
                        file.write(block)
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def local_path(self, key: str) -> Path | None:
        return None

    @measured("stat")
    def stat(self, key: str) -> ObjectStat:
        check_key(key)
        with s3_errors(f"looking at {key}"):
            found = self._client.stat_object(self.bucket, key)
        return ObjectStat(key, found.size or 0, found.etag or "")

    @measured("delete")
    def delete(self, key: str) -> None:
        check_key(key)
        with s3_errors(f"deleting {key}"):
            self._client.remove_object(self.bucket, key)

    @measured_list("list")
    def list(self, prefix: str = "") -> Iterator[ObjectStat]:
        with s3_errors(f"listing {prefix}"):
            for found in self._client.list_objects(self.bucket, prefix, recursive=True):
                yield ObjectStat(found.object_name or "", found.size or 0, found.etag or "")

    def presigned_get(self, key: str, expires_s: int, filename: str) -> str | None:
        check_key(key)
        if self._public is None:
            return None
        with s3_errors(f"signing {key}"):
            return self._public.presigned_get_object(
                self.bucket,
                key,
                expires=timedelta(seconds=expires_s),
                response_headers={
                    "response-content-disposition": f'attachment; filename="{filename}"'
                },
            )

    @measured("start_multipart")
    def start_multipart(self, key: str, media_type: str, part_bytes: int) -> str:
        check_key(key)
        with s3_errors(f"starting {key}"):
            return self._client._create_multipart_upload(
                self.bucket, key, {"Content-Type": media_type}
            )

    @measured("put_part")
    def put_part(self, key: str, store_id: str, number: int, reader: Readable, size: int) -> str:
        # The client's own call holds a part in memory to sign it. A signed URL does not cover the
        # content, so the part can be passed on while it arrives.
        check_key(key)
        doing = f"storing part {number} of {key}"
        source = Exactly(reader, size)
        with s3_errors(doing):
            url = self._client.get_presigned_url(
                "PUT",
                self.bucket,
                key,
                timedelta(seconds=SIGNED_FOR_S),
                extra_query_params=_part_query(store_id, number),
            )
            try:
                response = self._pool.request(
                    "PUT",
                    url,
                    body=source.blocks(),
                    headers={"Content-Length": str(size)},
                    retries=False,
                )
            except Exception:
                if source.error is not None:
                    raise source.error from None
                raise
            if response.status != HTTPStatus.OK:
                raise refusal(response)
        return response.headers["ETag"].strip('"')

    @measured("list_parts")
    def list_parts(self, key: str, store_id: str) -> StoredParts:
        check_key(key)
        found: StoredParts = []
        marker: str | None = None
        with s3_errors(f"listing the parts of {key}"):
            while True:
                page = self._client._list_parts(
                    self.bucket, key, store_id, part_number_marker=marker
                )
                found += [StoredPart(p.part_number, p.size or 0, p.etag) for p in page.parts]
                marker = page.next_part_number_marker
                if not page.is_truncated or not marker:
                    return found

    def presign_part(self, key: str, store_id: str, number: int, expires_s: int) -> str | None:
        check_key(key)
        if self._public is None:
            return None
        with s3_errors(f"signing {key}"):
            return self._public.get_presigned_url(
                "PUT",
                self.bucket,
                key,
                timedelta(seconds=expires_s),
                extra_query_params=_part_query(store_id, number),
            )

    @measured("complete_multipart")
    def complete_multipart(self, key: str, store_id: str, parts: Sequence[StoredPart]) -> None:
        check_key(key)
        with s3_errors(f"completing {key}"):
            self._complete(key, store_id, [Part(part.number, part.etag) for part in parts])

    @measured("abort_multipart")
    def abort_multipart(self, key: str, store_id: str) -> None:
        check_key(key)
        with suppress(NotFound), s3_errors(f"aborting {key}"):
            self._client._abort_multipart_upload(self.bucket, key, store_id)

    @measured_list("list_multiparts")
    def list_multiparts(self, older_than_s: float) -> Iterator[MultipartStat]:
        query: Query = {"uploads": ""}
        before = time.time() - older_than_s
        with s3_errors("listing multipart uploads"):
            while True:
                # The client's own call sends an empty delimiter, which not every server ignores.
                page = ListMultipartUploadsResult(
                    self._client._execute("GET", self.bucket, query_params=query)
                )
                for found in page.uploads:
                    started = found.initiated_time
                    if started is not None and started.timestamp() < before:
                        yield MultipartStat(
                            found.object_name, found.upload_id or "", started.timestamp()
                        )
                if not page.is_truncated or not page.next_key_marker:
                    return
                # Whatever else has this very key comes when it is listed the next time.
                query["key-marker"] = page.next_key_marker

    def _put_whole(self, key: str, data: bytes, media_type: str) -> str | None:
        with s3_errors(f"storing {key}"):
            return self._client.put_object(
                self.bucket, key, io.BytesIO(data), len(data), content_type=media_type
            ).etag

    def _put_in_parts(self, key: str, first: bytes, source: Hashing, media_type: str) -> str | None:
        """Store ``first`` and the rest of ``source`` part by part; return the entity tag."""
        store_id = self.start_multipart(key, media_type, self._part_bytes)
        try:
            parts: Parts = []
            sent: deque[Future[Part]] = deque()
            data, number = first, 1
            with ThreadPoolExecutor(PARTS_AT_ONCE, "part") as pool:
                while data:
                    if len(sent) == PARTS_AT_ONCE:
                        parts.append(sent.popleft().result())
                    sent.append(pool.submit(self._put_bytes, key, store_id, number, data))
                    data, number = source.read(self._part_bytes), number + 1
                parts += [future.result() for future in sent]
            with s3_errors(f"storing {key}"):
                return self._complete(key, store_id, parts)
        except BaseException:
            with suppress(SoundmillError):  # whoever cleans up finds it by list_multiparts
                self.abort_multipart(key, store_id)
            raise

    def _put_bytes(self, key: str, store_id: str, number: int, data: bytes) -> Part:
        with s3_errors(f"storing {key}"):
            etag = self._client._upload_part(self.bucket, key, data, None, store_id, number)
        return Part(number, etag)

    def _complete(self, key: str, store_id: str, parts: Parts) -> str | None:
        return self._client._complete_multipart_upload(self.bucket, key, store_id, parts).etag


def _part_query(store_id: str, number: int) -> Query:
    return {"partNumber": str(number), "uploadId": store_id}


def _blocks(response: urllib3.BaseHTTPResponse, key: str) -> Iterator[bytes]:
    with s3_errors(f"reading {key}"):
        yield from response.stream(BLOCK_BYTES)
