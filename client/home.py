"""The home folder of an embedded stack: where things lie, who runs it, one lock.

The lock file is held (``flock``) by the supervisor as long as it lives, so whether a stack runs is
never a guess. ``stack.json`` tells everybody else how to reach it; it is written beside and
renamed, so a reader sees all of it or none.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from client.errors import AlreadyRunning

LOCK_PATIENCE_S = 0.5


@dataclass(frozen=True)
class StackState:
    """A running stack, as ``stack.json`` holds it.

    ``stack_id`` is in the environment of every process of the stack (``SOUNDMILL_STACK_ID``), so
    that what a killed supervisor left behind can be told from everything else.
    """

    stack_id: str
    pid: int
    host: str
    port: int
    status: str = "starting"  # "starting", "ready" or "stopping"
    socket_dir: str = ""  # folder of the Redis socket when it is not in the home
    processes: dict[str, int] = field(default_factory=dict)  # name: process id

    @property
    def url(self) -> str:
        """The address of the gateway."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def with_(self, **changes: Any) -> StackState:
        """Return a copy with some fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Home:
    """The layout of a home folder."""

    folder: Path

    @classmethod
    def at(cls, folder: Path) -> Home:
        """Return the home at ``folder``, made absolute."""
        return cls(folder.expanduser().resolve())

    @property
    def lock_path(self) -> Path:
        return self.folder / "stack.lock"

    @property
    def state_path(self) -> Path:
        return self.folder / "stack.json"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics"

    @property
    def targets_path(self) -> Path:
        return self.folder / "metrics-targets.json"

    @property
    def broker(self) -> Path:
        return self.folder / "broker"

    def log(self, name: str) -> Path:
        """The log file of one process."""
        return self.logs / f"{name}.log"

    def make(self) -> None:
        """Make the folders, readable by their owner only."""
        for folder in (self.folder, self.logs, self.broker):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def read_state(self) -> StackState | None:
        """Return what ``stack.json`` says, or None when it is absent or not ours to understand."""
        try:
            return StackState(**json.loads(self.state_path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write_state(self, state: StackState) -> None:
        """Write ``stack.json`` beside and rename it."""
        _write(self.state_path, asdict(state))

    def write_targets(self, targets: list[dict[str, Any]]) -> None:
        """Write where Prometheus finds the processes, beside and renamed."""
        _write(self.targets_path, targets)

    def remove_state(self) -> None:
        """Remove ``stack.json`` and what goes with it; call it with the lock held."""
        self.state_path.unlink(missing_ok=True)
        self.targets_path.unlink(missing_ok=True)

    def is_running(self) -> bool:
        """Whether a supervisor holds the lock of this home now."""
        try:
            descriptor = os.open(self.lock_path, os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock for the time of the block; child processes do not inherit it.

        Raises:
            AlreadyRunning: another process holds it.
        """
        self.make()
        descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._take(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _take(self, descriptor: int) -> None:
        give_up_at = time.monotonic() + LOCK_PATIENCE_S  # is_running() holds it for an instant
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() < give_up_at:
                    time.sleep(0.02)
                    continue
            state = self.read_state()
            where = f" at {state.url} (process {state.pid})" if state else ""
            raise AlreadyRunning(f"Soundmill already runs in {self.folder}{where}.") from None


def _write(path: Path, content: Any) -> None:
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        beside.write_text(json.dumps(content, indent=1))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
