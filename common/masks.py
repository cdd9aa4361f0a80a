"""The segmenter's outputs as files: the foreground mask, and the embedding that gives class masks.

Owns the mask grid (128 mel bands x 50 frames a second) and its file formats, and interpolates to
other grids. Frame t of a mask is centred on t * MASK_HOP_S seconds, like the spectrogram it was
computed from. Leaves out how masks come about. NumPy only.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from common.errors import ArtifactInvalid
from common.frame_store import FrameReader, FrameWriter
from common.mel import FloatArray, hz_to_mel, mel_centres_hz, mel_to_hz

Float32Array = npt.NDArray[np.float32]

MASK_BANDS = 128
MASK_HOP_S = 0.02
MASK_F_MAX_HZ = 16_000.0

EMBEDDING_FACTOR = 2
"""An embedding bin covers this many bands and this many frames of the mask."""
EMBEDDING_BANDS = MASK_BANDS // EMBEDDING_FACTOR
EMBEDDING_HOP_S = MASK_HOP_S * EMBEDDING_FACTOR
EMBEDDING_FIRST_S = MASK_HOP_S * (EMBEDDING_FACTOR - 1) / 2
"""The centre of the first embedding bin, between those of the mask frames it covers."""

_MASK_KIND = "soundmill-mask-1"
_EMBEDDING_KIND = "soundmill-embedding-1"
_MASK_BLOCK_FRAMES = 512
_MASK_LEVELS = 255
_EMBEDDING_LEVELS = 127


def MASK_CENTRES_HZ() -> FloatArray:  # noqa: N802  (a constant, computed when asked for)
    """Return the centres of the mask's bands, (128,), hertz."""
    return mel_centres_hz(MASK_BANDS, 0.0, MASK_F_MAX_HZ)


def embedding_centres_hz() -> FloatArray:
    """Return the centres of the embedding's bands, (64,), hertz: midway in mel between its two."""
    mels = hz_to_mel(MASK_CENTRES_HZ())
    return mel_to_hz(mels.reshape(EMBEDDING_BANDS, EMBEDDING_FACTOR).mean(axis=1))


def frame_index(time_s: float, hop_s: float, first_s: float = 0.0) -> int:
    """Return the frame whose centre is nearest to ``time_s``; halves go up."""
    return int(np.floor((time_s - first_s) / hop_s + 0.5))


class MaskWriter:
    """Writes a foreground mask as it grows, each probability in one byte. A context manager.

    An error inside the ``with`` block removes the file.
    """

    def __init__(self, path: Path) -> None:
        meta = {
            "kind": _MASK_KIND,
            "hop_s": MASK_HOP_S,
            "centres_hz": MASK_CENTRES_HZ().round(3).tolist(),
            "value": f"probability * {_MASK_LEVELS}",
        }
        self._writer = FrameWriter(path, meta, (MASK_BANDS,), "|u1", _MASK_BLOCK_FRAMES)

    @property
    def n_frames(self) -> int:
        """Frames appended so far."""
        return self._writer.n_frames

    def append(self, probabilities: Float32Array) -> None:
        """Add frames (128, T) in [0, 1]; they are rounded to multiples of 1/255."""
        levels = np.rint(np.clip(probabilities, 0.0, 1.0) * _MASK_LEVELS)
        self._writer.append(levels.astype(np.uint8))

    def close(self) -> None:
        """Complete the file.

        Raises:
            DiskFull: if it cannot grow; ``append`` raises it too.
        """
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.__exit__(kind, error, trace)


