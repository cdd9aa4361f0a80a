"""Names and descriptions that users give: kept as data, never used as a path.

What no screen, no JSON and no database can carry alike is refused where it enters: control
characters (PostgreSQL keeps no NUL), unpaired surrogates, direction overrides.
"""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, Field

MAX_NAME_LENGTH = 500
MAX_CUSTOM_ID_LENGTH = 255
MAX_LABELS = 64
MAX_LABEL_KEY_LENGTH = 64
MAX_LABEL_LENGTH = 1_000
BIDI_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
PLAIN_SUFFIXES = {".wav", ".wave", ".bwf", ".rf64", ".w64", ".aif", ".aifc", ".aiff", ".au", ".caf"}
LOSSLESS_SUFFIXES = {".flac", ".alac", ".ape", ".tta", ".wv"}
LOSSY_SUFFIXES = {".mp2", ".mp3", ".aac", ".m4a", ".m4b", ".ac3", ".ogg", ".oga", ".opus", ".wma"}
VIDEO_SUFFIXES = {".mka", ".mkv", ".webm", ".mp4", ".mov", ".avi", ".mpg", ".mpeg", ".ogv", ".wmv"}
AUDIO_SUFFIXES = frozenset(PLAIN_SUFFIXES | LOSSLESS_SUFFIXES | LOSSY_SUFFIXES | VIDEO_SUFFIXES)
"""File names that are taken for recordings; whether one is, the decoder finds out."""

REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control, surrogate, line separators


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
    if not _is_plain(name):
        raise ValueError("a name must not hold control characters")
    return name


def plain_text(text: str) -> str:
    """Return ``text`` as it is. Raises ValueError when it holds control characters."""
    if not _is_plain(text):
        raise ValueError("must not hold control characters")
    return text


CleanName = Annotated[str, AfterValidator(clean_name)]
CustomId = Annotated[
    str, Field(min_length=1, max_length=MAX_CUSTOM_ID_LENGTH), AfterValidator(plain_text)
]
"""What the owner calls a recording: unique in its job, kept letter by letter."""

LabelKey = Annotated[
    str, Field(min_length=1, max_length=MAX_LABEL_KEY_LENGTH), AfterValidator(plain_text)
]
LabelText = Annotated[str, Field(max_length=MAX_LABEL_LENGTH), AfterValidator(plain_text)]
Labels = Annotated[dict[LabelKey, LabelText], Field(max_length=MAX_LABELS)]
"""What the owner notes on a recording: short texts under short names."""


def _is_plain(text: str) -> bool:
    if text.isascii():
        return text.isprintable()
    return not any(
        unicodedata.category(char) in REFUSED_CATEGORIES or char in BIDI_OVERRIDES for char in text
    )
