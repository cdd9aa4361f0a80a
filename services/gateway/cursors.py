"""Opaque cursors: where the next page of a list begins, as text that clients hand back as it is."""

from __future__ import annotations

import binascii
from base64 import b64decode, urlsafe_b64encode

from services.gateway.problems import Problem, invalid

MAX_POSITION_DIGITS = 9


def encode(place: str) -> str:
    """Return the cursor of a place in a list."""
    return urlsafe_b64encode(place.encode()).decode().rstrip("=")


def decode(cursor: str) -> str:
    """Return the place. Raises Problem when it was not made here."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        place = b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError) as error:
        raise bad() from error
    if not place or not place.isprintable():
        raise bad()
    return place


def decode_position(cursor: str) -> int:
    """Return a place that is a number. Raises Problem when it is none."""
    position = decode(cursor)
    if not position.isdecimal() or len(position) > MAX_POSITION_DIGITS:
        raise bad()
    return int(position)


def bad() -> Problem:
    """Return the problem of a cursor that was not made here."""
    return invalid("cursor_invalid", "Not a cursor of this list: take next_cursor as it comes.")
