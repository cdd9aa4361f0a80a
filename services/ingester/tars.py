"""TAR archives, plain, gzip or Zstandard, read as one stream from the store.

Headers are decoded by ``tarfile``; what reads them is our own, since ``tarfile`` takes a damaged
header in the middle for the end, and as much memory as an extended header asks for.

Source: POSIX.1-2017, pax Interchange Format; GNU tar manual, Basic Tar Format.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from tarfile import TarInfo

from common.errors import EntryRejected, SourceInvalid
from common.settings import Settings
from common.sources import ArchiveFormat, ArchiveSpec
from common.storage import ObjectStore, Readable
from services.ingester.bombs import check_total
from services.ingester.entries import (
    SMALL_BYTES,
    Entry,
    Found,
    Names,
    Refused,
    Tally,
    is_unsafe,
    opens,
    show,
    unsafe,
)
from services.ingester.stored import StoredFile, read_exactly
from services.ingester.unpacking import DAMAGE, gunzip, unzstd

BLOCK = tarfile.BLOCKSIZE
MAX_EXTENDED_BYTES = 1 << 20  # of a header's own names and attributes
MAX_EXTENDED_HEADERS = 8  # of one entry
SKIP_BYTES = 256 << 10
REGULAR = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE})
LINKS = frozenset({tarfile.SYMTYPE, tarfile.LNKTYPE})


@dataclass(frozen=True)
class _Member:
    """An entry's header, with what extended headers say about it."""

    name: str
    kind: bytes
    size_bytes: int
    sparse: bool

    @property
    def is_file(self) -> bool:
        return self.kind in REGULAR and not self.sparse


def read_tar(
    store: ObjectStore, spec: ArchiveSpec, settings: Settings, start: int, tally: Tally
) -> Iterator[Found]:
    """Yield the entries of a stored TAR from number ``start``.

    Raises:
        SourceInvalid: archive_unreadable, archive_too_large, archive_ratio,
            archive_too_many_entries.
    """
    stream = _Stream(StoredFile(store, spec.object_key), spec.format, settings)
    names = Names(spec.all_files)
    number = -1
    for count, member in enumerate(_members(stream)):
        if count >= settings.max_recordings_per_job:
            raise SourceInvalid("archive_too_many_entries", f"more than {count} entries")
        content = _Content(stream, member.size_bytes)
        harmless = member.is_file and not is_unsafe(member.name)
        if member.kind == tarfile.DIRTYPE and not is_unsafe(member.name):
            content.skip()
            continue
        if harmless and (reason := names.left_out(member.name)) is not None:
            tally.left_out[reason] += 1
            content.skip()
            continue
        number += 1
        try:
            name = _check(member, names, settings)
            if number >= start and member.size_bytes <= SMALL_BYTES:
                data = read_exactly(content, member.size_bytes)
                yield Entry(number, name, open=opens(io.BytesIO(data)))
            elif number >= start:
                yield Entry(number, name, open=opens(content), inline=True)
        except EntryRejected as error:
            if number >= start:
                yield Refused(number, show(member.name), code=error.code, detail=str(error))
        content.skip()


def _check(member: _Member, names: Names, settings: Settings) -> str:
    if is_unsafe(member.name):
        raise unsafe()
    if member.kind in LINKS:
        raise EntryRejected("entry_is_link", "a link, not a file")
    if not member.is_file:
        raise EntryRejected("entry_is_special", "neither an ordinary file nor a folder")
    name = names.check(member.name)
    if member.size_bytes > settings.max_upload_bytes:
        raise EntryRejected("entry_too_large", f"more than {settings.max_upload_bytes} bytes")
    if member.size_bytes == 0:
        raise EntryRejected("empty_entry", "holds no bytes")
    return name


class _Stream:
    """The unpacked bytes of an archive, forwards, watched for how many they become."""

    def __init__(self, file: StoredFile, packing: ArchiveFormat, settings: Settings) -> None:
        self._file = file
        self._settings = settings
        self._unpacked = 0
        self._inner: Readable | None = None
        if packing is ArchiveFormat.TAR_GZ:
            self._inner = gunzip(file)
        elif packing is ArchiveFormat.TAR_ZST:
            self._inner = unzstd(file)

    def read(self, size: int) -> bytes:
        if self._inner is None:
            return self._file.read(size)
        try:
            block = self._inner.read(size)
        except DAMAGE as error:
            raise SourceInvalid("archive_unreadable", f"cannot be unpacked: {error}") from error
        self._unpacked += len(block)
        check_total(self._unpacked, self._file.tell(), self._settings)
        return block

    def skip(self, count: int) -> None:
        if self._inner is None:
            self._file.skip(count)
            if self._file.tell() > self._file.size_bytes:
                raise _cut_off()
            return
        while count > 0:
            block = self.read(min(count, SKIP_BYTES))
            if not block:
                raise _cut_off()
            count -= len(block)


