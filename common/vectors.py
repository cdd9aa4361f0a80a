"""What the classifier hears as vectors along time, about one per 0.4 s: for finding alike sounds.

Owns the file format (``vectors.npz``, by ``common.frame_store``) and the time grid. Vectors only
compare with vectors of the same weights, so the file names the weights that made it. Leaves out
how vectors come about and how they are compared. NumPy only.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from common.errors import ArtifactInvalid
from common.frame_store import FrameReader, FrameWriter

Float32Array = npt.NDArray[np.float32]

SEGMENTS_PER_VECTOR = 5
"""A vector is the mean over so many segments of the classifier: 0.4 s where these last 80 ms."""

MAX_WIDTH = 4096
"""Numbers in a vector that is read; those of today's networks have 1024 at most."""
MIN_VECTOR_S, MAX_VECTOR_S = 0.02, 60.0

_KIND = "soundmill-vectors-1"
_BLOCK_VECTORS = 1024
_MAX_DIRECTORY_BYTES = 1 << 20  # 75 days, where a vector lasts 0.4 s
_MAX_REST_BYTES = 2 << 20  # of a file: meta, headers, table of contents
_LIMIT = float(np.finfo(np.float16).max)


class VectorWriter:
    """Writes vectors in half precision as they come. A context manager.

    An error inside the ``with`` block removes the file.
    """

    def __init__(self, path: Path, digest: str, width: int, segment_s: float) -> None:
        """Start the file.

        Args:
            digest: of the classifier's weights, as ``common.checkpoint`` gives it.
            width: numbers per vector, D.
            segment_s: length of a segment.
        """
        meta = {"kind": _KIND, "vector_s": SEGMENTS_PER_VECTOR * segment_s, "digest": digest}
        self._writer = FrameWriter(path, meta, (width,), "<f2", _BLOCK_VECTORS)
        self._rest = np.empty((width, 0), np.float32)  # segments that make no vector yet

    def append(self, segments: Float32Array) -> None:
        """Add the features of segments, (D, t), which continue those before.

        Raises:
            DiskFull: if the file cannot grow.
        """
        held = np.concatenate([self._rest, segments], axis=1)
        n_vectors = held.shape[1] // SEGMENTS_PER_VECTOR
        whole = held[:, : n_vectors * SEGMENTS_PER_VECTOR]
        self._rest = held[:, n_vectors * SEGMENTS_PER_VECTOR :].copy()
        self._write(whole.reshape(len(held), n_vectors, SEGMENTS_PER_VECTOR).mean(axis=2))

    def close(self) -> None:
        """Complete the file: the last vector is of what segments there are.

        Raises:
            DiskFull: if it cannot grow.
        """
        if self._rest.shape[1]:
            self._write(self._rest.mean(axis=1, keepdims=True))
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._writer.discard()

    def _write(self, vectors: Float32Array) -> None:
        self._writer.append(np.clip(vectors, -_LIMIT, _LIMIT).astype("<f2"))


def most_bytes(duration_s: float) -> int:
    """Return how large a file of so many seconds can be, whatever the weights."""
    return math.ceil(duration_s / MIN_VECTOR_S) * 2 * MAX_WIDTH + _MAX_REST_BYTES


class VectorReader:
    """Reads the vectors of any part of a recording. A context manager.

    Vector n is of the sound from ``n * vector_s`` to ``(n + 1) * vector_s`` seconds.
    """

    def __init__(self, path: Path, digest: str | None = None) -> None:
        """Open a file by ``VectorWriter``.

        Args:
            digest: of the weights whose vectors are wanted; None takes those of any.

        Raises:
            ArtifactInvalid: here and when reading, if the file is damaged, holds no vectors, or
                those of other weights, which do not compare.
        """
        self._reader = FrameReader(path, _KIND, _MAX_DIRECTORY_BYTES)
        self.path = path
        try:
            self._check_layout()
            self.digest, self.vector_s = self._read_grid()
            if digest is not None and digest != self.digest:
                raise ArtifactInvalid(
                    f"{path.name} has the vectors of weights {self.digest[:12]}, "
                    f"which do not compare with those of {digest[:12]}"
                )
        except ArtifactInvalid:
            self.close()
            raise
        self.n_vectors = self._reader.n_frames
        self.width = self._reader.leading[0]

    def vectors(self, start: int = 0, stop: int | None = None) -> Float32Array:
        """Return vectors ``start`` to ``stop`` (exclusive; None: the last), (D, n), all finite."""
        first, last = max(0, start), self.n_vectors
        last = last if stop is None else min(stop, last)
        found = self._reader.frames(first, max(first, last)).astype(np.float32)
        if not np.isfinite(found).all():
            raise ArtifactInvalid(f"{self.path.name} holds what is no number")
        return found

    def between(self, start_s: float, stop_s: float) -> Float32Array:
        """Return the vectors of a stretch of time, (D, n): those of ``span``."""
        return self.vectors(*self.span(start_s, stop_s))

    def span(self, start_s: float, stop_s: float) -> tuple[int, int]:
        """Return which vectors, [start, stop), are of a stretch of time: at least half inside it.

        A stretch too short for that gives the one vector that its middle lies in; one beyond the
        recording's end gives none.
        """
        start, stop = (int(np.floor(t / self.vector_s + 0.5)) for t in (start_s, stop_s))
        if stop <= start:
            start = int(np.floor((start_s + stop_s) / 2 / self.vector_s))
            stop = start + 1
        stop = min(stop, self.n_vectors)
        return min(start, stop), stop

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_layout(self) -> None:
        leading, dtype = self._reader.leading, self._reader.dtype
        if len(leading) != 1 or leading[0] > MAX_WIDTH or dtype != np.dtype("<f2"):
            raise ArtifactInvalid(f"{self.path.name} holds no vectors along time")
        if self._reader.block_frames > _BLOCK_VECTORS:
            raise ArtifactInvalid(f"{self.path.name} has larger blocks than vectors come in")

    def _read_grid(self) -> tuple[str, float]:
        digest, vector_s = (self._reader.meta.get(name) for name in ("digest", "vector_s"))
        if not isinstance(digest, str):
            raise ArtifactInvalid(f"{self.path.name} does not tell whose vectors it has")
        if not isinstance(vector_s, int | float) or not MIN_VECTOR_S <= vector_s <= MAX_VECTOR_S:
            raise ArtifactInvalid(f"{self.path.name} does not tell how long a vector lasts")
        return digest, float(vector_s)
