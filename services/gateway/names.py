"""Safe names for downloads, made from the names that users give."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import quote

from common.names import CleanName as CleanName
from common.names import clean_name as clean_name

MAX_STEM_LENGTH = 100
MAX_STEM_BYTES = 200  # file systems take 255, endings included
MAX_FOLDERS = 8  # the innermost


def download_name(recording_name: str, ending: str) -> str:
    """Return a file name for a result of a recording, for example ``dog.enhanced.flac``.

    Only the last part of the recording's name is used, without its ending; what some file system
    refuses becomes ``_``.
    """
    last = recording_name.replace("\\", "/").rpartition("/")[2]
    stem = PurePosixPath(last).stem if last not in ("", ".", "..") else "recording"
    return f"{_safe(stem) or 'recording'}.{ending}"


def archive_name(recording_name: str, position: int, ending: str) -> str:
    """Return a path in a ZIP for a result of a recording, like ``tapes/dog.0000012.mask.npz``.

    The recording's position in its job, in seven digits, makes it differ from every other, also
    where letter case does not count. Folders are kept, made safe like the name itself.
    """
    *folders, last = recording_name.replace("\\", "/").split("/")
    kept = [_safe(folder) for folder in folders[-MAX_FOLDERS:]]
    name = download_name(last, f"{position:07d}.{ending}")
    return "/".join([*(folder for folder in kept if folder), name])


def ascii_name(name: str) -> str:
    """Return ``name`` with everything but plain characters replaced by ``_``."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)


def content_disposition(name: str) -> str:
    """Return the header that offers a download as ``name`` (RFC 6266)."""
    return f"attachment; filename=\"{ascii_name(name)}\"; filename*=UTF-8''{quote(name, safe='')}"


def _safe(name: str) -> str:
    safe = re.sub(r'[<>:"|?*%\s\0-\x1f\x7f]+', "_", name)[:MAX_STEM_LENGTH]
    return safe.encode()[:MAX_STEM_BYTES].decode(errors="ignore").strip("._")