class _Content:
    """The bytes of one entry; what is left of them is skipped before the next header."""

    def __init__(self, stream: _Stream, size_bytes: int) -> None:
        self._stream = stream
        self._left = size_bytes
        self._padding = -size_bytes % BLOCK

    def read(self, size: int) -> bytes:
        if not self._left:
            return b""
        block = self._stream.read(min(size, self._left))
        if not block:
            raise _cut_off()
        self._left -= len(block)
        return block

    def skip(self) -> None:
        self._stream.skip(self._left + self._padding)
        self._left = self._padding = 0


def _members(stream: _Stream) -> Iterator[_Member]:
    while (info := _header(stream)) is not None:
        extended: dict[str, str] = {}
        for _ in range(MAX_EXTENDED_HEADERS):
            if info.type not in (
                tarfile.XHDTYPE,
                tarfile.XGLTYPE,
                tarfile.SOLARIS_XHDTYPE,
                tarfile.GNUTYPE_LONGNAME,
                tarfile.GNUTYPE_LONGLINK,
            ):
                break
            _extend(extended, info, _extension(stream, info))
            following = _header(stream)
            if following is None:
                if info.type == tarfile.XGLTYPE:
                    return
                raise _cut_off()
            info = following
        else:
            raise SourceInvalid("archive_unreadable", "an entry with too many extended headers")
        yield _member(info, extended)


def _member(info: TarInfo, extended: dict[str, str]) -> _Member:
    try:
        size_bytes = int(extended.get("size", info.size))
    except ValueError as error:
        raise _damaged("a size that is no number") from error
    if size_bytes < 0:
        raise _damaged("a negative size")
    if info.type not in REGULAR and info.type != tarfile.GNUTYPE_SPARSE:
        size_bytes = 0  # links and devices have no bytes, whatever they say
    name = extended.get("path", info.name)
    kind = tarfile.DIRTYPE if info.type == tarfile.AREGTYPE and name.endswith("/") else info.type
    sparse = info.type == tarfile.GNUTYPE_SPARSE or "GNU.sparse" in extended
    return _Member(name, kind, size_bytes, sparse)


def _header(stream: _Stream) -> TarInfo | None:
    """Return the next header, or None at the mark of the end."""
    block = read_exactly(stream, BLOCK)
    try:
        return TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        return None
    except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
        raise _cut_off() from error
    except (tarfile.HeaderError, ValueError) as error:
        raise _damaged("a header is damaged") from error


def _extension(stream: _Stream, info: TarInfo) -> bytes:
    if not 0 <= info.size <= MAX_EXTENDED_BYTES:
        raise _damaged("an extended header is too large")
    data = read_exactly(stream, info.size)
    if len(data) < info.size:
        raise _cut_off()
    stream.skip(-info.size % BLOCK)
    return data


def _extend(extended: dict[str, str], info: TarInfo, data: bytes) -> None:
    if info.type == tarfile.GNUTYPE_LONGNAME:
        extended["path"] = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
    elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
        for key, value in _pax(data):
            extended["GNU.sparse" if key.startswith("GNU.sparse") else key] = value


def _pax(data: bytes) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(data) and data[at]:
        length_text, space, _ = data[at : at + 20].partition(b" ")
        if not space or not length_text.isdigit():
            raise _damaged("an extended header is damaged")
        record = data[at : at + int(length_text)]
        key, equals, value = record[len(length_text) + 1 : -1].partition(b"=")
        if not equals:
            raise _damaged("an extended header is damaged")
        yield key.decode(errors="replace"), value.decode("utf-8", "surrogateescape")
        at += int(length_text)


def _damaged(detail: str) -> SourceInvalid:
    return SourceInvalid("archive_unreadable", detail)


def _cut_off() -> SourceInvalid:
    return SourceInvalid("archive_unreadable", "the archive is cut off")
