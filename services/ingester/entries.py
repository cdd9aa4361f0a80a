"""What a reader finds in a source, and what the names inside archives must be like."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import PurePosixPath
from typing import Any

from common.errors import EntryRejected
from common.names import AUDIO_SUFFIXES, MAX_NAME_LENGTH, clean_name
from common.storage import Readable

SMALL_BYTES = 256 << 10
"""Entries up to this size are read ahead into memory, so that storing them can overlap."""

DRIVE = re.compile(r"^[A-Za-z]:")
Opens = Callable[[], AbstractContextManager[Readable]]


@dataclass(frozen=True)
class Found:
    """An entry of a source. ``number`` is its place among those that are not left out, from 0."""

    number: int
    name: str
    custom_id: str | None = None
    again: dict[str, Any] | None = None  # the entry as a manifest's line
    mark: str | None = None  # where a listing goes on after this entry


@dataclass(frozen=True)
class Entry(Found):
    """An entry that may become a recording.

    ``open`` gives its bytes, in any thread; when ``inline`` only before the reader goes on. Both
    may raise EntryRejected. ``object_key`` is where the bytes already lie and may stay.
    """

    open: Opens | None = None
    inline: bool = False
    object_key: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Refused(Found):
    """An entry that cannot become a recording, and why."""

    code: str = ""
    detail: str = ""


@dataclass
class Tally:
    """What a reader knows about the whole of its source. ``left_out`` counts by reason."""

    total: int | None = None
    left_out: Counter[str] = field(default_factory=Counter)


def opens(reader: Readable) -> Opens:
    """Return what opens an entry whose bytes are at hand."""
    return lambda: nullcontext(reader)


class Names:
    """Checks the names of one archive, each once and in order."""

    def __init__(self, all_files: bool) -> None:
        self._all_files = all_files
        self._seen: set[int] = set()

    def left_out(self, raw: str) -> str | None:
        """Return why an entry is no recording by its name, or None."""
        if self._all_files:
            return None
        path = PurePosixPath(raw.replace("\\", "/"))
        if path.name.startswith(".") or "__MACOSX" in path.parts:
            return "hidden"
        return None if path.suffix.lower() in AUDIO_SUFFIXES else "not audio by name"

    def check(self, raw: str) -> str:
        """Return the name of a recording.

        Raises:
            EntryRejected: it cannot be kept, or was there before.
        """
        try:
            name = clean_name(raw.replace("\\", "/"))
        except ValueError as error:
            raise EntryRejected("name_invalid", str(error)) from error
        name = "/".join(part for part in name.split("/") if part not in ("", "."))
        folded = unicodedata.normalize("NFC", name.casefold()).encode()
        digest = int.from_bytes(blake2b(folded, digest_size=8).digest(), "big")
        if digest in self._seen:
            raise EntryRejected(
                "entry_name_duplicate", "an entry before has this name, capitals aside"
            )
        self._seen.add(digest)
        return name


def is_unsafe(raw: str) -> bool:
    """Whether a name would lead out of a folder it is unpacked in."""
    path = raw.replace("\\", "/")
    return path.startswith("/") or DRIVE.match(path) is not None or ".." in path.split("/")


def unsafe() -> EntryRejected:
    """Return the rejection of such a name."""
    return EntryRejected("entry_name_unsafe", "the name leads out of the archive")


def show(raw: str) -> str:
    """Return any name in a form that can be kept, for people."""
    text = unicodedata.normalize(
        "NFC", raw.encode(errors="surrogateescape").decode(errors="replace")
    )
    shown = "".join(
        "\ufffd" if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") else char
        for char in text
    )
    return shown[:MAX_NAME_LENGTH] or "unnamed"
