"""Streaming: pieces of a recording by position, and the restoration of windows of it.

A window changes a recording only by what it adds to it, and adds exact zeros wherever its mask
leaves a frame alone. So whatever lies outside is a copy, and windows of one region join up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.restorer.config import HOPS_PER_FRAME
from services.restorer.fill import channel_traits, expect, restore_channel
from services.restorer.model import Inpainter
from services.restorer.regions import Window
from services.restorer.spectrum import Grid, analyse, power_of, synthesise

EDGE_FRAMES = HOPS_PER_FRAME
"""Frames on either side of a window that Griffin-Lim may look at."""


class Tape:
    """A sliding part of a stream, addressed by absolute sample: as read, and as restored."""

    def __init__(self, blocks: Iterator[np.ndarray], channels: int) -> None:
        self._blocks = blocks
        self.start = 0
        self.original = np.zeros((channels, 0), np.float32)
        self.restored = self.original
        self.ended = False

    @property
    def channels(self) -> int:
        return self.original.shape[0]

    @property
    def stop(self) -> int:
        """One past the last sample held."""
        return self.start + self.original.shape[1]

    def advance(self) -> bool:
        """Read one more block; False at the end of the stream."""
        block = next(self._blocks, None)
        if block is None:
            self.ended = True
            return False
        self.original = np.concatenate([self.original, block], axis=1)
        self.restored = np.concatenate([self.restored, block], axis=1)
        return True

    def fill_to(self, stop: int) -> None:
        """Read until ``stop`` is held, or to the end of the stream."""
        while self.stop < stop and self.advance():
            pass

    def part(self, start: int, stop: int, *, restored: bool = False) -> np.ndarray:
        """Return samples [start, stop), (C, n); zeros where nothing is held."""
        source = self.restored if restored else self.original
        result = np.zeros((self.channels, max(0, stop - start)), np.float32)
        low, high = max(start, self.start), min(stop, self.stop)
        if low < high:
            result[:, low - start : high - start] = source[:, low - self.start : high - self.start]
        return result

    def add(self, start: int, change: np.ndarray) -> None:
        """Add ``change`` (C, n) to what is restored, from ``start`` on; what overhangs is lost."""
        low, high = max(start, self.start), min(start + change.shape[1], self.stop)
        if low < high:
            self.restored[:, low - self.start : high - self.start] += change[
                :, low - start : high - start
            ]

    def drop_before(self, position: int) -> np.ndarray:
        """Forget what lies before ``position`` and return it as restored, (C, n)."""
        count = int(np.clip(position - self.start, 0, self.original.shape[1]))
        finished = self.restored[:, :count]
        self.original, self.restored = self.original[:, count:], self.restored[:, count:]
        self.start += count
        return finished


def cut(
    blocks: Iterator[np.ndarray], spans: list[tuple[int, int]]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index, samples (C, n)) of each span [start, stop) of a stream, in order of start.

    Spans may overlap; a part beyond the stream is zeros. The stream is read to its end.
    """
    first = next(blocks, None)
    if first is None:
        return
    tape = Tape(_chained(first, blocks), first.shape[0])
    for index in sorted(range(len(spans)), key=lambda index: spans[index][0]):
        start, stop = spans[index]
        while tape.stop < start and tape.advance():
            tape.drop_before(min(start, tape.stop))
        tape.drop_before(start)
        tape.fill_to(stop)
        yield index, tape.part(start, stop)
    while tape.advance():
        tape.drop_before(tape.stop)


