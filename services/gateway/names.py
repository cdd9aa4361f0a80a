"""Safe names for downloads, made from the names that users give."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import quote

from common.names import CleanName as CleanName
from common.names import clean_name as clean_name

MAX_STEM_LENGTH = 100


def download_name(recording_name: str, ending: str) -> str:
    """Return a file name for a result of a recording, for example ``dog.enhanced.flac``.

    Only the last part of the recording's name is used, without its ending; what some file system
    refuses becomes ``_``.
    """
    last = recording_name.replace("\\", "/").rpartition("/")[2]
    stem = PurePosixPath(last).stem if last not in ("", ".", "..") else "recording"
    stem = re.sub(r'[<>:"|?*%\s\0-\x1f\x7f]+', "_", stem)[:MAX_STEM_LENGTH].strip("._")
    return f"{stem or 'recording'}.{ending}"


def ascii_name(name: str) -> str:
    """Return ``name`` with everything but plain characters replaced by ``_``."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)


def content_disposition(name: str) -> str:
    """Return the header that offers a download as ``name`` (RFC 6266)."""
    return f"attachment; filename=\"{ascii_name(name)}\"; filename*=UTF-8''{quote(name, safe='')}"
