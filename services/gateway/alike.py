"""How much stretches of a recording sound like an example: cosine of pooled vectors. NumPy only.

A stretch is as long as the example. Its vectors are pooled by their mean, as the example's are;
the similarity is the cosine of the two means, from -1 to 1, higher is more alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.vectors import VectorReader

Array = npt.NDArray[np.float64]

BLOCK_VECTORS = 4_096  # of a recording in memory at once
MOST_PER_RECORDING = 5


@dataclass(frozen=True)
class Pattern:
    """An example: its mean vector scaled to length 1, (D,), and how many vectors it was made of."""

    vector: Array
    n_vectors: int


@dataclass(frozen=True)
class Match:
    """Vectors ``start`` to ``stop`` (exclusive) of a recording, and how alike they are."""

    start: int
    stop: int
    similarity: float


def pattern_of(vectors: npt.NDArray[np.float32]) -> Pattern | None:
    """Return the pattern of an example's vectors, (D, n); None where they tell nothing: all 0."""
    if vectors.shape[1] == 0:
        return None
    mean = vectors.astype(np.float64).mean(axis=1)
    length = float(np.linalg.norm(mean))
    return Pattern(mean / length, vectors.shape[1]) if length > 0.0 else None


def similarities(reader: VectorReader, pattern: Pattern) -> Array:
    """Return the similarity of every stretch of a recording, by its first vector, (T - n + 1,).

    A recording shorter than the example is one stretch. One that tells nothing has similarity 0.
    """
    n = min(pattern.n_vectors, reader.n_vectors)
    n_stretches = reader.n_vectors - n + 1 if n else 0
    found = np.zeros(n_stretches)
    for start in range(0, n_stretches, BLOCK_VECTORS):
        stop = min(start + BLOCK_VECTORS, n_stretches)
        vectors = reader.vectors(start, stop + n - 1).astype(np.float64)
        sums = np.cumsum(np.pad(vectors, ((0, 0), (1, 0))), axis=1)
        pooled = sums[:, n:] - sums[:, :-n]  # (D, stop - start)
        lengths = np.linalg.norm(pooled, axis=0)
        cosine = pattern.vector @ pooled / np.maximum(lengths, np.finfo(np.float64).tiny)
        found[start:stop] = np.where(lengths > 0.0, np.clip(cosine, -1.0, 1.0), 0.0)
    return found


def matches(
    reader: VectorReader, pattern: Pattern, barred: tuple[int, int] | None = None
) -> Iterator[Match]:
    """Yield the stretches of a recording most alike, best first, none overlapping another.

    Args:
        barred: vectors [start, stop) that are in none of them: the example's own.
    """
    found = similarities(reader, pattern)
    n = min(pattern.n_vectors, reader.n_vectors)
    if barred is not None:
        found[max(0, barred[0] - n + 1) : barred[1]] = -np.inf
    for _ in range(MOST_PER_RECORDING):
        if len(found) == 0:
            return
        start = int(np.argmax(found))
        similarity = float(found[start])
        if similarity == -np.inf:
            return
        yield Match(start, start + n, similarity)
        found[max(0, start - n + 1) : start + n] = -np.inf
