"""Archives that mean harm or are damaged, made byte by byte. The codes are those of the documents.

Entry cases hold ``good.wav`` before and ``last.wav`` after what is wrong; source cases are wrong as
a whole.
"""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import zstandard

from tests.ingester.conftest import wav

GOOD, LAST = wav(seed=1), wav(seed=2)
GIB = 1 << 30


@dataclass(frozen=True)
class EntryCase:
    """One entry is wrong: it is rejected under ``name`` with ``code``, the others are taken."""

    form: str
    make: Callable[[], bytes]
    name: str
    code: str


@dataclass(frozen=True)
class SourceCase:
    """The source fails with ``code``; ``before`` recordings come out of it first."""

    form: str
    make: Callable[[], bytes]
    code: str
    before: int = 0


def zip_with(
    name: str,
    data: bytes = b"bytes",
    *,
    mode: int = 0,
    method: int = zipfile.ZIP_DEFLATED,
    change: Callable[[bytes], bytes] = bytes,
) -> bytes:
    """Return a ZIP with a good entry, the given one and another good one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("good.wav", GOOD)
        info = zipfile.ZipInfo(name)
        info.filename = name  # ZipInfo would make it harmless
        info.create_system = 3
        info.external_attr = mode << 16
        info.compress_type = method
        archive.writestr(info, data)
        archive.writestr("last.wav", LAST)
    return change(buffer.getvalue())


def central_fields(archive: bytes, name: bytes, at: int, data: bytes) -> bytes:
    """Overwrite bytes ``at`` of the central directory's record of ``name``."""
    record = archive.rindex(name) - 46
    assert archive[record : record + 4] == b"PK\1\2"
    return archive[: record + at] + data + archive[record + at + len(data) :]


