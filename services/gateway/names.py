"""Names that users give: kept as data, never used as a path; and safe names for downloads."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath
from typing import Annotated
from urllib.parse import quote

from pydantic import AfterValidator

MAX_NAME_LENGTH = 500
BIDI_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control, surrogate, line separators
MAX_STEM_LENGTH = 100


def clean_name(raw: str) -> str:
    """Return a name in Unicode's composed form without space around it.

    Raises:
        ValueError: empty, too long, or with control characters or direction overrides.
    """
    name = unicodedata.normalize("NFC", raw).strip()
    if not name:
        raise ValueError("a name must not be empty")
    if len(name) > MAX_NAME_LENGTH:
        raise ValueError(f"a name must not be longer than {MAX_NAME_LENGTH} characters")
    if any(unicodedata.category(c) in REFUSED_CATEGORIES or c in BIDI_OVERRIDES for c in name):
        raise ValueError("a name must not hold control characters")
    return name


CleanName = Annotated[str, AfterValidator(clean_name)]


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
