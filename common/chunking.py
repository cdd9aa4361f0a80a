"""Long recordings as overlapping chunks, and their joining by linear cross-fades.

A model sees chunks of ``CHUNK_S`` that overlap by ``OVERLAP_S``; what it returns is faded over
where two meet, so that no seam is heard or seen. Serves waveforms (samples) and masks (frames).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

CHUNK_S = 10.0
OVERLAP_S = 1.0

Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Chunk:
    """A window of a recording. ``start`` in samples; ``audio`` float32 (C, n)."""

    start: int
    audio: Array
    is_first: bool
    is_last: bool


def chunks(blocks: Iterable[Array], chunk_samples: int, overlap_samples: int) -> Iterator[Chunk]:
    """Yield windows of ``chunk_samples`` every ``chunk_samples - overlap_samples``.

    Args:
        blocks: float32 (C, n) of any n, one after the other.
        chunk_samples: length of every chunk but the last, which is shorter or as long.
        overlap_samples: shared by neighbours; less than ``chunk_samples``.

    Yields:
        At least one chunk for at least one sample; the last always holds samples that no chunk
        before it has held. None for an empty stream.
    """
    if not 0 <= overlap_samples < chunk_samples:
        raise ValueError("overlap_samples must be at least 0 and below chunk_samples")
    hop = chunk_samples - overlap_samples
    held: list[Array] = []
    n_held = start = 0
    for block in blocks:
        held.append(block)
        n_held += block.shape[1]
        # more than a chunk is held, so a sample comes after it and it is not the last
        while n_held > chunk_samples:
            joined = np.concatenate(held, axis=1) if len(held) > 1 else held[0]
            yield Chunk(start, joined[:, :chunk_samples].copy(), start == 0, is_last=False)
            held = [joined[:, hop:]]
            n_held -= hop
            start += hop
    if n_held:
        yield Chunk(start, np.concatenate(held, axis=1), start == 0, is_last=True)


class CrossFader:
    """Joins blocks that overlap along their last axis.

    Where a block begins before the end of the one before it, the two are faded over linearly in
    their common part. Blocks come in order; each begins at or before the end of what came before,
    and none ends before it.
    """

    def __init__(self) -> None:
        self._tail: Array | None = None  # what a later block may still overlap
        self._tail_start = 0

    def add(self, start: int, block: Array) -> Array | None:
        """Take the block that begins at ``start``; return what no later block can change.

        Assumes that the next block begins no earlier than this one.

        Raises:
            ValueError: a gap, or a block out of order.
        """
        if self._tail is None:
            self._tail, self._tail_start = block, start
            return None
        finished_n = start - self._tail_start
        overlap = self._tail.shape[-1] - finished_n
        if finished_n < 0 or overlap < 0 or overlap > block.shape[-1]:
            raise ValueError(f"block at {start} does not continue {self._tail_start}")
        finished = self._tail[..., :finished_n]
        if overlap:
            fade_in = (np.arange(overlap, dtype=np.float32) + 1.0) / (overlap + 1.0)
            old = self._tail[..., finished_n:]
            # old + fade * (new - old): exact where both agree
            faded = old + fade_in * (block[..., :overlap] - old)
            block = np.concatenate([faded, block[..., overlap:]], axis=-1)
        self._tail, self._tail_start = block, start
        return finished if finished_n else None

    def flush(self) -> Array | None:
        """Return the rest; the fader is then as new."""
        rest, self._tail, self._tail_start = self._tail, None, 0
        return rest
