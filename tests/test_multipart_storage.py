"""Uploads in parts: both object stores do the same, on a real directory and a real S3 server."""

from __future__ import annotations

import errno
import io
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from common.errors import Conflict, DiskFull, NotFound, PartShort
from common.settings import Settings
from common.storage import ObjectStore, StoredPart, open_store
from common.storage import parts as parts_module
from common.storage.directory import ABANDONED_AFTER_S, DirectoryStore

MIB = 1 << 20
PART_BYTES = 5 * MIB
KEY = "uploads/one"


def contents(store: ObjectStore, key: str) -> bytes:
    with store.open(key) as blocks:
        return b"".join(blocks)


def start(store: ObjectStore) -> str:
    return store.start_multipart(KEY, "audio/wav", PART_BYTES)


def put(store: ObjectStore, store_id: str, number: int, data: bytes) -> str:
    return store.put_part(KEY, store_id, number, io.BytesIO(data), len(data))


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_parts_in_any_order_become_one_object(store: ObjectStore) -> None:
    data = os.urandom(2 * PART_BYTES + 1234)
    store_id = start(store)
    assert store.list_parts(KEY, store_id) == []
    for number in (3, 1, 2):
        put(store, store_id, number, data[(number - 1) * PART_BYTES : number * PART_BYTES])
    parts = store.list_parts(KEY, store_id)
    assert [(part.number, part.size_bytes) for part in parts] == [
        (1, PART_BYTES),
        (2, PART_BYTES),
        (3, 1234),
    ]
    assert list(store.list()) == []
    store.complete_multipart(KEY, store_id, parts)
    assert contents(store, KEY) == data
    assert [found.key for found in store.list()] == [KEY]
    assert list(store.list_multiparts(-5)) == []
    with suppress(NotFound):  # some S3 servers know it still, and say yes again
        store.complete_multipart(KEY, store_id, parts)
    assert contents(store, KEY) == data


def test_a_part_sent_again_replaces_the_first(store: ObjectStore) -> None:
    store_id = start(store)
    first = put(store, store_id, 1, b"first")
    second = put(store, store_id, 1, b"second one")
    assert first != second
    assert store.list_parts(KEY, store_id) == [StoredPart(1, 10, second)]
    with pytest.raises(Conflict):
        store.complete_multipart(KEY, store_id, [StoredPart(1, 5, first)])
    store.complete_multipart(KEY, store_id, store.list_parts(KEY, store_id))
    assert contents(store, KEY) == b"second one"


def test_a_part_that_fails_is_not_there(store: ObjectStore) -> None:
    class ClientGone(Exception):
        pass

    class Breaks:
        def __init__(self) -> None:
            self.blocks = [b"x" * 100_000] * 3

        def read(self, _size: int, /) -> bytes:
            if not self.blocks:
                raise ClientGone
            return self.blocks.pop()

    store_id = start(store)
    with pytest.raises(ClientGone):
        store.put_part(KEY, store_id, 1, Breaks(), PART_BYTES)
    with pytest.raises(PartShort):
        store.put_part(KEY, store_id, 2, io.BytesIO(b"x" * 1000), PART_BYTES)
    assert store.list_parts(KEY, store_id) == []
    put(store, store_id, 1, b"whole")
    assert [part.size_bytes for part in store.list_parts(KEY, store_id)] == [5]


def test_abort_leaves_nothing(store: ObjectStore, tmp_path: Path) -> None:
    store_id = start(store)
    put(store, store_id, 1, b"x" * 1000)
    (found,) = store.list_multiparts(-5)
    assert (found.key, found.store_id) == (KEY, store_id)
    assert abs(found.started_at - time.time()) < 60
    assert list(store.list_multiparts(3600)) == []
    for _ in range(2):
        store.abort_multipart(KEY, store_id)
    assert list(store.list_multiparts(-5)) == []
    assert list(store.list()) == []
    assert files_in(tmp_path) == []
    with pytest.raises(NotFound):
        store.list_parts(KEY, store_id)
    with pytest.raises(NotFound):
        put(store, store_id, 1, b"late")


def test_a_large_stream_that_fails_leaves_no_multipart(store: ObjectStore) -> None:
    class Endless:
        def read(self, size: int, /) -> bytes:
            return bytes(size)

    with pytest.raises(Exception, match="more than"):
        store.put_stream("a", Endless(), "audio/wav", max_bytes=20 * MIB)
    assert list(store.list_multiparts(-5)) == []
    assert list(store.list()) == []


