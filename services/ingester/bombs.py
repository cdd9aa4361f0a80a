"""Archives made to explode: how much may come out of how little."""

from __future__ import annotations

from common.errors import SourceInvalid
from common.settings import Settings

HARMLESS_BYTES = 1 << 30  # below that no ratio matters


def check_total(unpacked_bytes: int, packed_bytes: int, settings: Settings) -> None:
    """Return if an archive may unpack to this much.

    Raises:
        SourceInvalid: archive_too_large, archive_ratio.
    """
    if unpacked_bytes > settings.max_archive_bytes:
        raise SourceInvalid(
            "archive_too_large", f"unpacks to more than {settings.max_archive_bytes} bytes"
        )
    if unpacked_bytes > HARMLESS_BYTES + settings.max_archive_ratio * packed_bytes:
        raise SourceInvalid(
            "archive_ratio", f"unpacks to more than {settings.max_archive_ratio:g} times its size"
        )
