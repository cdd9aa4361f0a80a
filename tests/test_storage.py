"""Both object stores do the same, against a real directory and a real S3 server."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DiskFull, NotFound, ObjectTooLarge, StoreUnavailable
from common.settings import Settings
from common.storage import ObjectStore, open_store
from common.storage import directory as directory_module
from common.storage.base import KEY, check_key
from common.storage.directory import ABANDONED_AFTER_S, DirectoryStore

MIB = 1 << 20


class Dribble:
    """A reader that gives a few bytes at a time, then ends or raises."""

    def __init__(self, data: bytes, step: int, error: Exception | None = None) -> None:
        self._source = io.BytesIO(data)
        self._step = step
        self._error = error

    def read(self, size: int, /) -> bytes:
        block = self._source.read(min(size, self._step))
        if not block and self._error is not None:
            raise self._error
        return block


def contents(store: ObjectStore, key: str, start: int = 0, length: int | None = None) -> bytes:
    with store.open(key, start, length) as blocks:
        return b"".join(blocks)


def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [found.key for found in store.list(prefix)]


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def directory(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "objects")


@pytest.mark.parametrize("size", [0, 1, 1000, MIB, 17 * MIB + 5])
def test_what_is_put_comes_back_with_its_hash(store: ObjectStore, size: int) -> None:
    data = os.urandom(size)
    stored = store.put_stream("inputs/a/b", Dribble(data, 65_536), "audio/wav")
    assert stored.key == "inputs/a/b"
    assert stored.size_bytes == size
    assert stored.sha256 == hashlib.sha256(data).hexdigest()
    assert contents(store, "inputs/a/b") == data
    found = store.stat("inputs/a/b")
    assert (found.size_bytes, found.etag) == (size, stored.etag)


def test_a_second_put_replaces_the_first(store: ObjectStore) -> None:
    first = store.put_stream("a", io.BytesIO(b"first"), "text/plain")
    second = store.put_stream("a", io.BytesIO(b"second one"), "text/plain")
    assert contents(store, "a") == b"second one"
    assert first.etag != second.etag
    assert keys(store) == ["a"]


def test_put_file_and_fetch(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3 * MIB))
    stored = store.put_file("artifacts/x/mask.npz", source, "application/zip")
    assert stored.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    target = tmp_path / "target"
    target.write_bytes(b"what was there before")
    store.fetch("artifacts/x/mask.npz", target)
    assert target.read_bytes() == source.read_bytes()
    local = store.local_path("artifacts/x/mask.npz")
    assert local is None or local.read_bytes() == source.read_bytes()


def test_what_is_too_large_is_not_fetched(store: ObjectStore, tmp_path: Path) -> None:
    key, target = "artifacts/x/vectors.npz", tmp_path / "target"
    store.put_stream(key, io.BytesIO(bytes(2 * MIB + 1)), "application/zip")
    with pytest.raises(ObjectTooLarge):
        store.fetch(key, target, 2 * MIB)
    assert list(tmp_path.glob("target*")) == []
    store.fetch(key, target, 2 * MIB + 1)
    assert target.stat().st_size == 2 * MIB + 1


@pytest.mark.parametrize(
    ("start", "length"),
    [
        (0, None),
        (0, 0),
        (0, 1),
        (5, 10),
        (999, 1),
        (990, 100),
        (990, None),
        (1000, None),
        (2000, 5),
    ],
)
def test_a_stretch_is_a_slice(store: ObjectStore, start: int, length: int | None) -> None:
    data = os.urandom(1000)
    store.put_stream("a", io.BytesIO(data), "audio/wav")
    end = None if length is None else start + length
    assert contents(store, "a", start, length) == data[start:end]


def test_what_is_missing_is_not_found(store: ObjectStore, tmp_path: Path) -> None:
    store.put_stream("a/b", io.BytesIO(b"x"), "text/plain")
    for key in ("nope", "a", "a/b/c", "a/c"):
        with pytest.raises(NotFound):
            store.stat(key)
        with pytest.raises(NotFound), store.open(key):
            pass
        with pytest.raises(NotFound), store.open(key, 0, 0):
            pass
        with pytest.raises(NotFound):
            store.fetch(key, tmp_path / "target")
        assert store.local_path(key) is None
    assert not (tmp_path / "target").exists()


def test_delete_twice_and_list(store: ObjectStore) -> None:
    for key in ("a/1", "a/2", "a/b/3", "ab", "c"):
        store.put_stream(key, io.BytesIO(key.encode()), "text/plain")
    assert keys(store) == ["a/1", "a/2", "a/b/3", "ab", "c"]
    assert keys(store, "a/") == ["a/1", "a/2", "a/b/3"]
    assert keys(store, "a") == ["a/1", "a/2", "a/b/3", "ab"]
    assert keys(store, "none/such/") == []
    assert {found.key: found.size_bytes for found in store.list("a/b/")} == {"a/b/3": 5}
    for _ in range(2):
        store.delete("a/b/3")
        store.delete("c")
    assert keys(store) == ["a/1", "a/2", "ab"]


@pytest.mark.parametrize("size", [100, 9 * MIB])
def test_an_error_of_the_reader_leaves_nothing(
    store: ObjectStore, tmp_path: Path, size: int
) -> None:
    class ClientGone(Exception):
        pass

    with pytest.raises(ClientGone):
        store.put_stream("a", Dribble(bytes(size), 65_536, ClientGone()), "audio/wav")
    assert keys(store) == []
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("limit", [10, 9 * MIB])
def test_more_than_allowed_leaves_nothing(store: ObjectStore, tmp_path: Path, limit: int) -> None:
    store.put_stream("exact", Dribble(bytes(limit), 65_536), "audio/wav", max_bytes=limit)
    with pytest.raises(ObjectTooLarge):
        store.put_stream("a", Dribble(bytes(limit + 1), 65_536), "audio/wav", max_bytes=limit)
    assert keys(store) == ["exact"]
    store.delete("exact")
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    "key",
    [
        *["", "/", "/a", "a/", "a//b", "..", "../a", "a/../b", ".partial/x", "a/.b", "~/a", "-a"],
        *["a\\b", "a b", "ä", "a\n", "a\0", "a" * 513, "a?b", "a%2e", "C:/a"],
    ],
)
def test_keys_that_are_none(store: ObjectStore, tmp_path: Path, key: str) -> None:
    calls = [
        lambda: store.put_stream(key, io.BytesIO(b"x"), "text/plain"),
        lambda: store.open(key).__enter__(),
        lambda: store.fetch(key, tmp_path / "target"),
        lambda: store.local_path(key) if isinstance(store, DirectoryStore) else store.stat(key),
        lambda: store.start_multipart(key, "text/plain", MIB),
        lambda: store.list_parts(key, "0" * 32),
        lambda: store.stat(key),
        lambda: store.delete(key),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="not an object key"):
            call()


@given(st.text(max_size=40))
def test_a_checked_key_stays_below_the_root(key: str) -> None:
    if KEY.fullmatch(key):
        root = Path("/objects")
        path = root / check_key(key)
        assert os.path.normpath(path) == str(path)
        assert root in path.parents
    else:
        with pytest.raises(ValueError, match="not an object key"):
            check_key(key)


def test_many_puts_and_deletes_at_once(store: ObjectStore) -> None:
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                key = f"shared/{number}/{turn}"
                store.put_stream(key, io.BytesIO(b"x" * number), "text/plain")
                store.put_stream("shared/same", io.BytesIO(b"y" * 1000), "text/plain")
                store.delete(key)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert keys(store) == ["shared/same"]
    assert contents(store, "shared/same") == b"y" * 1000


def test_prepare_and_check(store: ObjectStore) -> None:
    store.prepare()
    store.prepare()
    store.check()


def test_presigned_url_downloads_and_expires(store_options: dict[str, Any], tmp_path: Path) -> None:
    data = os.urandom(1000)
    endpoint = store_options.get("s3_endpoint", "")
    hidden = open_store(Settings(home=tmp_path, **store_options))
    store = open_store(Settings(home=tmp_path, s3_public_endpoint=endpoint, **store_options))
    store.put_stream("a/b.flac", io.BytesIO(data), "audio/flac")
    assert hidden.presigned_get("a/b.flac", 2, "clean.flac") is None
    url = store.presigned_get("a/b.flac", 2, "clean.flac")
    if isinstance(store, DirectoryStore):
        assert url is None
        return
    assert url is not None
    found = httpx.get(url, headers={"Range": "bytes=10-19"})
    assert (found.status_code, found.content) == (206, data[10:20])
    assert found.headers["content-disposition"] == 'attachment; filename="clean.flac"'
    assert httpx.get(url.replace("a/b.flac", "a/c.flac")).status_code == 403
    time.sleep(3.1)
    assert httpx.get(url).status_code == 403


def test_an_s3_server_that_is_away_is_said_so() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        options: dict[str, Any] = {
            "store_url": "s3://bucket",
            "s3_endpoint": f"127.0.0.1:{nobody.getsockname()[1]}",
            "s3_access_key": "a",
            "s3_secret_key": "secret-of-the-test",
            "s3_secure": False,
        }
        store = open_store(Settings(**options))
        for call in (
            store.check,
            lambda: store.put_stream("a", io.BytesIO(b"x"), "text/plain"),
            lambda: store.stat("a"),
            lambda: list(store.list()),
            lambda: store.open("a").__enter__(),
        ):
            with pytest.raises(StoreUnavailable) as caught:
                call()
            assert "secret-of-the-test" not in str(caught.value)


def test_wrong_secret_and_missing_bucket(s3_server: Any) -> None:
    options: dict[str, Any] = {
        "s3_endpoint": s3_server.endpoint,
        "s3_access_key": s3_server.ACCESS_KEY,
        "s3_secure": False,
    }
    bucket = s3_server.create_bucket()
    wrong = open_store(Settings(store_url=f"s3://{bucket}", s3_secret_key="wrong", **options))
    with pytest.raises(StoreUnavailable):
        wrong.put_stream("a", io.BytesIO(b"x"), "text/plain")
    options["s3_secret_key"] = s3_server.SECRET_KEY
    store = open_store(Settings(store_url="s3://made-when-needed", **options))
    with pytest.raises(StoreUnavailable, match="made-when-needed does not exist"):
        store.check()
    with pytest.raises(StoreUnavailable):
        store.put_stream("a", io.BytesIO(b"x"), "text/plain")
    store.prepare()
    store.check()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing(
    directory: DirectoryStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(directory_module, "write_all", full)
        with pytest.raises(DiskFull):
            directory.put_stream("a", io.BytesIO(b"x"), "text/plain")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(DiskFull):
            directory.put_stream("a", io.BytesIO(b"x"), "text/plain")
    assert files_in(directory.root) == []


def test_a_file_is_copied_where_links_cannot_be_made(
    directory: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    directory.put_stream("a", io.BytesIO(b"data"), "text/plain")
    monkeypatch.setattr(os, "link", no_link)
    directory.fetch("a", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"data"
    assert (tmp_path / "copy").stat().st_nlink == 1


def test_prepare_removes_what_a_killed_process_left(directory: DirectoryStore) -> None:
    directory.prepare()
    left, fresh = (directory.root / ".partial" / name for name in ("left", "fresh"))
    left.write_bytes(b"half")
    fresh.write_bytes(b"half")
    long_ago = time.time() - 2 * ABANDONED_AFTER_S
    os.utime(left, (long_ago, long_ago))

    class Slow:
        """A reader that lets another process prepare the store in the middle."""

        def __init__(self) -> None:
            self.blocks = [b"second", b"first "]

        def read(self, _size: int, /) -> bytes:
            for partial in (directory.root / ".partial").iterdir():
                if partial != fresh:
                    os.utime(partial, (long_ago, long_ago))
            DirectoryStore(directory.root).prepare()
            return self.blocks.pop() if self.blocks else b""

    directory.put_stream("a", Slow(), "text/plain")
    assert contents(directory, "a") == b"first second"
    assert not left.exists()
    assert fresh.exists()
    assert keys(directory) == ["a"]


def test_a_store_that_cannot_be_used_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = DirectoryStore(tmp_path / "file")
    for call in (
        store.check,
        store.prepare,
        lambda: store.put_stream("a", io.BytesIO(b"x"), "text/plain"),
    ):
        with pytest.raises(StoreUnavailable):
            call()


@pytest.mark.parametrize("url", ["", "s3://", "/plain/path", "http://bucket"])
def test_a_store_url_that_is_none(url: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path).model_copy(update={"store_url": url})
    with pytest.raises(ValueError, match="store_url"):
        open_store(settings)
