"""Listening: recordings in, what was heard in each out, as scores along time; in bounded memory.

Windows of 5.12 s are scored together, whichever recordings they are of: short recordings fill a
batch as a long one does. The logits of neighbouring windows are faded over where they overlap. What
is kept per second of audio is half a kilobyte of scores. Leaves out what follows from the scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.audio import AudioLimits, AudioReader, resample_blocks
from common.chunking import CrossFader, chunks
from common.masks import MaskReader
from common.settings import get_settings
from common.stage_io import AudioFacts, StageInput, together
from common.vectors import VectorWriter
from services.classifier.config import OVERLAP_SEGMENTS, SILENCE_PEAK, WINDOW_SEGMENTS, Config
from services.classifier.foreground import mask_cells
from services.classifier.model import Classifier

Array = np.ndarray[Any, np.dtype[np.float32]]

CPU_BATCH_WINDOWS = 16
CUDA_BATCH_WINDOWS = 64
BLOCK_S = 5.0
SILENT_LOGIT = -20.0


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier ready to listen. ``digest`` names its weights."""

    model: Classifier
    config: Config
    device: str
    digest: str

    @property
    def batch_windows(self) -> int:
        """Windows that are scored together, at most."""
        return CPU_BATCH_WINDOWS if self.device == "cpu" else CUDA_BATCH_WINDOWS

    @torch.inference_mode()
    def vector_width(self) -> int:
        """Return how many features a segment has."""
        silence = torch.zeros(1, self.config.segment_samples, device=self.device)
        return int(self.model(self.model.features(silence)).embedding.shape[1])


@dataclass(frozen=True)
class Heard:
    """Scores of a recording: ``segments`` (K, T) logits, ``tags`` (K,) in [0, 1].

    A tag is as probable as in the window where it is most so; ``windows`` (W, K) are all of them.
    """

    segments: np.ndarray[Any, np.dtype[np.float16]]
    tags: Array
    windows: np.ndarray[Any, np.dtype[np.float16]]
    facts: AudioFacts
    batch_size: int


@dataclass(frozen=True, eq=False)
class Window:
    """A part of a recording to be scored: ``audio`` (n,), ``cells`` (f, t) of the mask."""

    listener: Listener
    start: int  # in segments
    n_segments: int
    audio: Array
    cells: Array | None


@dataclass(frozen=True)
class WindowScores:
    """Of one window: probabilities (K,), logits (K, t), and features (D, t) where asked for."""

    tags: Array
    segments: Array
    vectors: Array | None
    batch_size: int  # windows that were scored together


class Listener:
    """One recording being listened to: cut into windows, their scores joined as they come.

    What goes wrong with it is noted in ``error`` and ends it; nothing is raised.
    """

    def __init__(
        self,
        loaded: LoadedClassifier,
        item: StageInput,
        mask_path: Path | None,
        vectors_path: Path | None = None,
    ) -> None:
        """The mask weights what is listened to; ``vectors_path`` is where features go."""
        self.loaded, self.item = loaded, item
        self.mask_path, self.vectors_path = mask_path, vectors_path
        self.error: Exception | None = None
        self._facts: AudioFacts | None = None  # known once all is cut
        self._n_waiting = 0  # windows cut and not taken back
        self._batch_size = 1
        self._tags = np.zeros(len(loaded.config.labels), np.float32)
        self._windows: list[np.ndarray[Any, np.dtype[np.float16]]] = []
        self._fader, self._vector_fader = CrossFader(), CrossFader()
        self._parts: list[np.ndarray[Any, np.dtype[np.float16]]] = []
        self._writer: VectorWriter | None = None

    @property
    def is_over(self) -> bool:
        """Whether all was heard, or an error has ended it."""
        return self.error is not None or (self._facts is not None and self._n_waiting == 0)

    def windows(self) -> Iterator[Window]:
        """Yield the windows, in order; stop at an error."""
        try:
            yield from self.item.phases.timed("decode", self._cut())
        except Exception as error:
            self.error = error

    def take(self, window: Window, scores: WindowScores | Exception) -> None:
        """Take back a window with its scores, in order."""
        self._n_waiting -= 1
        if self.error is not None:
            return
        if isinstance(scores, Exception):
            self.error = scores
            return
        self._batch_size = max(self._batch_size, scores.batch_size)
        self._tags = np.maximum(self._tags, scores.tags)
        self._windows.append(scores.tags.astype(np.float16))
        try:
            with self.item.phases.phase("infer"):
                self._keep(self._fader.add(window.start, scores.segments))
                if scores.vectors is not None:
                    self._store(self._vector_fader.add(window.start, scores.vectors))
        except Exception as error:
            self.error = error

    def heard(self) -> Heard:
        """Return what was heard, and complete the file of features.

        Raises:
            DiskFull: it cannot grow.
        """
        if self._facts is None:
            raise RuntimeError("not all was cut")
        self._keep(self._fader.flush())
        if self._writer is not None:
            self._store(self._vector_fader.flush())
            self._writer.close()
        if not self._parts:  # too few samples to make one at the analysis rate
            silence = np.full((len(self._tags), 1), SILENT_LOGIT, np.float16)
            self._parts.append(silence)
        segments = np.concatenate(self._parts, axis=1)
        windows = np.asarray(self._windows, np.float16).reshape(-1, len(self._tags))
        return Heard(segments, self._tags, windows, self._facts, self._batch_size)

    def _cut(self) -> Iterator[Window]:
        config, limits = self.loaded.config, AudioLimits.from_settings(get_settings())
        segment = config.segment_samples
        if self.vectors_path is not None:
            width = self.loaded.vector_width()
            digest = self.loaded.digest
            self._writer = VectorWriter(self.vectors_path, digest, width, config.segment_s)
        with ExitStack() as stack:
            reader = stack.enter_context(AudioReader(self.item.audio_path, limits))
            mask = None
            if self.mask_path is not None:
                mask = stack.enter_context(MaskReader(self.mask_path))
            blocks = reader.blocks(BLOCK_S)
            mono = (b if len(b) == 1 else b.mean(axis=0, keepdims=True) for b in blocks)
            audio = resample_blocks(mono, reader.info.sample_rate, config.sample_rate)
            for chunk in chunks(audio, WINDOW_SEGMENTS * segment, OVERLAP_SEGMENTS * segment):
                start, n_segments = chunk.start // segment, -(-chunk.audio.shape[1] // segment)
                cells = None if mask is None else mask_cells(mask, start, n_segments, config)
                self._n_waiting += 1
                yield Window(self, start, n_segments, chunk.audio[0], cells)
            self._facts = reader.facts()

    def _keep(self, segments: Array | None) -> None:
        if segments is not None:
            self._parts.append(segments.astype(np.float16))

    def _store(self, vectors: Array | None) -> None:
        if vectors is not None and self._writer is not None:
            self._writer.append(vectors)


