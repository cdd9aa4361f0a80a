"""The object store of a cluster: a bucket of any S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, cast

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error
from urllib3.exceptions import HTTPError

from common.errors import DiskFull, NotFound, StoreUnavailable
from common.settings import Settings
from common.storage.base import (
    BLOCK_BYTES,
    Hashing,
    ObjectStat,
    Readable,
    StoredObject,
    check_key,
    os_errors,
)

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
RETRIES = 3
MAX_PARTS = 10_000  # of one upload
MIN_PART_BYTES = 8 << 20


class S3Store:
    """Objects in a bucket of any S3 server. Nothing but plain S3 calls is used."""

    def __init__(self, settings: Settings, bucket: str) -> None:
        self.bucket = bucket
        self._region = settings.s3_region
        self._part_bytes = max(MIN_PART_BYTES, -(-settings.max_upload_bytes // MAX_PARTS))
        self._client = Minio(
            settings.s3_endpoint,
            access_key=settings.s3_access_key.get_secret_value(),
            secret_key=settings.s3_secret_key.get_secret_value(),
            region=settings.s3_region,
            secure=settings.s3_secure,
            http_client=urllib3.PoolManager(
                maxsize=32,
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
                retries=urllib3.Retry(
                    total=RETRIES,
                    backoff_factor=0.2,
                    status_forcelist=(500, 502, 503, 504),
                    allowed_methods=None,  # each call has the same effect when repeated
                    raise_on_status=False,
                ),
            ),
        )

    def prepare(self) -> None:
        with self._errors("preparing the bucket"):
            if not self._client.bucket_exists(self.bucket):
                self._client.make_bucket(self.bucket, self._region)

    def check(self) -> None:
        with self._errors("checking the bucket"):
            exists = self._client.bucket_exists(self.bucket)
        if not exists:
            raise StoreUnavailable(f"bucket {self.bucket} does not exist")

    def put_stream(
        self, key: str, reader: Readable, media_type: str, max_bytes: int | None = None
    ) -> StoredObject:
        check_key(key)
        source = Hashing(reader, max_bytes)
        with self._errors(f"storing {key}"):
            result = self._client.put_object(
                self.bucket,
                key,
                cast(BinaryIO, source),  # only its read is called
                length=-1,
                part_size=self._part_bytes,
                num_parallel_uploads=1,
                content_type=media_type,
            )
        return source.stored(key, result.etag)

    def put_file(self, key: str, path: Path, media_type: str) -> StoredObject:
        with path.open("rb") as file:
            return self.put_stream(key, file, media_type)

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
            with self._errors(f"opening {key}"):
                response = self._client.get_object(self.bucket, key, start, length or 0)
        except _PastTheEnd:
            yield iter(())
            return
        try:
            yield self._blocks(response, key)
        finally:
            response.close()  # drops the connection when not everything was read
            response.release_conn()

    def fetch(self, key: str, path: Path) -> None:
        partial = path.with_name(f"{path.name}.partial")
        try:
            with self.open(key) as blocks, os_errors(f"fetching {key}"):
                with partial.open("wb") as file:
                    for block in blocks:
                        file.write(block)
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def local_path(self, key: str) -> Path | None:
        return None

    def stat(self, key: str) -> ObjectStat:
        check_key(key)
        with self._errors(f"looking at {key}"):
            found = self._client.stat_object(self.bucket, key)
        return ObjectStat(key, found.size or 0, found.etag or "")

    def delete(self, key: str) -> None:
        check_key(key)
        with self._errors(f"deleting {key}"):
            self._client.remove_object(self.bucket, key)

    def list(self, prefix: str = "") -> Iterator[ObjectStat]:
        with self._errors(f"listing {prefix}"):
            for found in self._client.list_objects(self.bucket, prefix, recursive=True):
                yield ObjectStat(found.object_name or "", found.size or 0, found.etag or "")

    def presigned_get(self, key: str, expires_s: int, filename: str) -> str | None:
        check_key(key)
        with self._errors(f"signing {key}"):
            return self._client.presigned_get_object(
                self.bucket,
                key,
                expires=timedelta(seconds=expires_s),
                response_headers={
                    "response-content-disposition": f'attachment; filename="{filename}"'
                },
            )

    def _blocks(self, response: urllib3.BaseHTTPResponse, key: str) -> Iterator[bytes]:
        with self._errors(f"reading {key}"):
            yield from response.stream(BLOCK_BYTES)

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Turn the errors of the client into those of our tree."""
        try:
            yield
        except S3Error as error:
            if error.code == "NoSuchKey":
                raise NotFound(f"no object while {doing}") from error
            if error.code == "InvalidRange":
                raise _PastTheEnd from error
            if error.response.status == 507:
                raise DiskFull(f"the object store is full while {doing}") from error
            raise StoreUnavailable(f"{error.code} ({error.message}) while {doing}") from error
        except (MinioException, HTTPError) as error:
            raise StoreUnavailable(f"{type(error).__name__} while {doing}") from error


class _PastTheEnd(Exception):
    """The stretch asked for begins past the end of the object."""
