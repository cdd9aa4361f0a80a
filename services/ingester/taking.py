"""Takes one entry in: its bytes to the store, hashed, measured and checked on the way."""

from __future__ import annotations

import random
from dataclasses import dataclass

from common.errors import (
    EntryRejected,
    ObjectTooLarge,
    ParametersInvalid,
    UrlForbidden,
    UrlUnreachable,
)
from common.jobs import NewRecording, recording_key
from common.names import clean_name
from common.params import merge_params
from common.probe import HEAD_BYTES, TAIL_BYTES, probe_s
from common.settings import Settings
from common.storage import ObjectStore, Readable, StoredObject
from common.storage.base import Hashing
from services.ingester.claims import Hold
from services.ingester.entries import Entry, Found, Refused
from services.ingester.locators import UrlStatus

MEDIA_TYPE = "application/octet-stream"  # what it really is, decoding finds out
FIRST_PAUSE_S = 0.5


class Halted(Exception):
    """Reading was told to stop."""


@dataclass(frozen=True)
class Taken(Found):
    """An entry whose bytes are stored; in a dry run they were only looked at."""

    recording: NewRecording | None = None


def recording_id(source_id: str, number: int) -> str:
    """Return the id of the recording that an entry becomes, always the same.

    So an entry that is taken again after a crash replaces what it stored before. Like all ids it
    begins with a time: that of its source.
    """
    return f"{source_id[:12]}{number:08x}{source_id[20:]}"


class Taker:
    """Takes entries of one source. Threads may share it."""

    def __init__(self, settings: Settings, store: ObjectStore, hold: Hold) -> None:
        self._settings = settings
        self._store = store
        self._hold = hold
        self.full = False  # the key's quota is used up: nothing more is stored

    def take(self, entry: Entry) -> Taken | Refused:
        """Store an entry.

        Raises:
            Halted: told to stop; the entry is neither.
            TransientError: of the store.
        """
        try:
            if self.full:
                raise EntryRejected("quota_exceeded", "the key may not hold more")
            return self._patiently(entry)
        except EntryRejected as error:
            return _refuse(entry, error.code, str(error))
        except ParametersInvalid as error:
            return _refuse(entry, "params_invalid", str(error))
        except UrlForbidden as error:
            return _refuse(entry, error.code, str(error))
        except ObjectTooLarge as error:
            return _refuse(entry, "entry_too_large", str(error))
        except (UrlUnreachable, UrlStatus) as error:
            return _refuse(entry, error.code, str(error), may_help=True)

    def _patiently(self, entry: Entry) -> Taken:
        pause_s = FIRST_PAUSE_S
        for _ in range(self._settings.url_attempts - 1):
            try:
                return self._take(entry)
            except (UrlUnreachable, UrlStatus):
                if self._hold.halted.wait(pause_s * random.uniform(0.5, 1.5)):  # noqa: S311
                    raise Halted from None
                pause_s *= 2
        return self._take(entry)

    def _take(self, entry: Entry) -> Taken:
        hold = self._hold
        try:
            name = clean_name(entry.name)
        except ValueError as error:
            raise EntryRejected("name_invalid", str(error)) from error
        params = None if entry.params is None else merge_params(hold.params, entry.params)
        identity = recording_id(hold.source_id, entry.number)
        key = entry.object_key or recording_key(hold.job_id, identity)
        assert entry.open is not None
        with entry.open() as reader:
            ends = _Ends(reader, hold)
            stored = self._store_or_look(entry, key, ends)
        try:
            _check(entry, stored)
        except EntryRejected:
            if not hold.dry_run:
                self._store.delete(key)
            raise
        audio_s = probe_s(ends.head, ends.tail, stored.size_bytes)
        recording = NewRecording(
            identity,
            name,
            key,
            stored.size_bytes,
            stored.sha256,
            audio_s,
            entry.custom_id,
            entry.labels or None,
            params,
            hold.source_id,
            entry.number,
            hold.traceparent,
        )
        return Taken(
            entry.number, name, entry.custom_id, entry.again, entry.mark, recording=recording
        )

    def _store_or_look(self, entry: Entry, key: str, reader: Readable) -> StoredObject:
        most = self._settings.max_upload_bytes
        if not self._hold.dry_run and entry.object_key is None:
            return self._store.put_stream(key, reader, MEDIA_TYPE, most)
        source = Hashing(reader, most)
        while source.read():
            pass
        return source.stored(key, None)


def _check(entry: Entry, stored: StoredObject) -> None:
    if stored.size_bytes == 0:
        raise EntryRejected("empty_entry", "holds no bytes")
    if entry.sha256 is not None and entry.sha256 != stored.sha256:
        raise EntryRejected("hash_mismatch", f"the bytes have the SHA-256 {stored.sha256}")


def _refuse(entry: Entry, code: str, detail: str, may_help: bool = False) -> Refused:
    again = entry.again if may_help or code == "quota_exceeded" else None
    return Refused(
        entry.number, entry.name, entry.custom_id, again, entry.mark, code=code, detail=detail
    )


class _Ends:
    """Keeps the first and the last bytes of what is read through it; stops when told to."""

    def __init__(self, reader: Readable, hold: Hold) -> None:
        self._reader = reader
        self._hold = hold
        self.head = b""
        self._last = b""
        self._before = b""

    def read(self, size: int) -> bytes:
        if self._hold.halted.is_set():
            raise Halted
        block = self._reader.read(size)
        if len(self.head) < HEAD_BYTES:
            self.head += block[: HEAD_BYTES - len(self.head)]
        if block:
            self._before, self._last = self._last, block
        return block

    @property
    def tail(self) -> bytes:
        return (self._before + self._last)[-TAIL_BYTES:]
