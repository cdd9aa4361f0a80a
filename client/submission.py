"""How far the sending of a submission is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Event, Lock

from client.api.call import Blocks
from client.sources import Unreadable


@dataclass(frozen=True)
class NotSent:
    """A recording that did not reach the gateway, and why."""

    name: str
    reason: str


@dataclass
class Submission:
    """How far the sending is. ``sent_bytes`` counts what was sent twice twice."""

    total: int
    sent: int = 0
    not_sent: list[NotSent] = field(default_factory=list)
    sent_bytes: int = 0
    _lock: Lock = field(default_factory=Lock)

    def count(self, size_bytes: int) -> None:
        """Count bytes as sent. Threads may call it."""
        with self._lock:
            self.sent_bytes += size_bytes

    def counted(self, blocks: Blocks, stop: Event | None = None) -> Blocks:
        """Return the same blocks, counted as they go; once ``stop`` is set they raise."""

        def read() -> Iterator[bytes]:
            for block in blocks():
                if stop is not None and stop.is_set():
                    raise Unreadable("was interrupted")
                self.count(len(block))
                yield block

        return read
