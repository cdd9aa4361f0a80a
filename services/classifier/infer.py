"""Inference: one recording in, its tags and events out, in bounded memory.

Windows of 5.12 s are scored in batches; the logits of neighbours are faded over where they
overlap, and events are sought in the joined scores of the whole recording. What is kept per
second of audio is half a kilobyte of scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import checkpoint
from common.audio import AudioLimits, AudioReader, resample_blocks
from common.chunking import Chunk, CrossFader, chunks
from common.domain import ArtifactKind, Event
from common.errors import ArtifactInvalid
from common.masks import MASK_BANDS, MASK_HOP_S, MaskReader
from common.params import ClassifyParams
from common.results import Events, Tag, events_json, summary
from common.settings import get_settings
from common.stage_io import AudioFacts, OutputFile, StageInput, StageOutput
from services.classifier.config import (
    DEFAULT_WEIGHTS,
    OVERLAP_SEGMENTS,
    SILENCE_PEAK,
    WINDOW_SEGMENTS,
    Config,
)
from services.classifier.events import Span, find_events, union_of
from services.classifier.model import Classifier, restored

Array = np.ndarray[Any, np.dtype[np.float32]]

BATCH_WINDOWS = 8
BLOCK_S = 5.0
SILENT_LOGIT = -20.0


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier ready to listen. ``digest`` names its weights."""

    model: Classifier
    config: Config
    device: str
    digest: str


@dataclass(frozen=True)
class Heard:
    """Scores of a recording: ``segments`` (K, T) logits, ``tags`` (K,) in [0, 1]."""

    segments: np.ndarray[Any, np.dtype[np.float16]]
    tags: Array
    facts: AudioFacts
    batch_size: int


