"""What commands do to a stack from outside: start it in the background, find it, stop it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from client.children import importable_environment, tail
from client.errors import NotRunning, StackFailed
from client.home import Home, StackState
from client.stack import STARTED_WITHIN_S, WORK_GRACE_S, Options, clean_up

STOPPED_WITHIN_S = WORK_GRACE_S + 20.0


_started: dict[int, subprocess.Popen[bytes]] = {}
"""Supervisors that this process started: its children, waited for when they end."""


@dataclass(frozen=True)
class Running:
    """A stack that is ready. ``started_here``: by this command, which may then stop it."""

    state: StackState
    started_here: bool


def find(home: Home) -> StackState | None:
    """Return the state of the stack that runs in ``home``, or None when none does."""
    return home.read_state() if home.is_running() else None


def ensure_running(home: Home, options: Options) -> Running:
    """Return the stack of ``home``; start one in the background when there is none.

    Raises:
        StackFailed, PortInUse: it could not be started; nothing is left running.
    """
    if home.is_running():
        return Running(wait_until_ready(home), started_here=False)
    try:
        return Running(start_detached(home, options), started_here=True)
    except StackFailed:
        if not home.is_running():
            raise
        return Running(wait_until_ready(home), started_here=False)  # another command was quicker


def start_detached(home: Home, options: Options) -> StackState:
    """Start a supervisor in a session of its own and return once it is ready.

    Raises:
        AlreadyRunning: a stack runs in this home.
        StackFailed: it could not start; the message is the supervisor's own.
    """
    if home.is_running():
        with home.locked():  # says where it runs
            pass
    home.make()
    log = home.log("supervisor")
    command = [sys.executable, "-m", "client.cli", "up", "--home", str(home.folder)]
    command += ["--host", options.host, "--workers", str(options.workers)]
    if options.port is not None:
        command += ["--port", str(options.port)]
    with log.open("wb") as output:
        supervisor = subprocess.Popen(
            command,
            env=importable_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    _started[supervisor.pid] = supervisor
    try:
        return wait_until_ready(home, supervisor)
    except BaseException:
        supervisor.terminate()
        supervisor.wait()
        del _started[supervisor.pid]
        raise


def wait_until_ready(home: Home, supervisor: subprocess.Popen[bytes] | None = None) -> StackState:
    """Return the state of the stack in ``home`` once it is ready.

    Raises:
        StackFailed: it ended, is stopping, or is not ready in time.
    """
    deadline = time.monotonic() + 2 * STARTED_WITHIN_S
    while time.monotonic() < deadline:
        if supervisor is not None and supervisor.poll() is not None:
            words = tail(home.log("supervisor"), 8)
            raise StackFailed(words.removeprefix("soundmill: ") or "The stack did not start.")
        if supervisor is None and not home.is_running():
            raise StackFailed(f"The stack in {home.folder} ended while it was waited for.")
        state = home.read_state()
        if state is not None and state.status == "ready":
            if supervisor is None or state.pid == supervisor.pid:
                return state
        elif state is not None and state.status == "stopping" and supervisor is None:
            raise StackFailed(f"The stack in {home.folder} is stopping; try again in a moment.")
        time.sleep(0.05)
    raise StackFailed(f"The stack in {home.folder} did not get ready; see {home.logs}.")


def stop(home: Home) -> StackState:
    """Stop the stack of ``home`` and wait until nothing of it runs.

    Raises:
        NotRunning: none runs; what a killed one left behind is removed all the same.
        StackFailed: it does not stop.
    """
    state = find(home)
    if state is None:
        if home.state_path.exists():
            with home.locked():
                clean_up(home)
        raise NotRunning(f"Nothing runs in {home.folder}.")
    os.kill(state.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOPPED_WITHIN_S
    while home.is_running():
        if time.monotonic() > deadline:
            raise StackFailed(f"The stack in {home.folder} (process {state.pid}) does not stop.")
        time.sleep(0.05)
    supervisor = _started.pop(state.pid, None)
    if supervisor is not None:
        supervisor.wait()
    return state


@contextmanager
def shielded() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block: stopping a stack must not be left half-way."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
