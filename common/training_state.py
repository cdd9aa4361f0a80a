"""What makes a fit repeatable: seeds, deterministic kernels, checkpoints to resume from, signals.

A checkpoint to resume from holds everything that the steps to come depend on, the states of the
random generators included. It is not a weights file: see ``common.checkpoint`` for those.
"""

from __future__ import annotations

import io
import os
import pickle
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch

from common.checkpoint import written_beside
from common.errors import WeightsInvalid

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """A signal ended a fit, after its checkpoint was written. Exits as a shell reports signals."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Interruption:
    """Takes note of SIGINT and SIGTERM instead of dying of them, once; a second one kills.

    Only the main thread may ask for signals; in another one this does nothing.
    """

    def __init__(self) -> None:
        self.caught: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.caught = number
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            # None: it was not set from Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def deterministic() -> Iterator[None]:
    """Compute with deterministic kernels; where there is none, PyTorch warns and goes on."""
    # must be set before the first use of cuBLAS; see its documentation, "Results reproducibility"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # its one setting is not in the types of PyTorch
    filled = memory.fill_uninitialized_memory
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    # costs time and serves only code that reads memory before it writes it
    memory.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        memory.fill_uninitialized_memory = filled
        torch.backends.cudnn.benchmark = benchmark


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (on all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states() -> dict[str, Any]:
    """Return the states of the global generators, for ``restore_random_states``."""
    numpy_state = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": _plain(numpy_state["state"])},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Put the global generators back; those of GPUs only where there are as many as there were."""
    random.setstate(states["python"])
    inner = states["numpy"]["state"]
    key = np.array(inner["key"], np.uint32)
    np.random.set_state({**states["numpy"], "state": {**inner, "key": key}})
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values to resume from; never half of them."""
    # in memory first: what torch raises where a disk is full is no OSError
    content = io.BytesIO()
    torch.save(state, content)
    with written_beside(path) as beside:
        beside.write_bytes(content.getbuffer())


def load_state(path: Path) -> dict[str, Any]:
    """Return what ``save_state`` wrote, on the CPU.

    Raises:
        WeightsInvalid: it cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsInvalid(
            f"the checkpoint {path} cannot be read; remove it to begin anew"
        ) from error
    return state


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Return NumPy's state with a list for its array, which a checkpoint may hold."""
    return {**state, "key": state["key"].tolist()}
