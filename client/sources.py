"""The recordings in what a user points at: a folder, single files, ZIP archives.

A ZIP is read entry by entry and nothing of it is ever written to disk, so the paths inside it are
only names. Everything here works on a listing; a file may be gone when its turn comes, and that is
an error of that one recording.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from client.errors import NoAudio
from common.names import AUDIO_SUFFIXES as AUDIO_SUFFIXES

DAMAGED = (zipfile.BadZipFile, EOFError, ValueError, OSError, zlib.error)
BLOCK_BYTES = 1024 * 1024
MAX_NAME_CHARS = 400
ID_DIGITS = 32


class Unreadable(Exception):
    """A recording could not be read on this side; the message says why."""


@dataclass(frozen=True, slots=True)
class Source:
    """One recording to upload: the file at ``path``, or an entry of the ZIP ``archive`` there."""

    name: str
    path: Path
    archive: zipfile.ZipFile | None = None
    entry: zipfile.ZipInfo | None = None

    def size_bytes(self) -> int:
        """Return how long the recording is now, 0 when it cannot be told."""
        if self.entry is not None:
            return self.entry.file_size
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def identity(self) -> str:
        """Return a text that is the same as long as the recording is, and its alone.

        Raises:
            Unreadable: the file is gone or may not be looked at.
        """
        try:
            found = self.path.stat()
        except OSError as error:
            raise unreadable(error) from error
        place = -1 if self.entry is None else self.entry.header_offset
        facts = (str(self.path.absolute()), found.st_size, found.st_mtime_ns, place)
        return hashlib.sha256(repr(facts).encode(errors="surrogateescape")).hexdigest()[:ID_DIGITS]

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes in blocks of at most 1 MiB.

        Raises:
            Unreadable: the file is gone, may not be read, or is damaged inside its archive.
        """
        try:
            if self.archive is None or self.entry is None:
                yield from read_file(self.path)
            else:
                yield from read_entry(self.archive, self.entry)
        except OSError as error:
            raise unreadable(error) from error


@dataclass(frozen=True)
class Listing:
    """What was found. ``skipped`` counts by reason what was left out."""

    sources: list[Source]
    skipped: dict[str, int] = field(default_factory=dict)


def unreadable(error: OSError) -> Unreadable:
    if isinstance(error, FileNotFoundError):
        return Unreadable("the file is no longer there")
    return Unreadable(f"cannot be read: {error.strerror or error}")


def read_file(path: Path) -> Iterator[bytes]:
    # Not blocking: what was a file when it was listed may be a pipe now.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Unreadable("is not a regular file")
        while block := file.read(BLOCK_BYTES):
            yield block


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the bytes of one entry. ``zipfile`` stops at the declared size and checks the CRC."""
    try:
        with archive.open(entry) as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except damage_of(entry) as error:
        raise Unreadable(f"is damaged inside its archive: {error}") from error
    except (RuntimeError, ImportError) as error:  # encrypted, unknown compression
        raise Unreadable(f"cannot be unpacked: {error}") from error


def damage_of(entry: zipfile.ZipInfo) -> tuple[type[Exception], ...]:
    """Return the errors that reading a damaged entry may raise."""
    if entry.compress_type != zipfile.ZIP_LZMA:
        return DAMAGED
    from lzma import LZMAError  # a module that not every Python has

    return (*DAMAGED, LZMAError)


def list_sources(paths: list[Path]) -> Listing:
    """Return the recordings of ``paths`` in a stable order, folders searched recursively.

    A file that is named is taken whatever its name; in folders and archives the suffix decides.

    Raises:
        NoAudio: a path does not exist, is not readable, or nothing was found at all.
    """
    sources: list[Source] = []
    skipped: dict[str, int] = {}
    for path in paths:
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise NoAudio(f"{show(str(path))}: {error.strerror}.") from error
        if stat.S_ISDIR(mode):
            found = list_folder(path, skipped)
        elif not stat.S_ISREG(mode):
            raise NoAudio(f"{show(str(path))} is neither a file nor a folder.")
        elif is_archive(path):
            found = list_archive(path, skipped)
        else:
            found = [Source(clean_name(path.name), path)]
        sources.extend(found)
    if not sources:
        where = ", ".join(show(str(path)) for path in paths)
        left_out = f" ({describe(skipped)})" if skipped else ""
        raise NoAudio(f"There is no audio in {where}{left_out}.")
    return Listing(sources, skipped)


def is_archive(path: Path) -> bool:
    """Whether a named file is a ZIP archive, by its name or else its content."""
    if path.suffix.lower() in AUDIO_SUFFIXES:
        return False
    try:
        return path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)
    except OSError:
        return False


def list_folder(folder: Path, skipped: dict[str, int]) -> list[Source]:
    """Return the recordings below a folder; no hidden files, no linked folders."""

    def refuse(error: OSError) -> None:
        count(skipped, "folders that cannot be read")

    sources = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(parent, name)
            if name.startswith("."):
                count(skipped, "hidden")
            elif path.suffix.lower() == ".zip":
                count(skipped, "ZIP archives inside a folder")
            elif path.suffix.lower() not in AUDIO_SUFFIXES:
                count(skipped, "not audio by name")
            elif path.exists() and not path.is_file():
                count(skipped, "special files")
            else:
                sources.append(Source(clean_name(path.relative_to(folder).as_posix()), path))
    return sources


def list_archive(path: Path, skipped: dict[str, int]) -> list[Source]:
    """Return the recordings of a ZIP archive, in its own order.

    Raises:
        NoAudio: it cannot be read, or its entries overlap, as in an archive made to explode.
    """
    try:
        archive = zipfile.ZipFile(path)  # stays open for its entries
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise NoAudio(f"{show(str(path))} cannot be read as a ZIP archive: {error}.") from error
    entries = archive.infolist()
    if sum(entry.compress_size for entry in entries) > path.stat().st_size:
        raise NoAudio(f"{show(str(path))} has overlapping entries and is not trusted.")
    sources = []
    for entry in entries:
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        if entry.is_dir():
            continue
        if stat.S_ISLNK(entry.external_attr >> 16):
            count(skipped, "links inside an archive")
        elif name.name.startswith(".") or "__MACOSX" in name.parts:
            count(skipped, "hidden")
        elif name.suffix.lower() not in AUDIO_SUFFIXES:
            count(skipped, "not audio by name")
        else:
            sources.append(Source(clean_name(entry.filename), path, archive, entry))
    return sources


def clean_name(name: str) -> str:
    """Return a name that any screen and any JSON can carry; it is never used to open anything.

    Slashes forwards, no drive, no leading slash, no ``..``, no control or unpaired characters.
    """
    text = name.encode(errors="surrogateescape").decode(errors="replace").replace("\\", "/")
    text = "".join("�" if unicodedata.category(char)[0] == "C" else char for char in text)
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[-MAX_NAME_CHARS:] or "unnamed"


def show(text: str) -> str:
    """Return a path for a message, without characters that would upset a terminal."""
    return "".join(
        char if char.isprintable() else "�"
        for char in text.encode(errors="surrogateescape").decode(errors="replace")
    )


def count(skipped: dict[str, int], reason: str) -> None:
    skipped[reason] = skipped.get(reason, 0) + 1


def describe(skipped: dict[str, int]) -> str:
    """Return what was left out as a phrase: ``left out: hidden (3), special files (1)``."""
    return "left out: " + ", ".join(f"{reason} ({number})" for reason, number in skipped.items())