def test_a_presigned_part_arrives(store_options: dict[str, Any], tmp_path: Path) -> None:
    endpoint = store_options.get("s3_endpoint", "")
    store = open_store(Settings(home=tmp_path, s3_public_endpoint=endpoint, **store_options))
    hidden = open_store(Settings(home=tmp_path, **store_options))
    store_id = start(store)
    assert hidden.presign_part(KEY, store_id, 1, 60) is None
    url = store.presign_part(KEY, store_id, 1, 60)
    if isinstance(store, DirectoryStore):
        assert url is None
        return
    assert url is not None
    assert httpx.put(url.replace("partNumber=1", "partNumber=2"), content=b"x").status_code == 403
    answer = httpx.put(url, content=b"straight in")
    assert answer.status_code == 200
    (part,) = store.list_parts(KEY, store_id)
    assert part.etag == answer.headers["etag"].strip('"')
    store.complete_multipart(KEY, store_id, [part])
    assert contents(store, KEY) == b"straight in"


@pytest.fixture
def directory(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "objects")


def test_nobody_writes_into_what_is_being_completed(directory: DirectoryStore) -> None:
    store_id = start(directory)

    class Completes:
        """A reader in whose middle others try to complete and to write the same part."""

        def __init__(self) -> None:
            self.blocks = [b"second", b"first "]

        def read(self, _size: int, /) -> bytes:
            with pytest.raises(Conflict):
                directory.complete_multipart(KEY, store_id, [])
            with pytest.raises(Conflict):
                put(directory, store_id, 1, b"x")
            put(directory, store_id, 2, b"another part")
            return self.blocks.pop()

    directory.put_part(KEY, store_id, 1, Completes(), 12)
    assert [part.number for part in directory.list_parts(KEY, store_id)] == [1, 2]


def test_a_part_that_comes_after_the_abort_is_lost(
    directory: DirectoryStore, tmp_path: Path
) -> None:
    store_id = start(directory)

    class Aborts:
        def read(self, size: int, /) -> bytes:
            directory.abort_multipart(KEY, store_id)
            return b"x" * size

    with pytest.raises(NotFound):
        directory.put_part(KEY, store_id, 1, Aborts(), 10)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        [StoredPart(1, PART_BYTES, "other")],
        [StoredPart(2, 3, "")],
    ],
)
def test_parts_that_are_not_so(directory: DirectoryStore, wrong: list[StoredPart]) -> None:
    store_id = start(directory)
    put(directory, store_id, 1, bytes(PART_BYTES))
    put(directory, store_id, 2, b"abc")
    with pytest.raises(Conflict):
        directory.complete_multipart(KEY, store_id, wrong)
    both = directory.list_parts(KEY, store_id)
    with pytest.raises(Conflict):
        directory.complete_multipart(KEY, store_id, both[::-1])
    with pytest.raises(NotFound):
        directory.complete_multipart("uploads/two", store_id, both)
    directory.complete_multipart(KEY, store_id, both)
    assert contents(directory, KEY) == bytes(PART_BYTES) + b"abc"
    assert directory.stat(KEY).size_bytes == PART_BYTES + 3


def test_a_full_disk_costs_the_part_alone(
    directory: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store_id = start(directory)
    with monkeypatch.context() as patched:
        patched.setattr(parts_module, "write_all", full)
        with pytest.raises(DiskFull):
            put(directory, store_id, 1, b"x")
    assert directory.list_parts(KEY, store_id) == []


def test_prepare_removes_what_a_kill_left_of_an_upload(directory: DirectoryStore) -> None:
    directory.prepare()
    alive = start(directory)
    uploads = directory.root / ".parts"
    half_made, half_done = uploads / f".{'0' * 32}", uploads / ("1" * 32)
    for folder in (half_made, half_done):
        folder.mkdir()
        (folder / "about").write_text("{}")
    long_ago = time.time() - 2 * ABANDONED_AFTER_S
    for folder in (half_made, half_done, uploads / alive):
        os.utime(folder, (long_ago, long_ago))
    directory.prepare()
    assert [folder.name for folder in uploads.iterdir()] == [alive]


@pytest.mark.parametrize("store_id", ["", "..", "../x", "a" * 31, "A" * 32, "0" * 32])
def test_names_of_uploads_that_are_none(directory: DirectoryStore, store_id: str) -> None:
    start(directory)
    with pytest.raises(NotFound):
        directory.list_parts(KEY, store_id)
    with pytest.raises(NotFound):
        put(directory, store_id, 1, b"x")