class MaskReader:
    """Reads any part of a foreground mask. A context manager."""

    def __init__(self, path: Path) -> None:
        """Open a file by ``MaskWriter``.

        Raises:
            ArtifactInvalid: here and when reading, if the file is damaged or no mask.
        """
        self._reader = FrameReader(path, _MASK_KIND)
        self.n_frames = self._reader.n_frames
        self.hop_s = MASK_HOP_S
        self.centres_hz = MASK_CENTRES_HZ()
        if self._reader.leading != (MASK_BANDS,):
            self.close()
            raise ArtifactInvalid(f"{path.name} is not a mask of {MASK_BANDS} bands")

    def frames(self, start: int, stop: int) -> Float32Array:
        """Return frames ``start`` to ``stop`` (exclusive), (128, T) in [0, 1]; zeros outside."""
        return self._reader.frames(start, stop).astype(np.float32) / np.float32(_MASK_LEVELS)

    def read(self, start_s: float, stop_s: float) -> Float32Array:
        """Return the frames centred from ``start_s`` on and before ``stop_s``: (128, T) in [0, 1].

        Both times go to the nearest frame, so that adjoining reads adjoin. Zeros outside.
        """
        return self.frames(frame_index(start_s, MASK_HOP_S), frame_index(stop_s, MASK_HOP_S))

    def on_grid(
        self, start_s: float, n_frames: int, hop_s: float, freqs_hz: npt.ArrayLike
    ) -> Float32Array:
        """Return the mask on another grid, linearly interpolated in time and mel.

        Args:
            start_s: centre of the first frame wanted.
            n_frames: how many frames.
            hop_s: distance of their centres.
            freqs_hz: (N,) centres of the bands wanted; the outermost bands hold beyond the ends,
                as the first and last frames do.

        Returns:
            (N, n_frames) in [0, 1].
        """
        times_s = start_s + hop_s * np.arange(n_frames, dtype=np.float64)
        window = _TimeWindow(times_s, MASK_HOP_S, 0.0, self.n_frames)
        coarse = self.frames(window.start, window.stop)
        return interpolate_bands(window.interpolate(coarse), self.centres_hz, freqs_hz)

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EmbeddingWriter:
    """Writes the embedding per bin at half the mask's resolution, each value in one signed byte.

    A context manager. An error inside the ``with`` block removes the file.
    """

    def __init__(
        self,
        path: Path,
        labels: tuple[str, ...],
        vectors: Float32Array,
        biases: Float32Array,
        limit: float = 1.0,
    ) -> None:
        """Start the file.

        Args:
            labels: the K classes.
            vectors: (K, D) class vectors.
            biases: (K,).
            limit: values are stored in [-limit, limit]; what lies outside is clipped.
        """
        if vectors.ndim != 2 or len(labels) != len(vectors) or biases.shape != (len(labels),):
            raise ValueError(f"{len(labels)} labels, vectors {vectors.shape}, {biases.shape}")
        meta = {
            "kind": _EMBEDDING_KIND,
            "hop_s": EMBEDDING_HOP_S,
            "first_s": EMBEDDING_FIRST_S,
            "centres_hz": embedding_centres_hz().round(3).tolist(),
            "labels": list(labels),
            "vectors": [[float(x) for x in row] for row in vectors],
            "biases": [float(x) for x in biases],
            "scale": limit / _EMBEDDING_LEVELS,
            "value": "embedding / scale; class logit = vector . embedding + bias",
        }
        self._scale = np.float32(limit / _EMBEDDING_LEVELS)
        leading = (vectors.shape[1], EMBEDDING_BANDS)
        block_frames = _MASK_BLOCK_FRAMES // EMBEDDING_FACTOR
        self._writer = FrameWriter(path, meta, leading, "|i1", block_frames)

    def append(self, embedding: Float32Array) -> None:
        """Add frames (D, 64, T)."""
        levels = np.rint(embedding / self._scale)
        bounded = np.clip(levels, -_EMBEDDING_LEVELS, _EMBEDDING_LEVELS)
        self._writer.append(bounded.astype(np.int8))

    def close(self) -> None:
        """Complete the file.

        Raises:
            DiskFull: if it cannot grow; ``append`` raises it too.
        """
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.__exit__(kind, error, trace)


