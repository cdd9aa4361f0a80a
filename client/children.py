"""One child process of the supervisor: started, watched, restarted with a growing pause, stopped.

Each child has a process group of its own, so that a worker's children can be stopped with it and
Ctrl-C in a terminal reaches the supervisor alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
HEALTHY_AFTER_S = 60.0
MAX_LOG_BYTES = 20 * 1024**2
SERVERS = ("SOUNDMILL_DATABASE_URL", "SOUNDMILL_STORE_URL", "SOUNDMILL_REDIS_URL")
OF_ONE_PROCESS = ("SOUNDMILL_METRICS_PORT", "PROMETHEUS_MULTIPROC_DIR")
NOT_INHERITED = (*SERVERS, *OF_ONE_PROCESS, "SOUNDMILL_API_KEY")
LAUNCHER = Path(__file__).with_name("launch.py")


@dataclass
class Child:
    """A process that should run until it is stopped. ``on_orphaned`` is sent if we die first."""

    name: str
    command: list[str]
    environment: dict[str, str]
    folder: Path
    log: Path
    on_orphaned: signal.Signals = signal.SIGKILL
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    started_at: float = 0.0
    start_again_at: float = field(default=0.0)

    def start(self) -> None:
        """Start the process; its output goes to the end of its log. Call from the main thread."""
        launch = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid())]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*launch, str(int(self.on_orphaned)), *self.command],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        self.started_at = time.monotonic()

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def keep_alive(self, say: Callable[[str], None]) -> bool:
        """Start it again when it is gone and its pause is over; return whether it was started."""
        if self.is_alive:
            return False
        now = time.monotonic()
        if self.process is not None:
            if now - self.started_at > HEALTHY_AFTER_S:
                self.failures = 0
            pause_s = min(FIRST_PAUSE_S * 2**self.failures, LONGEST_PAUSE_S)
            say(f"{self.name} ended ({ending(self.process)}); starting it again in {pause_s:g} s")
            self.failures += 1
            self.kill()  # what it left in its group
            self.process = None
            self.start_again_at = now + pause_s
        if now < self.start_again_at:
            return False
        try:
            self.start()
        except OSError as error:  # no memory, no descriptors: try again later
            self.start_again_at = now + LONGEST_PAUSE_S
            say(f"{self.name} could not be started: {error.strerror}")
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone, if it still runs."""
        if self.is_alive and self.process is not None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """Kill whatever is left of the process and its group."""
        if self.process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def rotate_log(self) -> None:
        """Copy a log that has grown large to ``NAME.log.1`` and empty it; its writers append."""
        try:
            if self.log.stat().st_size > MAX_LOG_BYTES:
                shutil.copyfile(self.log, self.log.with_suffix(".log.1"))
                os.truncate(self.log, 0)
        except OSError:
            return  # a full disk must not end the supervisor

    def last_words(self, lines: int = 5) -> str:
        """Return the end of the log, for a message."""
        return tail(self.log, lines)


def importable_environment() -> dict[str, str]:
    """Return our environment so that a child finds this code first, wherever it starts.

    A folder named ``services`` or ``common`` in the working directory must not be taken for ours;
    addresses of another installation's servers are left out.
    """
    inherited = {name: v for name, v in os.environ.items() if name not in NOT_INHERITED}
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, [inherited.get("PYTHONPATH")])]
    return {**inherited, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def ending(process: subprocess.Popen[bytes]) -> str:
    """Return how a process ended, in words."""
    status = process.returncode
    if status is not None and status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"


def tail(path: Path, lines: int) -> str:
    """Return the last lines of a text file, or nothing when it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.strip().splitlines()[-lines:])


def wait_all(children: list[Child], timeout_s: float, hurry: Callable[[], bool]) -> bool:
    """Wait until all have ended; give up at the timeout or when ``hurry`` says so."""
    deadline = time.monotonic() + timeout_s
    while any(child.is_alive for child in children):
        if time.monotonic() > deadline or hurry():
            return False
        time.sleep(0.05)
    return True


def kill_leftovers(stack_id: str) -> int:
    """Kill every process of this user that carries ``stack_id``; return how many there were."""
    marker = ("SOUNDMILL_STACK_ID", stack_id)
    killed = 0
    for process in psutil.process_iter(["pid"]):
        if process.pid == os.getpid():
            continue
        try:
            if marker in process.environ().items():
                process.kill()
                killed += 1
        except (psutil.Error, OSError):
            continue  # another user's, or gone
    return killed
