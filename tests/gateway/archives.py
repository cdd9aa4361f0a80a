"""Archives and manifests of every format, each with a media type and what it really is."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile

import zstandard

from common.sources import ArchiveFormat, ManifestFormat

WAV = os.urandom(3000)
JSONL = b'{"url": "https://example.org/a.wav", "custom_id": "a"}\n'
CSV = b"url,custom_id\nhttps://example.org/a.wav,a\n"


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.wav", WAV)
    return file.getvalue()


def tarred(layout: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=layout) as archive:
        entry = tarfile.TarInfo("a.wav")
        entry.size = len(WAV)
        archive.addfile(entry, io.BytesIO(WAV))
    return file.getvalue()


def old_tar() -> bytes:
    """A TAR without the magic that came with POSIX."""
    data = bytearray(tarred(tarfile.USTAR_FORMAT))
    data[257:265] = bytes(8)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


ARCHIVES = {
    "zip": (zipped(), "application/zip", ArchiveFormat.ZIP),
    "empty zip": (b"PK\x05\x06" + bytes(18), "application/zip", ArchiveFormat.ZIP),
    "tar": (tarred(), "application/x-tar", ArchiveFormat.TAR),
    "gnu tar": (tarred(tarfile.GNU_FORMAT), "application/x-tar", ArchiveFormat.TAR),
    "old tar": (old_tar(), "application/x-tar", ArchiveFormat.TAR),
    "tar.gz": (gzip.compress(tarred()), "application/gzip", ArchiveFormat.TAR_GZ),
    "tar.zst": (zstandard.compress(tarred()), "application/zstd", ArchiveFormat.TAR_ZST),
    "said to be another": (zipped(), "application/x-tar", ArchiveFormat.ZIP),
}
MANIFESTS = {
    "jsonl": (JSONL, "application/x-ndjson", ManifestFormat.JSONL),
    "marked jsonl": (b"\xef\xbb\xbf\n" + JSONL, "application/jsonl", ManifestFormat.JSONL),
    "csv": (CSV, "text/csv; charset=utf-8", ManifestFormat.CSV),
    "said to be csv": (JSONL, "text/csv", ManifestFormat.JSONL),
}