def load(device: str, weights: Path = DEFAULT_WEIGHTS) -> LoadedClassifier:
    """Return the classifier on "cpu", "cuda" or, with "auto", on a GPU if there is one.

    Raises:
        WeightsInvalid: the file is missing, damaged, or does not fit.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = checkpoint.load(weights)
    model = restored(loaded).requires_grad_(False)
    model.fuse()
    return LoadedClassifier(model.to(device), model.config, device, loaded.digest)


def process(loaded: LoadedClassifier, item: StageInput) -> StageOutput:
    """Classify one recording: writes events.json with events and tags.

    Raises:
        AudioError: the recording is at fault.
        ArtifactInvalid: the mask or the regions cannot be read back.
    """
    params = item.params
    if not isinstance(params, ClassifyParams):
        raise TypeError(f"the classifier got {type(params).__name__}")
    regions = read_regions(item.upstream.get(ArtifactKind.REGIONS))
    heard = listen(loaded, item, item.upstream.get(ArtifactKind.MASK))
    with item.phases.phase("infer"):
        events = events_in(heard, loaded.config, regions, params.threshold)
    order = np.argsort(-heard.tags, kind="stable")
    tags = [
        Tag(loaded.config.labels[k], round(float(heard.tags[k]), 4))
        for k in order[: params.top_k].tolist()
    ]
    found = Events(heard.facts.duration_s, tuple(events), tuple(tags))
    path = item.scratch / "events.json"
    with item.phases.phase("encode"):
        path.write_text(events_json(found))
    return StageOutput(
        files={ArtifactKind.EVENTS: OutputFile(path, "application/json")},
        result=summary(found),
        audio=heard.facts,
        batch_size=heard.batch_size,
    )


def listen(loaded: LoadedClassifier, item: StageInput, mask_path: Path | None) -> Heard:
    """Score a whole recording; the mask, where there is one, weights what is listened to."""
    config, rate = loaded.config, loaded.config.sample_rate
    window = WINDOW_SEGMENTS * config.segment_samples
    overlap = OVERLAP_SEGMENTS * config.segment_samples
    fader, parts = CrossFader(), []
    tags = np.zeros(len(config.labels), np.float32)
    batch_size = 1
    with ExitStack() as stack:
        reader = stack.enter_context(
            AudioReader(item.audio_path, AudioLimits.from_settings(get_settings()))
        )
        mask = None if mask_path is None else stack.enter_context(MaskReader(mask_path))
        mono = (block.mean(axis=0, keepdims=True) for block in reader.blocks(BLOCK_S))
        audio = resample_blocks(mono, reader.info.sample_rate, rate)
        decoded = item.phases.timed("decode", audio)
        for batch in _batches(chunks(decoded, window, overlap), window):
            batch_size = max(batch_size, len(batch))
            with item.phases.phase("infer"):
                clip, segments = _score(loaded, batch, mask)
                tags = np.maximum(tags, clip.max(0))
                for chunk, logits in zip(batch, segments, strict=True):
                    done = fader.add(chunk.start // config.segment_samples, logits)
                    if done is not None:
                        parts.append(done.astype(np.float16))
        facts = reader.facts()
    rest = fader.flush()
    if rest is not None:
        parts.append(rest.astype(np.float16))
    if not parts:  # too few samples to make one at the analysis rate
        parts.append(np.full((len(config.labels), 1), SILENT_LOGIT, np.float16))
    return Heard(np.concatenate(parts, axis=1), tags, facts, batch_size)


def events_in(
    heard: Heard, config: Config, regions: list[Span], threshold: float | None = None
) -> list[Event]:
    """Return the events of every label, by onset. None: the threshold of the weights."""
    events: list[Event] = []
    threshold = config.event_threshold if threshold is None else threshold
    for k, label in enumerate(config.labels):
        logits = heard.segments[k].astype(np.float32) + np.float32(config.segment_shift)
        probabilities = _sigmoid(logits / config.segment_temperature)
        events += find_events(
            probabilities, label, regions, threshold, config.segment_s, heard.facts.duration_s
        )
    return sorted(events, key=lambda event: (event.onset_s, event.offset_s, event.label))


def read_regions(path: Path | None) -> list[Span]:
    """Return the stretches of time that hold foreground, in order, from regions.json.

    Raises:
        ArtifactInvalid: no valid JSON of that form.
    """
    if path is None:
        return []
    try:
        regions = json.loads(path.read_text())["regions"]
        return union_of([(float(r["onset_s"]), float(r["offset_s"])) for r in regions])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactInvalid(f"{path.name} holds no regions: {error}") from error


def _batches(windows: Iterator[Chunk], window: int) -> Iterator[list[Chunk]]:
    """Yield full windows together, up to BATCH_WINDOWS, and a shorter one, the last, alone."""
    while batch := list(islice(windows, BATCH_WINDOWS)):
        short = [batch.pop()] if batch[-1].audio.shape[1] < window else []
        yield from (group for group in (batch, short) if group)


@torch.inference_mode()
def _score(
    loaded: LoadedClassifier, batch: list[Chunk], mask: MaskReader | None
) -> tuple[Array, Array]:
    """Return probabilities per window (B, K) and logits per segment (B, K, t)."""
    config = loaded.config
    samples = np.stack([chunk.audio[0] for chunk in batch])  # (B, n)
    n_segments = -(-samples.shape[1] // config.segment_samples)
    clip = np.zeros((len(batch), len(config.labels)), np.float32)
    segments = np.full((*clip.shape, n_segments), SILENT_LOGIT, np.float32)
    loud = np.flatnonzero(np.abs(samples).max(axis=1) >= SILENCE_PEAK)
    if len(loud) == 0:
        return clip, segments
    cells = None
    if mask is not None:
        starts = [batch[b].start // config.segment_samples for b in loud.tolist()]
        grids = [mask_cells(mask, start, n_segments, config) for start in starts]
        cells = torch.from_numpy(np.stack(grids)).to(loaded.device)
    logmel = loaded.model.features(torch.from_numpy(samples[loud]).to(loaded.device))
    scores = loaded.model(logmel, cells)
    clip[loud] = loaded.model.probabilities(scores.clip).cpu().numpy()
    segments[loud] = scores.segments.clamp_min(SILENT_LOGIT).cpu().numpy()
    return clip, segments


def mask_cells(mask: MaskReader, start: int, n_segments: int, config: Config) -> Array:
    """Return the mask averaged over cells, (f, t), for ``n_segments`` from segment ``start``."""
    per_segment = round(config.segment_s / MASK_HOP_S)
    frames = mask.frames(start * per_segment, (start + n_segments) * per_segment)
    bands = config.mask_bands
    grid = frames.reshape(bands, MASK_BANDS // bands, n_segments, per_segment)
    cells: Array = grid.mean(axis=(1, 3))
    return cells


def _sigmoid(logits: Array) -> Array:
    result: Array = 1.0 / (1.0 + np.exp(-logits))
    return result
