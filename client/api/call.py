"""What there is to send, apart from sending it: one request, a list in pages, a download."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

T = TypeVar("T")
R = TypeVar("R", bound=BaseModel)

PAGE_SIZE = 200
IDEMPOTENCY_KEY = "Idempotency-Key"

Blocks = Callable[[], Iterable[bytes]]
"""Called once per try; yields the bytes to send. Its errors come through."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request. ``read`` makes the result of the decoded JSON that comes back.

    ``path`` begins with a slash; or it is a whole address elsewhere, which never sees the API key.
    ``repeatable``: it may be sent again when nobody knows whether it arrived.
    """

    method: str
    path: str
    read: Callable[[Any], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    content: Blocks | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True


@dataclass(frozen=True)
class Page(Generic[R]):
    """Some of a list, and where the rest begins."""

    items: list[R]
    next_cursor: str | None


@dataclass(frozen=True)
class Pages(Generic[R]):
    """A list that comes in pages: those of ``path``, whose JSON has the rows under ``rows``."""

    path: str
    rows: str
    record: type[R]
    params: Mapping[str, Any] = field(default_factory=dict)

    def page(self, cursor: str | None) -> Call[Page[R]]:
        """Return the request for the page at a cursor, None for the first."""

        def read(content: Any) -> Page[R]:
            items = [self.record.model_validate(row) for row in content[self.rows]]
            return Page(items, content.get("next_cursor"))

        place = {"cursor": cursor} if cursor else {}
        return Call("GET", self.path, read, {"limit": PAGE_SIZE, **self.params, **place})


@dataclass(frozen=True)
class Download:
    """Bytes to write to a file, which is only whole once the call has returned."""

    path: str
    target: Path
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Export:
    """Bytes to hand on as they come."""

    path: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stream:
    """Server-sent events from the one after ``after`` on, None for the first."""

    path: str
    after: int | None = None


def given(**options: Any) -> dict[str, Any]:
    """Return the options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def nothing(_content: Any) -> None:
    """Read an answer that holds nothing."""


def sendable(text: str) -> str:
    """Return a text as UTF-8 can send it: arguments of a command may hold half surrogate pairs."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