class EmbeddingReader:
    """Reads any part of an embedding and the class masks it gives. A context manager."""

    def __init__(self, path: Path) -> None:
        """Open a file by ``EmbeddingWriter``.

        Raises:
            ArtifactInvalid: here and when reading, if the file is damaged or no embedding.
        """
        self._reader = FrameReader(path, _EMBEDDING_KIND)
        self.n_frames = self._reader.n_frames
        self.hop_s = EMBEDDING_HOP_S
        self.centres_hz = embedding_centres_hz()
        meta = self._reader.meta
        try:
            self.labels = tuple(str(label) for label in meta["labels"])
            self.vectors = np.asarray(meta["vectors"], np.float32)  # (K, D)
            self.biases = np.asarray(meta["biases"], np.float32)  # (K,)
            self._scale = np.float32(meta["scale"])
            wanted = (len(self.labels), self._reader.leading[0])
            fits = self.vectors.shape == wanted and self.biases.shape == wanted[:1]
            if not fits or self._reader.leading[1:] != (EMBEDDING_BANDS,):
                raise ArtifactInvalid(f"the class vectors of {path.name} do not fit its embedding")
        except (KeyError, IndexError, TypeError, ValueError) as error:
            self.close()
            raise ArtifactInvalid(f"{path.name} has no valid class vectors: {error}") from error
        except ArtifactInvalid:
            self.close()
            raise

    def frames(self, start: int, stop: int) -> Float32Array:
        """Return frames ``start`` to ``stop`` (exclusive), (D, 64, T); zeros outside."""
        return self._reader.frames(start, stop).astype(np.float32) * self._scale

    def class_mask(self, label: str, start_s: float, stop_s: float) -> Float32Array:
        """Return the probability of a class, (64, T) in [0, 1], 25 frames a second.

        Both times go to the nearest frame, so that adjoining reads adjoin. Zeros outside.

        Raises:
            KeyError: if the embedding knows no such label.
        """
        start = frame_index(start_s, EMBEDDING_HOP_S, EMBEDDING_FIRST_S)
        stop = frame_index(stop_s, EMBEDDING_HOP_S, EMBEDDING_FIRST_S)
        return self._class_frames(label, start, stop)

    def class_on_grid(
        self, label: str, start_s: float, n_frames: int, hop_s: float, freqs_hz: npt.ArrayLike
    ) -> Float32Array:
        """Return the probability of a class on another grid; see ``MaskReader.on_grid``."""
        times_s = start_s + hop_s * np.arange(n_frames, dtype=np.float64)
        window = _TimeWindow(times_s, EMBEDDING_HOP_S, EMBEDDING_FIRST_S, self.n_frames)
        coarse = self._class_frames(label, window.start, window.stop)
        return interpolate_bands(window.interpolate(coarse), self.centres_hz, freqs_hz)

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _class_frames(self, label: str, start: int, stop: int) -> Float32Array:
        if label not in self.labels:
            raise KeyError(label)
        k = self.labels.index(label)
        logits = np.tensordot(self.vectors[k], self.frames(start, stop), axes=1) + self.biases[k]
        probability = 1.0 / (1.0 + np.exp(-logits))
        index = np.arange(start, stop)
        probability[:, (index < 0) | (index >= self.n_frames)] = 0.0
        return np.asarray(probability, np.float32)


class _TimeWindow:
    """Which stored frames surround the given times, and how to interpolate between them."""

    def __init__(
        self, times_s: npt.NDArray[np.floating[Any]], hop_s: float, first_s: float, n_frames: int
    ) -> None:
        position = np.clip((times_s - first_s) / hop_s, 0.0, max(0, n_frames - 1))
        self._left = np.floor(position).astype(np.int64)
        self._share = (position - self._left).astype(np.float32)
        self.start = int(self._left[0]) if len(position) else 0
        self.stop = min(int(self._left[-1]) + 2, n_frames) if len(position) else 0

    def interpolate(self, frames: Float32Array) -> Float32Array:
        """Return (F, len(times)) from stored frames ``start`` to ``stop``, (F, T)."""
        if frames.shape[1] == 0:
            return np.zeros((frames.shape[0], len(self._left)), np.float32)
        left = self._left - self.start
        right = np.minimum(left + 1, frames.shape[1] - 1)
        mixed = frames[:, left] * (1.0 - self._share) + frames[:, right] * self._share
        return np.asarray(mixed, np.float32)


def interpolate_bands(
    values: Float32Array, centres_hz: FloatArray, freqs_hz: npt.ArrayLike
) -> Float32Array:
    """Return ``values`` (F, T) at other frequencies, (N, T): linear in mel, the ends hold.

    Args:
        values: (F, T).
        centres_hz: (F,) rising.
        freqs_hz: (N,).
    """
    centres = hz_to_mel(centres_hz)
    wanted = np.clip(hz_to_mel(freqs_hz), centres[0], centres[-1])
    left = np.clip(np.searchsorted(centres, wanted, side="right") - 1, 0, len(centres) - 2)
    exact = (wanted - centres[left]) / (centres[left + 1] - centres[left])
    share = exact.astype(np.float32)[:, None]
    return np.asarray(values[left] * (1.0 - share) + values[left + 1] * share, np.float32)
