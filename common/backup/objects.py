"""Objects on their way: from a store into a backup, back into a store, or only looked at.

Several at a time, each in blocks, hashed while it passes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from common.backup.lines import read_lines
from common.backup.manifest import LISTING, Backup, open_file
from common.backup.wanted import Stored, Wanted
from common.errors import BackupInvalid, NotFound
from common.storage import ObjectStore
from common.storage.base import BLOCK_BYTES, Hashing, check_key
from common.storage.directory import DirectoryStore

AT_ONCE = 6
AHEAD = 4 * AT_ONCE

Item = TypeVar("Item")
Done = TypeVar("Done")


@dataclass(frozen=True)
class Copied:
    """What became of a wanted object: ``stored`` is None when the store does not have it."""

    wanted: Wanted
    stored: Stored | None
    kept: bool = False  # it was there from an earlier backup


def several(
    items: Iterable[Item], do: Callable[[Item], Done], at_once: int = AT_ONCE
) -> Iterator[Done]:
    """Yield what ``do`` returns for each of ``items``, in order; it runs in threads."""
    pool = ThreadPoolExecutor(at_once, "object")
    waiting: deque[Future[Done]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(do, item))
            if len(waiting) >= AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def copy_out(
    store: ObjectStore, folder: Path, wanted: Iterable[tuple[Wanted, Stored | None]]
) -> Iterator[Copied]:
    """Copy wanted objects into the folder of a backup, but those that are there already."""
    target = DirectoryStore(folder)

    def copy(item: tuple[Wanted, Stored | None]) -> Copied:
        one, known = item
        if known is not None and _is_there(target, known) and _fits(store, one, known):
            return Copied(one, known, kept=True)
        try:
            with store.open(one.key) as blocks:
                made = target.put_stream(one.key, _Blocks(blocks), one.media_type)
        except NotFound:
            return Copied(one, None)
        return Copied(one, Stored(one.key, made.size_bytes, made.sha256))

    return several(wanted, copy)


def _is_there(target: ObjectStore, known: Stored) -> bool:
    try:
        return target.stat(known.key).size_bytes == known.size_bytes
    except NotFound:
        return False


def _fits(store: ObjectStore, one: Wanted, known: Stored) -> bool:
    if one.sha256 is not None:
        return known.sha256 == one.sha256
    try:
        return store.stat(one.key).size_bytes == known.size_bytes
    except NotFound:  # read and removed since: what we have may still be wanted
        return True


def copy_in(backup: Backup, store: ObjectStore, resumed: bool) -> Iterator[Stored]:
    """Put the objects of a backup into a store; ``resumed``: but those that are there already.

    Raises:
        BackupInvalid: an object is missing or damaged; it is not in the store then.
    """

    def copy(one: Stored) -> Stored:
        if resumed and _is_there(store, one):
            return one
        with _opened(backup, one) as file:
            made = store.put_stream(one.key, file, one.media_type)
        if (made.size_bytes, made.sha256) != (one.size_bytes, one.sha256):
            store.delete(one.key)
            raise _damaged(backup, one)
        return one

    return several(listed(backup), copy)


def check(backup: Backup, whole: bool) -> Iterator[Stored]:
    """Look at every object of a backup; ``whole``: at every byte.

    Raises:
        BackupInvalid: an object is missing or damaged.
    """

    def look(one: Stored) -> Stored:
        with _opened(backup, one) as file:
            if whole:
                reader = Hashing(file, None)
                while reader.read(BLOCK_BYTES):
                    pass
                if reader.stored(one.key, None).sha256 != one.sha256:
                    raise _damaged(backup, one)
        return one

    return several(listed(backup), look)


def listed(backup: Backup) -> Iterator[Stored]:
    """Yield the objects of a backup as its list has them.

    Raises:
        BackupInvalid: the list is not as it must be, or names something outside the backup.
    """
    path = backup.copy / LISTING
    number = size_bytes = 0
    last = ""
    for row in read_lines(path):
        one = _stored(path, row)
        if one.key <= last:
            raise BackupInvalid(f"{path} is damaged: it is not in order")
        last = one.key
        number += 1
        size_bytes += one.size_bytes
        yield one
    if (number, size_bytes) != (backup.manifest.objects.count, backup.manifest.objects.size_bytes):
        raise BackupInvalid(f"{path} does not list as many objects as {backup.folder} should have")


def _stored(path: Path, row: list[Any]) -> Stored:
    match row:
        case [str(key), int(size_bytes), str(sha256), str(media_type)] if (
            size_bytes >= 0 and len(media_type) <= 64 and media_type.isascii()
        ):
            try:
                return Stored(check_key(key), size_bytes, sha256, media_type)
            except ValueError:
                raise BackupInvalid(f"{path} names {key[:80]!r}, which is no object") from None
    raise BackupInvalid(f"{path} is damaged: {str(row)[:80]} is no object")


@contextmanager
def _opened(backup: Backup, one: Stored) -> Iterator[Any]:
    path = backup.objects / one.key
    if not path.parent.resolve().is_relative_to(backup.objects.resolve()):
        raise BackupInvalid(f"{path} leads out of the backup")
    try:
        with open_file(path) as file:
            if file.seek(0, 2) != one.size_bytes:
                raise BackupInvalid(f"{path} is damaged: it has another size than was noted")
            file.seek(0)
            yield file
    except (FileNotFoundError, NotADirectoryError):
        raise BackupInvalid(f"{path} is missing") from None


def _damaged(backup: Backup, one: Stored) -> BackupInvalid:
    return BackupInvalid(f"{backup.objects / one.key} is damaged: its SHA-256 does not fit")


class _Blocks:
    """Reads blocks that come one after the other."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._held = b""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes; none at the end."""
        while not self._held:
            block = next(self._blocks, None)
            if block is None:
                return b""
            self._held = block
        part, self._held = self._held[:size], self._held[size:]
        return part