def _chained(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest


@dataclass(frozen=True)
class _Tail:
    """The end of the window before: what the next one that adjoins it takes as known."""

    power: Tensor  # (context frames, F), mean of the channels
    spectra: Tensor  # (C, EDGE_FRAMES, F)


@dataclass(frozen=True)
class Change:
    """What a window adds to the recording: samples (C, n) from ``start`` on."""

    start: int
    samples: np.ndarray
    tail: _Tail

    @property
    def stop(self) -> int:
        """One past the last sample."""
        return self.start + self.samples.shape[1]


class WindowRestorer:
    """Restores windows of one recording in their order."""

    def __init__(self, grid: Grid, inpainter: Inpainter | None, context_frames: int) -> None:
        self.grid = grid
        self.inpainter = inpainter
        self.context = max(context_frames, EDGE_FRAMES)
        self._tail: _Tail | None = None

    def needs(self, window: Window) -> tuple[int, int]:
        """Return the samples [start, stop) that a window looks at."""
        return self.grid.samples_of(
            window.first_frame - self.context, window.stop_frame + self.context
        )

    def change(self, window: Window, tape: Tape, mask: Tensor) -> Change | None:
        """Return what to add to the recording, or None where the mask touches nothing.

        Args:
            window: which frames; it must be the one after that of the last ``keep``.
            tape: holds what ``needs`` says.
            mask: (T, F) removal mask of the window's frames with ``context`` on either side.
        """
        context, grid = self.context, self.grid
        core = window.stop_frame - window.first_frame
        start, stop = self.needs(window)
        if not tape.part(start, stop).any():
            return None  # digital silence stays what it is
        tail = self._tail if window.adjoins else None
        mask = mask.clone()
        mask[:context] = 0.0  # restored already, or nothing to remove
        power, mid = self._all_channels(tape, start, stop, tail)
        expected = expect(self.inpainter, power, mask, grid)
        near = slice(context - EDGE_FRAMES, context + core + EDGE_FRAMES)
        expected = type(expected)(expected.mean[near], expected.std[near])
        changes, ends = [], []
        restored_power = torch.zeros(core, grid.n_bins)
        for channel in range(tape.channels):
            spectrum = self._spectrum(tape, channel, start, stop, tail)
            traits = None
            if tape.channels > 1:
                # what the window before has restored is no longer in the spectrum's past
                past = context - EDGE_FRAMES if tail is not None else 0
                traits = channel_traits(spectrum[past:], mid[past:], power[past:], mask[past:])
            spectrum = spectrum[near]
            restored = restore_channel(
                spectrum,
                mask[near],
                expected,
                grid,
                first_frame=window.first_frame - EDGE_FRAMES,
                channel=channel,
                traits=traits,
            )
            inner = slice(EDGE_FRAMES, EDGE_FRAMES + core)
            changes.append(synthesise(restored[inner] - spectrum[inner], grid))
            ends.append(restored[inner][-EDGE_FRAMES:])
            restored_power += power_of(restored[inner]) / tape.channels
        known = torch.cat([power[:context], restored_power])[-context:]
        return Change(
            grid.samples_of(window.first_frame, window.stop_frame)[0],
            torch.stack(changes).numpy(),
            _Tail(known, torch.stack(ends)),
        )

    def keep(self, tape: Tape, change: Change | None) -> None:
        """Add a change to the tape and remember its end."""
        self._tail = None if change is None else change.tail
        if change is not None:
            tape.add(change.start, change.samples)

    def _spectrum(
        self, tape: Tape, channel: int, start: int, stop: int, tail: _Tail | None
    ) -> Tensor:
        """Return the spectrum (T, F) of a channel with what is known before the window."""
        # without a tail nothing that was restored reaches into the window itself
        samples = tape.part(start, stop, restored=tail is None)[channel]
        spectrum = analyse(torch.from_numpy(samples), self.grid)
        if tail is not None:
            end = tail.spectra[channel]
            spectrum[self.context - len(end) : self.context] = end
        return spectrum

    def _all_channels(
        self, tape: Tape, start: int, stop: int, tail: _Tail | None
    ) -> tuple[Tensor, Tensor]:
        """Return mean power (T, F) and the spectrum (T, F) of the mean of all channels."""
        power = mid = torch.zeros(())
        for channel in range(tape.channels):
            spectrum = self._spectrum(tape, channel, start, stop, tail)
            power = power + power_of(spectrum) / tape.channels
            mid = mid + spectrum / tape.channels
        if tail is not None:
            power[: self.context] = tail.power
        return power, mid


def restore_stream(
    tape: Tape,
    windows: list[Window],
    restorer: WindowRestorer,
    change_of: Callable[[Window], Change | None],
    write: Callable[[np.ndarray], None],
) -> None:
    """Run a whole recording through its windows; everything else goes straight through.

    Args:
        tape: at the start of the recording.
        windows: in order.
        restorer: its ``needs`` say what a window looks at.
        change_of: makes the change of a window, once the tape holds what it needs.
        write: takes the finished samples (C, n), in order.
    """
    for window in windows:
        start, stop = restorer.needs(window)
        while tape.stop < start and tape.advance():
            write(tape.drop_before(min(start, tape.stop)))
        write(tape.drop_before(start))
        tape.fill_to(stop)
        if window.first_frame * restorer.grid.hop_length >= tape.stop:
            break  # an event beyond the end of the recording
        restorer.keep(tape, change_of(window))
    write(tape.drop_before(tape.stop))
    while tape.advance():
        write(tape.drop_before(tape.stop))
