"""Which windows of a recording are explained, and their audio, as heard and as recorded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.audio import AudioLimits, AudioReader, resample_blocks
from common.chunking import chunks
from common.domain import ArtifactKind
from common.masks import MaskReader
from common.settings import get_settings
from common.stage_io import StageInput
from services.classifier.config import OVERLAP_SEGMENTS, WINDOW_SEGMENTS, Config
from services.classifier.explain.question import FloatArray
from services.classifier.foreground import mask_cells
from services.classifier.listening import BLOCK_S

WORTH_SHARE = 0.5
"""A window beside the best one is explained only where it is at least this share as confident."""


@dataclass(frozen=True)
class Extract:
    """A window of a recording, channels averaged.

    ``heard`` (n,) at the analysis rate, ``recorded`` (m,) at the recording's, ``cells`` (f, t) of
    the foreground mask, None where there is none.
    """

    start_s: float
    stop_s: float
    heard: FloatArray
    recorded: FloatArray
    recorded_rate: int
    cells: FloatArray | None


def best_windows(confidences: npt.NDArray[np.floating[npt.NBitBase]], count: int) -> list[int]:
    """Return the numbers of at most ``count`` windows, the most confident first.

    Args:
        confidences: (W,) of one label in the windows of a recording, in [0, 1]. Neighbours overlap,
            so only one of them is taken; those that heard nothing (0) are not.
        count: at least 1.
    """
    chosen: list[int] = []
    for number in np.argsort(-confidences, kind="stable").tolist():
        confidence = confidences[number]
        if confidence <= 0.0 or len(chosen) == count:
            break
        if chosen and confidence < WORTH_SHARE * confidences[chosen[0]]:
            break
        if all(abs(number - other) > 1 for other in chosen):
            chosen.append(number)
    return chosen


def read_windows(item: StageInput, config: Config, numbers: Iterable[int]) -> dict[int, Extract]:
    """Return some windows of a recording, cut as inference cuts them.

    Memory is that of these windows and of the block that is being decoded.

    Raises:
        AudioError: the recording is at fault.
        ArtifactInvalid: the mask cannot be read back.
    """
    wanted = sorted(set(numbers))
    if not wanted:
        return {}
    segment, rate = config.segment_samples, config.sample_rate
    window, overlap = WINDOW_SEGMENTS * segment, OVERLAP_SEGMENTS * segment
    hop = window - overlap
    found: dict[int, Extract] = {}
    with ExitStack() as stack:
        limits = AudioLimits.from_settings(get_settings())
        reader = stack.enter_context(AudioReader(item.audio_path, limits))
        mask_path = item.upstream.get(ArtifactKind.MASK)
        mask = None if mask_path is None else stack.enter_context(MaskReader(mask_path))
        recorded_rate = reader.info.sample_rate
        spans = [
            (n * hop * recorded_rate // rate, (n * hop + window) * recorded_rate // rate)
            for n in wanted
        ]
        kept: list[list[FloatArray]] = [[] for _ in wanted]
        mono = (block.mean(axis=0, keepdims=True) for block in reader.blocks(BLOCK_S))
        audio = resample_blocks(_keeping(mono, spans, kept), recorded_rate, rate)
        for number, chunk in enumerate(item.phases.timed("decode", chunks(audio, window, overlap))):
            if number in wanted:
                n_segments = -(-chunk.audio.shape[1] // segment)
                first = chunk.start // segment
                found[number] = Extract(
                    start_s=chunk.start / rate,
                    stop_s=(chunk.start + chunk.audio.shape[1]) / rate,
                    heard=chunk.audio[0],
                    recorded=np.concatenate(kept[wanted.index(number)]),
                    recorded_rate=recorded_rate,
                    cells=None if mask is None else mask_cells(mask, first, n_segments, config),
                )
            if number == wanted[-1]:
                break
    return found


def _keeping(
    blocks: Iterable[FloatArray], spans: Sequence[tuple[int, int]], kept: list[list[FloatArray]]
) -> Iterator[FloatArray]:
    """Yield blocks (1, n); what of them lies in a span is copied to that span's list."""
    start = 0
    for block in blocks:
        stop = start + block.shape[1]
        for (low, high), parts in zip(spans, kept, strict=True):
            if low < stop and high > start:
                parts.append(block[0, max(low - start, 0) : high - start].copy())
        yield block
        start = stop
