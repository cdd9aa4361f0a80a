"""What an archive or a manifest really is: told by its first bytes, not by what is said of it."""

from __future__ import annotations

from common.sources import ArchiveFormat, ManifestFormat

HEAD_BYTES = 1024
ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")  # an entry, or the end of an archive without any
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
TAR_BLOCK_BYTES = 512
TAR_CHECKSUM = slice(148, 156)
UTF8_MARK = b"\xef\xbb\xbf"


def archive_format(head: bytes) -> ArchiveFormat | None:
    """Return the format of the archive that begins with ``head``; None if it is none we know.

    A packed TAR is taken at the word of its packing: what is inside shows when it is read.
    """
    if head.startswith(ZIP_MAGICS):
        return ArchiveFormat.ZIP
    if head.startswith(GZIP_MAGIC):
        return ArchiveFormat.TAR_GZ
    if head.startswith(ZSTD_MAGIC):
        return ArchiveFormat.TAR_ZST
    return ArchiveFormat.TAR if _begins_tar(head) else None


def manifest_format(head: bytes) -> ManifestFormat | None:
    """Return the format of the manifest that begins with ``head``; None if it is no text."""
    text = head.removeprefix(UTF8_MARK).lstrip()
    if not text or b"\0" in head or archive_format(head) is not None:
        return None
    return ManifestFormat.JSONL if text.startswith(b"{") else ManifestFormat.CSV


def _begins_tar(head: bytes) -> bool:
    """Return whether the checksum of the first header is right: old TARs have no magic."""
    block = head[:TAR_BLOCK_BYTES]
    if len(block) < TAR_BLOCK_BYTES or not block.strip(b"\0"):
        return False
    stored = block[TAR_CHECKSUM].strip(b" \0")
    blanked = block[: TAR_CHECKSUM.start] + b" " * 8 + block[TAR_CHECKSUM.stop :]
    try:
        return int(stored, 8) == sum(blanked)
    except ValueError:
        return False
