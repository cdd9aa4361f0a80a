"""Object storage: bytes under keys, in any S3 server or in a directory.

Owns the two stores and their errors; what lies where is decided by the callers. An object is
either there whole or not at all: S3 shows an upload when it is complete, the directory writes
beside and renames. Keys are made by Soundmill, never by users, and are checked all the same.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from common.settings import Settings
from common.storage.base import MultipartStat as MultipartStat
from common.storage.base import ObjectStat as ObjectStat
from common.storage.base import ObjectStore as ObjectStore
from common.storage.base import Readable as Readable
from common.storage.base import StoredObject as StoredObject
from common.storage.base import StoredPart as StoredPart
from common.storage.directory import DirectoryStore
from common.storage.measure import start_counting
from common.storage.s3 import S3Store


def open_store(settings: Settings) -> ObjectStore:
    """Return the store of ``settings.store_url``. Connects to nothing yet."""
    start_counting()
    parts = urlsplit(settings.store_url)
    if parts.scheme == "file":
        return DirectoryStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        return S3Store(settings, parts.netloc)
    raise ValueError("store_url must look like file:///path or s3://bucket")
