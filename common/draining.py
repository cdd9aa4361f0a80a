"""A worker that is asked to stop: its parent is told by a signal, its child learns it from here."""

from __future__ import annotations

import mmap
import struct
import time

_DEADLINE = struct.Struct("d")
NEVER = 0.0


class Drain:
    """Whether this worker was asked to stop, in memory that a parent shares with what it forks.

    From then on nothing new is begun (``common.keeper``); what is being worked on has until the
    grace is over. The clock is the monotonic one, which all processes of a machine share.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _DEADLINE.size)  # anonymous: no file, inherited by forks

    def ask(self, grace_s: float) -> None:
        """Ask to stop. Asked again, the shorter grace counts."""
        deadline = time.monotonic() + grace_s
        if not self.asked or deadline < self._deadline:
            self._memory[:] = _DEADLINE.pack(deadline)

    @property
    def asked(self) -> bool:
        return self._deadline != NEVER

    @property
    def is_over(self) -> bool:
        """Whether even what is being worked on is to be given back."""
        return self.asked and time.monotonic() >= self._deadline

    @property
    def _deadline(self) -> float:
        deadline: float = _DEADLINE.unpack(self._memory[:])[0]
        return deadline