def listen(loaded: LoadedClassifier, item: StageInput, mask_path: Path | None) -> Heard:
    """Score a whole recording; the mask, where there is one, weights what is listened to.

    Raises:
        AudioError: the recording is at fault.
        ArtifactInvalid: the mask cannot be read back.
    """
    [listener] = listen_to(loaded, [Listener(loaded, item, mask_path)])
    if listener.error is not None:
        raise listener.error
    return listener.heard()


def listen_to(loaded: LoadedClassifier, listeners: Iterable[Listener]) -> Iterator[Listener]:
    """Score what the listeners cut, in batches; yield each listener as soon as it is over."""
    at_work: list[Listener] = []
    batch: list[Window] = []
    for listener in listeners:
        at_work.append(listener)
        for window in listener.windows():
            batch.append(window)
            if len(batch) == loaded.batch_windows:
                _hear(loaded, batch)
                batch = []
                yield from _over(at_work)
            if listener.error is not None:
                break
        yield from _over(at_work)
    _hear(loaded, batch)
    yield from _over(at_work)


def _over(at_work: list[Listener]) -> Iterator[Listener]:
    """Yield those that are over and take them from the list."""
    for listener in [listener for listener in at_work if listener.is_over]:
        at_work.remove(listener)
        yield listener


def _hear(loaded: LoadedClassifier, batch: Sequence[Window]) -> None:
    """Score windows, those of the same length together, and hand each back."""
    groups: dict[tuple[int, bool], list[Window]] = {}
    for window in batch:
        if window.listener.error is None:
            groups.setdefault((window.n_segments, window.cells is None), []).append(window)
    scores: dict[Window, WindowScores | Exception] = {}
    for group in groups.values():
        scores.update(zip(group, _scored(loaded, group), strict=True))
    for window in batch:
        if window in scores:
            window.listener.take(window, scores[window])


def _scored(loaded: LoadedClassifier, group: list[Window]) -> list[WindowScores | Exception]:
    """Return the scores of windows of one length; what fails together is tried one by one."""
    try:
        with together("infer", Counter(window.listener.item.phases for window in group)):
            return list(_score(loaded, group))
    except (RuntimeError, MemoryError) as error:
        if len(group) == 1:
            return [error]
        return [scores for window in group for scores in _scored(loaded, [window])]


@torch.inference_mode()
def _score(loaded: LoadedClassifier, group: Sequence[Window]) -> list[WindowScores]:
    """Return the scores of windows of one length, all with a mask or all without."""
    config, model = loaded.config, loaded.model
    n_segments, n_labels = group[0].n_segments, len(config.labels)
    samples = np.zeros((len(group), n_segments * config.segment_samples), np.float32)
    for row, window in zip(samples, group, strict=True):
        row[: len(window.audio)] = window.audio
    clip = np.zeros((len(group), n_labels), np.float32)
    segments = np.full((len(group), n_labels, n_segments), SILENT_LOGIT, np.float32)
    vectors = None
    if any(window.listener.vectors_path is not None for window in group):
        vectors = np.zeros((len(group), loaded.vector_width(), n_segments), np.float32)
    loud = np.flatnonzero(np.abs(samples).max(axis=1) >= SILENCE_PEAK)
    if len(loud):
        grids = [cells for b in loud.tolist() if (cells := group[b].cells) is not None]
        masks = torch.from_numpy(np.stack(grids)).to(loaded.device) if grids else None
        waveforms = torch.from_numpy(samples[loud]).to(loaded.device)
        # on a CPU one by one: so the spectrogram stays in the cache
        parts = waveforms.split(1 if loaded.device == "cpu" else len(loud))
        scores = model(torch.cat([model.features(part) for part in parts]), masks)
        clip[loud] = model.probabilities(scores.clip).cpu().numpy()
        segments[loud] = scores.segments.clamp_min(SILENT_LOGIT).cpu().numpy()
        if vectors is not None:
            vectors[loud] = scores.embedding.cpu().numpy()
    return [
        WindowScores(clip[b], segments[b], None if vectors is None else vectors[b], len(loud))
        for b in range(len(group))
    ]
