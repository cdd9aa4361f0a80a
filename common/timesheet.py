"""Whose time it is: what a worker spends, parted among the recordings that it spends it on.

Time in a turn belongs to those whose turn it is, by their weights; the rest, of which nothing is
known, to all that are begun, in equal parts. Each moment is given out once, so the parts add up to
the time in which anything was begun.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Spent:
    """Of a worker's time, what was one recording's, in seconds."""

    own_s: float
    alone_s: float  # of that, what no other had a part in


@dataclass
class _Entry:
    own_s: float = 0.0
    alone_s: float = 0.0
    turns: list[float] = field(default_factory=list)  # weights; turns may lie within each other

    @property
    def spent(self) -> Spent:
        return Spent(self.own_s, self.alone_s)


class Timesheet:
    """The recordings that are begun, by name. ``now``: seconds of one clock that never goes back.

    Not safe for threads: whoever shares it holds a lock.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._parted_at = 0.0  # until then, all time is given out

    def begin(self, name: str, now: float) -> None:
        """Begin a recording, which has had no time yet."""
        self._part(now)
        self._entries[name] = _Entry()

    def end(self, name: str, now: float) -> Spent | None:
        """End a recording; return what it had, None where it is not begun."""
        self._part(now)
        entry = self._entries.pop(name, None)
        return None if entry is None else entry.spent

    def spent(self, name: str, now: float) -> Spent | None:
        """Return what a recording has had so far, None where it is not begun."""
        self._part(now)
        entry = self._entries.get(name)
        return None if entry is None else entry.spent

    def enter(self, name: str, weight: float, now: float) -> None:
        """Begin a turn. ``weight``: above 0, to be compared with those whose turn it is as well."""
        self._part(now)
        if name in self._entries:
            self._entries[name].turns.append(weight)

    def leave(self, name: str, now: float) -> None:
        """End the innermost turn; nothing happens where the recording has ended meanwhile."""
        self._part(now)
        if name in self._entries and self._entries[name].turns:
            self._entries[name].turns.pop()

    def _part(self, now: float) -> None:
        """Give out the time since the last call."""
        elapsed_s, self._parted_at = now - self._parted_at, now
        parts = [(entry, entry.turns[-1]) for entry in self._entries.values() if entry.turns]
        parts = parts or [(entry, 1.0) for entry in self._entries.values()]
        total = sum(weight for _, weight in parts)
        for entry, weight in parts:
            entry.own_s += elapsed_s * weight / total
        if len(parts) == 1:
            parts[0][0].alone_s += elapsed_s