def local_data(archive: bytes, name: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Change the packed bytes of an entry, leaving their number."""
    header = archive.index(name) - 30
    size = struct.unpack_from("<L", archive, header + 18)[0]
    begin = header + 30 + len(name)
    changed = change(archive[begin : begin + size])
    assert len(changed) == size
    return archive[:begin] + changed + archive[begin + size :]


def flipped(data: bytes) -> bytes:
    return bytes(byte ^ 0x55 for byte in data)


def tar_with(*infos: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a TAR with a good entry, the given ones and another good one."""
    good, last = tarfile.TarInfo("good.wav"), tarfile.TarInfo("last.wav")
    good.size, last.size = len(GOOD), len(LAST)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, data in [(good, GOOD), *infos, (last, LAST)]:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tar_entry(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"bytes") -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    info.size = len(data) if kind == tarfile.REGTYPE else 0
    return tar_with((info, data if info.size else b""))


def tar_sparse() -> bytes:
    """Return a TAR with an old GNU sparse file: 512 bytes that stand for a terabyte."""
    block = bytearray(tarfile.TarInfo("sparse.wav").tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"00000001000\0"
    block[156:157] = tarfile.GNUTYPE_SPARSE
    block[483:495] = b"77777777777\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    whole = tar_with()
    cut = 512 + -(-len(GOOD) // 512) * 512
    return whole[:cut] + bytes(block) + bytes(512) + whole[cut:]


def zeros_in_gzip(size: int, head: bytes) -> bytes:
    """Return gzip data of ``head`` and ``size`` zeros, without holding them."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb") as file:
        file.write(head)
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
    return buffer.getvalue()


def bomb_tar(name: str, size: int) -> bytes:
    """Return the head of a TAR whose second entry has ``size`` bytes."""
    info = tarfile.TarInfo(name)
    info.size = size
    return tar_with()[: 512 + -(-len(GOOD) // 512) * 512] + info.tobuf()


def overlapping() -> bytes:
    """Return a ZIP in which two entries share their packed bytes."""
    archive = zip_with("other.wav", GOOD, method=zipfile.ZIP_STORED)
    return central_fields(archive, b"other.wav", 42, struct.pack("<L", 0))


def quoted_overlap() -> bytes:
    """Return a ZIP whose first entry's bytes are the whole second entry, header and all."""
    archive = zip_with("inner.wav", GOOD, method=zipfile.ZIP_STORED)
    size = archive.index(b"last.wav") - 30 - 38
    return central_fields(archive, b"good.wav", 20, struct.pack("<2L", size, size))


def huge_declared(size: int) -> Callable[[], bytes]:
    """Return what makes a ZIP with an entry that declares ``size`` bytes."""

    def make() -> bytes:
        archive = zip_with("huge.wav")
        extra = struct.pack("<2HQ", 1, 8, size)
        archive = central_fields(archive, b"huge.wav", 24, b"\xff" * 4)
        archive = central_fields(archive, b"huge.wav", 30, struct.pack("<H", len(extra)))
        at = archive.rindex(b"huge.wav") + 8
        archive = archive[:at] + extra + archive[at:]
        end = archive.rindex(b"PK\5\6")
        length = struct.unpack_from("<L", archive, end + 12)[0] + len(extra)
        return archive[: end + 12] + struct.pack("<L", length) + archive[end + 16 :]

    return make


def end_claims(entries: int) -> bytes:
    archive = zip_with("other.wav")
    end = archive.rindex(b"PK\5\6")
    return archive[: end + 8] + struct.pack("<2H", entries, entries) + archive[end + 12 :]


def many(count: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(count):
            archive.writestr(f"{number}.wav", b"")
    return buffer.getvalue()


def encrypted() -> bytes:
    return central_fields(zip_with("secret.wav"), b"secret.wav", 8, b"\x01")


def unknown_method() -> bytes:
    return central_fields(zip_with("odd.wav"), b"odd.wav", 10, struct.pack("<H", 97))


def short_entry() -> bytes:
    archive = zip_with("short.wav", b"bytes" * 100)
    return central_fields(archive, b"short.wav", 24, struct.pack("<L", 5_000))


def moved_entry() -> bytes:
    archive = zip_with("moved.wav", GOOD)
    at = archive.index(b"moved.wav") - 30
    return archive[:at] + b"XX" + archive[at + 2 :]


def renamed_entry() -> bytes:
    archive = zip_with("inner.wav", GOOD)
    return archive.replace(b"inner.wav", b"other.wav", 1)


LINK, PIPE = stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644
DEVICE = stat.S_IFCHR | 0o644

ENTRY_CASES = {
    "zip parent": EntryCase("zip", lambda: zip_with("../a.wav"), "../a.wav", "entry_name_unsafe"),
    "zip parent inside": EntryCase(
        "zip", lambda: zip_with("a/../../b.wav"), "a/../../b.wav", "entry_name_unsafe"
    ),
    "zip parent, no audio": EntryCase(
        "zip", lambda: zip_with("../../etc/cron.d/x"), "../../etc/cron.d/x", "entry_name_unsafe"
    ),
    "zip absolute": EntryCase(
        "zip", lambda: zip_with("/etc/a.wav"), "/etc/a.wav", "entry_name_unsafe"
    ),
    "zip drive": EntryCase("zip", lambda: zip_with("C:\\a.wav"), "C:\\a.wav", "entry_name_unsafe"),
    "zip backslashes": EntryCase(
        "zip", lambda: zip_with("..\\a.wav"), "..\\a.wav", "entry_name_unsafe"
    ),
    "zip folder outside": EntryCase("zip", lambda: zip_with("../a/"), "../a/", "entry_name_unsafe"),
    "zip duplicate": EntryCase(
        "zip", lambda: zip_with("./good.wav"), "./good.wav", "entry_name_duplicate"
    ),
    "zip other case": EntryCase(
        "zip", lambda: zip_with("GOOD.WAV"), "GOOD.WAV", "entry_name_duplicate"
    ),
    "zip link": EntryCase("zip", lambda: zip_with("a.wav", mode=LINK), "a.wav", "entry_is_link"),
    "zip link, no audio": EntryCase(
        "zip", lambda: zip_with("passwd", mode=LINK), "passwd", "entry_is_link"
    ),
    "zip pipe": EntryCase("zip", lambda: zip_with("a.wav", mode=PIPE), "a.wav", "entry_is_special"),
    "zip device": EntryCase(
        "zip", lambda: zip_with("zero", mode=DEVICE), "zero", "entry_is_special"
    ),
    "zip encrypted": EntryCase("zip", encrypted, "secret.wav", "entry_encrypted"),
    "zip wrong checksum": EntryCase(
        "zip",
        lambda: zip_with(
            "bad.wav",
            GOOD,
            method=zipfile.ZIP_STORED,
            change=lambda archive: local_data(archive, b"bad.wav", flipped),
        ),
        "bad.wav",
        "entry_damaged",
    ),
    "zip damaged": EntryCase(
        "zip",
        lambda: zip_with(
            "bad.wav", GOOD, change=lambda archive: local_data(archive, b"bad.wav", flipped)
        ),
        "bad.wav",
        "entry_damaged",
    ),
    "zip large damaged": EntryCase(
        "zip",
        lambda: zip_with(
            "bad.wav",
            wav(400_000),
            method=zipfile.ZIP_STORED,
            change=lambda archive: local_data(archive, b"bad.wav", flipped),
        ),
        "bad.wav",
        "entry_damaged",
    ),
    "zip short": EntryCase("zip", short_entry, "short.wav", "entry_damaged"),
    "zip moved": EntryCase("zip", moved_entry, "moved.wav", "entry_damaged"),
    "zip two names": EntryCase("zip", renamed_entry, "inner.wav", "entry_damaged"),
    "zip method": EntryCase("zip", unknown_method, "odd.wav", "entry_compression_unknown"),
    "zip too large": EntryCase("zip", huge_declared(5 << 20), "huge.wav", "entry_too_large"),
    "zip empty": EntryCase("zip", lambda: zip_with("no.wav", b""), "no.wav", "empty_entry"),
    "zip control characters": EntryCase(
        "zip", lambda: zip_with("a\x1b[31m.wav"), "a\ufffd[31m.wav", "name_invalid"
    ),
    "zip NUL": EntryCase("zip", lambda: zip_with("a\0b.wav"), "a\ufffdb.wav", "name_invalid"),
    "zip direction": EntryCase(
        "zip", lambda: zip_with("a\u202egpj.wav"), "a\ufffdgpj.wav", "name_invalid"
    ),
    "zip long name": EntryCase(
        "zip", lambda: zip_with("x" * 600 + ".wav"), "x" * 500, "name_invalid"
    ),
    "tar parent": EntryCase("tar", lambda: tar_entry("../a.wav"), "../a.wav", "entry_name_unsafe"),
    "tar absolute": EntryCase("tar", lambda: tar_entry("/a.wav"), "/a.wav", "entry_name_unsafe"),
    "tar duplicate": EntryCase(
        "tar", lambda: tar_entry("good.wav"), "good.wav", "entry_name_duplicate"
    ),
    "tar composed": EntryCase(
        "tar", lambda: tar_entry("Good.wav"), "Good.wav", "entry_name_duplicate"
    ),
    "tar link": EntryCase(
        "tar", lambda: tar_entry("a.wav", tarfile.SYMTYPE), "a.wav", "entry_is_link"
    ),
    "tar hard link": EntryCase(
        "tar", lambda: tar_entry("a.wav", tarfile.LNKTYPE), "a.wav", "entry_is_link"
    ),
    "tar device": EntryCase(
        "tar", lambda: tar_entry("sda", tarfile.BLKTYPE), "sda", "entry_is_special"
    ),
    "tar pipe": EntryCase(
        "tar", lambda: tar_entry("a.wav", tarfile.FIFOTYPE), "a.wav", "entry_is_special"
    ),
    "tar sparse": EntryCase("tar", tar_sparse, "sparse.wav", "entry_is_special"),
    "tar empty": EntryCase("tar", lambda: tar_entry("a.wav", data=b""), "a.wav", "empty_entry"),
    "tar too large": EntryCase(
        "tar", lambda: tar_entry("a.wav", data=bytes(5 << 20)), "a.wav", "entry_too_large"
    ),
    "tar no Unicode": EntryCase(
        "tar", lambda: tar_entry("a\udcff.wav"), "a\ufffd.wav", "name_invalid"
    ),
}


def pax_bomb() -> bytes:
    """Return a TAR whose second entry has an extended header of half a gigabyte."""
    head = bytearray(tarfile.TarInfo("pax").tobuf())
    head[124:136] = b"04000000000\0"
    head[156:157] = tarfile.XHDTYPE
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return tar_with()[: 512 + -(-len(GOOD) // 512) * 512] + bytes(head)


def long_name_chain() -> bytes:
    """Return a TAR whose second entry has a thousand long names."""
    head = bytearray(tarfile.TarInfo("././@LongLink").tobuf())
    head[124:136] = b"00000000004\0"
    head[156:157] = tarfile.GNUTYPE_LONGNAME
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    link = bytes(head) + b"abc\0" + bytes(508)
    return tar_with()[: 512 + -(-len(GOOD) // 512) * 512] + link * 1000


def negative_size() -> bytes:
    head = bytearray(tarfile.TarInfo("neg.wav").tobuf())
    head[124:136] = b"\xff" * 11 + b"\x00"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return tar_with()[: 512 + -(-len(GOOD) // 512) * 512] + bytes(head)


def damaged_tar() -> bytes:
    whole = bytearray(tar_with())
    at = whole.index(b"last.wav")
    whole[at] ^= 0xFF
    return bytes(whole)


SOURCE_CASES = {
    "zip overlap": SourceCase("zip", overlapping, "archive_overlapping"),
    "zip quoted overlap": SourceCase("zip", quoted_overlap, "archive_overlapping"),
    "zip too large": SourceCase("zip", huge_declared(1 << 50), "archive_too_large"),
    "zip ratio": SourceCase("zip", huge_declared(2 * GIB), "archive_ratio"),
    "zip too many": SourceCase("zip", lambda: many(2_001), "archive_too_many_entries"),
    "zip truncated": SourceCase("zip", lambda: zip_with("other.wav")[:-60], "archive_unreadable"),
    "zip claims more": SourceCase("zip", lambda: end_claims(9), "archive_unreadable"),
    "zip nothing": SourceCase("zip", lambda: b"", "archive_unreadable"),
    "zip other": SourceCase("zip", lambda: b"Rar!" + bytes(2_000), "archive_unreadable"),
    "zip directory damaged": SourceCase(
        "zip",
        lambda: zip_with("o.wav").replace(b"PK\1\2", b"PK\1\3"),
        "archive_unreadable",
    ),
    "tar truncated": SourceCase("tar", lambda: tar_entry("a.wav")[:1_540], "archive_unreadable", 1),
    "tar no end": SourceCase(
        "tar",
        lambda: tar_with()[: 2 * 512 + 2 * -(-len(GOOD) // 512) * 512],
        "archive_unreadable",
        2,
    ),
    "tar damaged": SourceCase("tar", damaged_tar, "archive_unreadable", 1),
    "tar nothing": SourceCase("tar", lambda: b"", "archive_unreadable"),
    "tar other": SourceCase("tar", lambda: b"no archive " * 200, "archive_unreadable"),
    "tar pax bomb": SourceCase("tar", pax_bomb, "archive_unreadable", 1),
    "tar long names": SourceCase("tar", long_name_chain, "archive_unreadable", 1),
    "tar negative size": SourceCase("tar", negative_size, "archive_unreadable", 1),
    "tar.gz truncated": SourceCase(
        "tar.gz", lambda: gzip.compress(tar_with())[:-30], "archive_unreadable", 1
    ),
    "tar.gz other": SourceCase("tar.gz", lambda: b"\x1f\x8b" + bytes(100), "archive_unreadable"),
    "tar.gz ratio": SourceCase(
        "tar.gz",
        lambda: zeros_in_gzip(32 << 20, bomb_tar("zeros.txt", 2 * GIB)),
        "archive_ratio",
        1,
    ),
    "tar.zst truncated": SourceCase(
        "tar.zst", lambda: zstandard.compress(tar_with())[:-30], "archive_unreadable"
    ),
    "tar.zst other": SourceCase(
        "tar.zst", lambda: b"\x28\xb5\x2f\xfd" + b"\xff" * 99, "archive_unreadable"
    ),
}
