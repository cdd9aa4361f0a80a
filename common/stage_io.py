"""What goes into a model and what comes out, per recording: files in, files and facts out.

The contract between ``common.stage``, which fetches, stores and records, and each worker's
``infer.process``, which computes. Neither torch nor the database is needed to import it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from common.domain import ArtifactKind
from common.params import StageParams

T = TypeVar("T")
M = TypeVar("M")
Turn = Callable[[float], AbstractContextManager[None]]
"""Makes a block the turn of one recording, with a weight beside others whose turn it is, too."""


class Phases:
    """Seconds spent per phase of one attempt: download, decode, infer, encode, upload.

    Args:
        check: Called whenever a phase is entered; what it raises ends the attempt. A model enters
            phases chunk by chunk, so it stops soon after its recording was taken from it.
        turn: Entered around each phase: who goes through a shard learns from it whose time it is.
    """

    def __init__(
        self, check: Callable[[], None] | None = None, turn: Turn = lambda _weight: nullcontext()
    ) -> None:
        self.seconds: dict[str, float] = {}
        self.turn = turn
        self._check = check

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent in the block, on this recording alone, to phase ``name``."""
        if self._check is not None:
            self._check()
        with together(name, {self: 1.0}):
            yield

    def add(self, name: str, seconds: float) -> None:
        """Add time to phase ``name``."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def timed(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield ``items``; the time spent waiting for each counts as phase ``name``."""
        iterator = iter(items)
        while True:
            with self.phase(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item


@contextmanager
def together(name: str, weights: Mapping[Phases, float]) -> Iterator[None]:
    """Add the time spent in the block to phase ``name`` of several recordings, by their weights.

    Args:
        weights: How much each has in what is computed, above 0: windows, or seconds of audio.
    """
    with ExitStack() as turns:
        for phases, weight in weights.items():
            turns.enter_context(phases.turn(weight))
        started = time.perf_counter()
        try:
            yield
        finally:
            unit_s = (time.perf_counter() - started) / sum(weights.values())
            for phases, weight in weights.items():
                phases.add(name, unit_s * weight)


@dataclass(frozen=True)
class StageInput:
    """One recording as a worker gets it. Every path is local and may only be read."""

    name: str  # as the user named it; for messages, never for opening
    audio_path: Path
    params: StageParams
    upstream: dict[ArtifactKind, Path]
    scratch: Path  # private folder of this attempt; removed afterwards, whatever happens
    phases: Phases = field(default_factory=Phases)


@dataclass(frozen=True)
class OutputFile:
    """A file that becomes an artifact. ``path`` lies in the scratch folder."""

    path: Path
    media_type: str


@dataclass(frozen=True)
class AudioFacts:
    """What decoding found out about a recording."""

    duration_s: float
    sample_rate: int
    channels: int


@dataclass(frozen=True)
class StageOutput:
    """What a worker made of one recording. ``result`` is a small JSON summary (under 4 KiB)."""

    files: dict[ArtifactKind, OutputFile]
    result: dict[str, Any]
    audio: AudioFacts
    batch_size: int = 1  # chunks computed together, at most


@dataclass(frozen=True)
class Done:
    """What became of one recording: its output, or the error that it met."""

    item: StageInput
    outcome: StageOutput | Exception


def each(
    process: Callable[[M, StageInput], StageOutput],
) -> Callable[[M, Iterable[StageInput]], Iterator[Done]]:
    """Return a function that processes the recordings of a shard one after the other."""

    def process_shard(model: M, items: Iterable[StageInput]) -> Iterator[Done]:
        for item in items:
            try:
                done = Done(item, process(model, item))
            except Exception as error:
                done = Done(item, error)
            yield done

    return process_shard
