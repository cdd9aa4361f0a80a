"""Opens the bytes behind an address: http(s), s3 and file, each only where that is allowed."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote_to_bytes, urlsplit

from minio import Minio

from common.egress import Egress
from common.errors import EntryRejected, NotFound, TransientError, UrlForbidden, UrlUnreachable
from common.settings import Settings
from common.sources import ManifestLine
from common.storage import Readable
from common.storage.s3_client import make_client, make_pool, s3_errors
from services.ingester.entries import Opens

MAX_REDIRECTS = 5
BLOCK_BYTES = 1 << 20
BUSY = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


class UrlStatus(TransientError):
    """The address answers, but not with the recording; perhaps later."""

    code = "url_status"


@dataclass(frozen=True)
class Bucket:
    """A bucket that may be read, and the key or prefix in it."""

    client: Minio
    bucket: str
    key: str


class Locators:
    """Opens addresses. Owns the connections that this needs; threads may share it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.egress = Egress(settings)
        self._s3: Minio | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close every connection."""
        self.egress.close()

    def locate(self, line: ManifestLine) -> Opens:
        """Return what opens a line's address.

        Opening and reading raise UrlForbidden; UrlUnreachable and UrlStatus where another try may
        help; EntryRejected where none will.
        """
        scheme = urlsplit(line.url).scheme if "://" in line.url else ""
        if scheme == "s3":
            return lambda: self._object(line.url)
        if scheme == "file":
            return lambda: self._file(line.url)
        return lambda: self._answer(line.url)

    def bucket(self, url: str) -> Bucket:
        """Return where an s3:// address points. Raises UrlForbidden."""
        bucket, _, key = url.removeprefix("s3://").partition("/")
        settings = self.settings
        allowed = {name.strip() for name in settings.import_buckets.split(",")}
        own = urlsplit(settings.store_url).netloc if settings.store_url.startswith("s3:") else ""
        if not bucket or bucket not in allowed or bucket == own:
            raise UrlForbidden(f"the bucket {bucket!r} is not one to import from")
        with self._lock:
            if self._s3 is None:
                self._s3 = make_client(settings, settings.s3_endpoint, make_pool())
        return Bucket(self._s3, bucket, key)

    @contextmanager
    def _answer(self, url: str) -> Iterator[Readable]:
        with self.egress.request(
            "GET", url, timeout_s=self.settings.url_timeout_s, max_redirects=MAX_REDIRECTS
        ) as response:
            status = response.status
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in BUSY:
                raise UrlStatus(f"the server answers with status {status}")
            if status != HTTPStatus.OK:
                raise EntryRejected("url_status", f"the server answers with status {status}")
            yield Blocks(response.blocks)

    @contextmanager
    def _object(self, url: str) -> Iterator[Readable]:
        place = self.bucket(url)
        if not place.key:
            raise UrlForbidden("the address names no object")
        try:
            with s3_errors("opening an object to import"):
                response = place.client.get_object(place.bucket, place.key)
        except NotFound as error:
            raise EntryRejected("url_status", "there is no such object") from error
        try:
            yield Blocks(_object_blocks(response.stream(BLOCK_BYTES)))
        finally:
            response.close()
            response.release_conn()

    @contextmanager
    def _file(self, url: str) -> Iterator[Readable]:
        try:
            with open_inside(self.settings, url) as file:
                yield file
        except (FileNotFoundError, NotADirectoryError) as error:
            raise EntryRejected("url_status", "there is no such file") from error
        except PermissionError as error:
            raise EntryRejected("url_status", "the file may not be read") from error
        except OSError as error:
            raise UrlUnreachable(f"the file cannot be read: {error.strerror}") from error


class Blocks:
    """Blocks as a reader."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = b""

    def read(self, size: int) -> bytes:
        block = self._rest or next(self._blocks, b"")
        self._rest = block[size:]
        return block[:size]


def import_path(settings: Settings, url: str) -> tuple[Path, tuple[str, ...]]:
    """Return the import root that a file:// address lies in, and the rest of its path.

    Raises:
        UrlForbidden: it lies in none, or is no such address.
    """
    parts = urlsplit(url)
    path = os.fsdecode(unquote_to_bytes(parts.path))
    steps = tuple(step for step in path.split("/") if step)
    if parts.netloc or not path.startswith("/") or "\0" in path or {".", ".."} & set(steps):
        raise UrlForbidden("not an address like file:///folder/file")
    for root in filter(None, (part.strip() for part in settings.import_roots.split(","))):
        own = Path(root).parts[1:]
        if steps[: len(own)] == own:
            return Path(root), steps[len(own) :]
    raise UrlForbidden("the file lies in no folder to import from")


@contextmanager
def open_inside(settings: Settings, url: str) -> Iterator[BinaryIO]:
    """Open a regular file below an import root. No link on the way is followed."""
    root, steps = import_path(settings, url)
    if not steps:
        raise UrlForbidden("the address names a folder")
    folder = os.open(os.path.realpath(root), os.O_RDONLY | os.O_DIRECTORY)
    try:
        for step in steps[:-1]:
            inner = _step(step, os.O_DIRECTORY, folder)
            os.close(folder)
            folder = inner
        descriptor = _step(steps[-1], os.O_NONBLOCK, folder)  # a pipe does not block it
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UrlForbidden("not a regular file")
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        yield file


def _step(name: str, flags: int, folder: int) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=folder)
    except NotADirectoryError:
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise UrlForbidden("the path leads over a link") from None
        raise
    except OSError as error:
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise UrlForbidden("the path leads over a link") from error
        raise


def _object_blocks(blocks: Iterator[bytes]) -> Iterator[bytes]:
    with s3_errors("reading an object to import"):
        yield from blocks
