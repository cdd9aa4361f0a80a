"""An object of the store as a file: read forwards and by jumps, through a window of bounded size.

Ranges are read whole and quickly, so that no connection to the store stays open while entries are
being stored.
"""

from __future__ import annotations

from common.errors import NotFound, SourceInvalid
from common.storage import ObjectStore, Readable

FIRST_WINDOW_BYTES = 256 << 10
WINDOW_BYTES = 4 << 20


class StoredFile:
    """A stored object, to be read."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store = store
        self._key = key
        try:
            self.size_bytes = store.stat(key).size_bytes
        except NotFound as error:
            raise SourceInvalid("source_unavailable", "what was uploaded is gone") from error
        self._at = 0
        self._window = b""
        self._window_at = 0
        self._next_bytes = FIRST_WINDOW_BYTES

    def tell(self) -> int:
        """Return where the next byte is read."""
        return self._at

    def seek(self, offset: int) -> None:
        """Go to ``offset`` from the start."""
        self._at = offset

    def skip(self, count: int) -> None:
        """Leave out bytes, without reading them where that is possible."""
        self._at += count

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes; none at the end."""
        begin = self._at - self._window_at
        if not 0 <= begin < len(self._window):
            self._load()
            begin = 0
        block = self._window[begin : begin + size]
        self._at += len(block)
        return block

    def exactly(self, size: int) -> bytes:
        """Return ``size`` bytes, fewer only at the end."""
        return read_exactly(self, size)

    def _load(self) -> None:
        follows = self._at == self._window_at + len(self._window)
        self._next_bytes = (
            min(WINDOW_BYTES, 2 * self._next_bytes) if follows else FIRST_WINDOW_BYTES
        )
        self._window, self._window_at = b"", self._at
        if self._at >= self.size_bytes:
            return
        try:
            with self._store.open(self._key, self._at, self._next_bytes) as blocks:
                self._window = b"".join(blocks)
        except NotFound as error:
            raise SourceInvalid("source_unavailable", "what was uploaded is gone") from error


def read_exactly(reader: Readable, size: int) -> bytes:
    """Return ``size`` bytes of any reader, fewer only at the end."""
    parts: list[bytes] = []
    while size > 0 and (block := reader.read(size)):
        parts.append(block)
        size -= len(block)
    return parts[0] if len(parts) == 1 else b"".join(parts)
