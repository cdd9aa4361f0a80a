"""Takes chosen events out of one recording and restores what they covered.

Two passes over the audio: the first lets the recogniser hear every region that the classifier
named; the second restores the confirmed ones and copies everything else. After a window has been
restored the recogniser hears it again, and if the event is still there the window is done once
more with a wider mask. Memory is bounded whatever the duration.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import checkpoint
from common.audio import AudioLimits, AudioReader, AudioWriter
from common.domain import ArtifactKind, Event
from common.errors import ArtifactInvalid, ParametersInvalid, WeightsInvalid
from common.masks import EmbeddingReader, MaskReader
from common.params import RestoreParams
from common.settings import get_settings
from common.stage_io import AudioFacts, OutputFile, StageInput, StageOutput, each
from services.restorer.config import (
    BUFFER_SAMPLES,
    CONTEXT_S,
    INPAINTER_FILE,
    MAX_PASSES,
    RECOGNISER_FILE,
    REGION_MARGIN_S,
    WINDOW_S,
    InpainterConfig,
    RecogniserConfig,
)
from services.restorer.listen import for_analysis, probabilities
from services.restorer.model import Inpainter, Recogniser
from services.restorer.regions import (
    RemovalMask,
    Window,
    plan_windows,
    read_events,
    wanted_regions,
)
from services.restorer.spectrum import Grid
from services.restorer.stream import Change, Tape, WindowRestorer, cut, restore_stream

DEFAULT_WEIGHTS = Path(__file__).parent / "weights"

BLOCK_S = 10.0


@dataclass(frozen=True)
class LoadedRestorer:
    """Both models in eval mode. ``digest`` is the SHA-256 over the digests of both files."""

    recogniser: Recogniser
    inpainter: Inpainter
    device: str
    digest: str


@dataclass(frozen=True)
class Removal:
    """What was done about one region.

    ``confidence`` is the recogniser's. ``action`` is "removed"; "reduced" where the recogniser
    still heard the event after two passes; "kept" where it abstained or no bin belonged to the
    event, so that the band is empty and nothing changed.
    """

    label: str
    onset_s: float
    offset_s: float
    low_hz: float
    high_hz: float
    confidence: float
    action: str


@dataclass(frozen=True)
class _Pass:
    """One pass over a window: what it changes, its mask, and what is heard after it."""

    change: Change
    mask: Tensor
    heard: dict[int, float]

    @property
    def total(self) -> float:
        """The sum of what is heard; lower is better."""
        return sum(self.heard.values())


@dataclass(frozen=True)
class _Sizes:
    """How much of a format is held at once: stretches in seconds."""

    block_s: float
    window_s: float
    context_s: float


def load(device: str, weights: Path = DEFAULT_WEIGHTS) -> LoadedRestorer:
    """Load both models from the folder ``weights``.

    Args:
        device: "cpu", "cuda" or "auto".
        weights: holds ``recogniser.safetensors`` and ``inpainter.safetensors``.

    Raises:
        WeightsInvalid: a file is missing or does not fit its config.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    files = [checkpoint.load(weights / name) for name in (RECOGNISER_FILE, INPAINTER_FILE)]
    try:
        recogniser = Recogniser(RecogniserConfig(**_tuples(files[0].config)))
        inpainter = Inpainter(InpainterConfig(**_tuples(files[1].config)))
    except (TypeError, ValueError) as error:
        raise WeightsInvalid(f"the restorer's config does not fit: {error}") from error
    models: tuple[nn.Module, nn.Module] = (recogniser, inpainter)
    for model, file in zip(models, files, strict=True):
        checkpoint.restore(model, file)
        model.to(device).eval().requires_grad_(False)
    inpainter.to(memory_format=torch.channels_last)  # a quarter less time on a CPU
    digest = hashlib.sha256("".join(file.digest for file in files).encode()).hexdigest()
    return LoadedRestorer(recogniser, inpainter, device, digest)


def process(loaded: LoadedRestorer, item: StageInput) -> StageOutput:
    """Restore one recording.

    Raises:
        ParametersInvalid: the parameters are another stage's.
        ArtifactInvalid: events, mask or embedding are missing or damaged.
        AudioError: the recording cannot be decoded.
        DiskFull: there is no space for the result.
    """
    if not isinstance(item.params, RestoreParams):
        raise ParametersInvalid("the restorer needs restore parameters")
    events = read_events(_upstream(item, ArtifactKind.EVENTS))
    regions = wanted_regions(events, item.params.remove)
    heard = _confirm(loaded, item, regions)
    confirmed = [index for index, (_, sure) in enumerate(heard) if sure]
    with ExitStack() as stack:
        reader = stack.enter_context(_open(item))
        info = reader.info
        grid = Grid(info.sample_rate)
        work: _Work | None = None
        if confirmed:
            mask = RemovalMask(
                stack.enter_context(MaskReader(_upstream(item, ArtifactKind.MASK))),
                stack.enter_context(EmbeddingReader(_upstream(item, ArtifactKind.EMBEDDING))),
                [regions[index] for index in confirmed],
                events,
                grid,
            )
            work = _Work(loaded, item, mask, grid, _sizes(info.sample_rate, info.channels))
        writer = stack.enter_context(
            AudioWriter(item.scratch, "restored", info.sample_rate, info.channels)
        )
        blocks = _blocks(item, reader)
        if work is None:
            for block in blocks:
                _write(item, writer, block)
        else:
            work.run(Tape(blocks, info.channels), writer)
        facts = reader.facts()
        path, media_type = writer.path, writer.media_type
    removals = [
        _removal(region, confidence, facts, work, confirmed.index(index) if sure else None)
        for index, (region, (confidence, sure)) in enumerate(zip(regions, heard, strict=True))
    ]
    report = item.scratch / "removals.json"
    document = {"version": 1, "removals": [asdict(removal) for removal in removals]}
    report.write_text(json.dumps(document), encoding="utf-8")
    kept = sum(removal.action == "kept" for removal in removals)
    return StageOutput(
        files={
            ArtifactKind.RESTORED: OutputFile(path, media_type),
            ArtifactKind.REMOVALS: OutputFile(report, "application/json"),
        },
        result={"removed": len(removals) - kept, "kept": kept},
        audio=facts,
    )


process_shard = each(process)


def _tuples(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config from JSON with its lists as the tuples they were."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in config.items()
    }


def _upstream(item: StageInput, kind: ArtifactKind) -> Path:
    if kind not in item.upstream:
        raise ArtifactInvalid(f"the restorer needs the artifact {kind}")
    return item.upstream[kind]


def _open(item: StageInput) -> AudioReader:
    with item.phases.phase("decode"):
        return AudioReader(item.audio_path, AudioLimits.from_settings(get_settings()))


def _sizes(sample_rate: int, channels: int) -> _Sizes:
    """Return stretches that fit the buffer: full length up to 8 channels at 48 kHz or so."""
    fits_s = BUFFER_SAMPLES / (sample_rate * channels)
    share = min(1.0, fits_s / (WINDOW_S + 2.0 * CONTEXT_S + BLOCK_S))
    return _Sizes(BLOCK_S * share, WINDOW_S * share, max(CONTEXT_S * share, 0.1))


def _blocks(item: StageInput, reader: AudioReader) -> Iterator[np.ndarray]:
    sizes = _sizes(reader.info.sample_rate, reader.info.channels)
    return item.phases.timed("decode", reader.blocks(sizes.block_s))


def _write(item: StageInput, writer: AudioWriter, block: np.ndarray) -> None:
    if block.shape[1]:
        with item.phases.phase("encode"):
            writer.write(block)


def _confirm(
    loaded: LoadedRestorer, item: StageInput, regions: list[Event]
) -> list[tuple[float, bool]]:
    """Return per region how sure the recogniser is of its label, and whether that is enough.

    A long region is heard in parts; its surest part counts.
    """
    if not regions:
        return []
    config = loaded.recogniser.config
    spans: list[tuple[int, int]] = []
    owners: list[int] = []
    confidence = [0.0] * len(regions)
    with _open(item) as reader:
        rate = reader.info.sample_rate
        longest = max(1, round(config.window_s * rate))
        for index, region in enumerate(regions):
            start, stop = _heard_span(region, rate, config.min_window_s)
            parts = max(1, -(-(stop - start) // longest))
            for part in range(parts):
                edges = [start + (stop - start) * (part + step) // parts for step in (0, 1)]
                spans.append((edges[0], edges[1]))
                owners.append(index)
        for which, samples in cut(_blocks(item, reader), spans):
            with item.phases.phase("infer"):
                sure = _hear(loaded, samples, rate, regions[owners[which]].label)
            confidence[owners[which]] = max(confidence[owners[which]], sure)
    return [(value, value >= config.threshold) for value in confidence]


def _heard_span(region: Event, rate: int, min_s: float) -> tuple[int, int]:
    """Return the samples in which to hear a region: its margins, and at least ``min_s``."""
    margin_s = max(REGION_MARGIN_S, (min_s - (region.offset_s - region.onset_s)) / 2.0)
    start = max(0, round((region.onset_s - margin_s) * rate))
    return start, max(start + 1, round((region.offset_s + margin_s) * rate))


def _hear(loaded: LoadedRestorer, samples: np.ndarray, rate: int, label: str) -> float:
    """Return how sure the recogniser is that samples (C, n) hold the label; 0 in silence."""
    labels = loaded.recogniser.config.labels
    if label not in labels or not samples.any():
        return 0.0
    waveform = for_analysis(samples, rate)
    return float(probabilities(loaded.recogniser, waveform)[labels.index(label)])


class _Work:
    """The second pass over one recording: its windows, and what is still heard after them."""

    def __init__(
        self,
        loaded: LoadedRestorer,
        item: StageInput,
        mask: RemovalMask,
        grid: Grid,
        sizes: _Sizes,
    ) -> None:
        self.loaded = loaded
        self.item = item
        self.mask = mask
        self.grid = grid
        self.windows = plan_windows(mask.regions, grid, sizes.window_s)
        context_frames = round(sizes.context_s / grid.hop_s)
        self.restorer = WindowRestorer(grid, loaded.inpainter, context_frames)
        self.still_heard: set[int] = set()
        self._continued = {window.first_frame for window in self.windows if window.adjoins}

    def run(self, tape: Tape, writer: AudioWriter) -> None:
        """Pass a recording through, from its first sample to its last."""

        def change_of(window: Window) -> Change | None:
            with self.item.phases.phase("infer"):
                return self._change(window, tape)

        def write(block: np.ndarray) -> None:
            _write(self.item, writer, block)

        restore_stream(tape, self.windows, self.restorer, change_of, write)

    def _change(self, window: Window, tape: Tape) -> Change | None:
        """Return the change of the pass after which the recogniser is least sure of the events."""
        context = self.restorer.context
        first, stop = window.first_frame - context, window.stop_frame + context
        threshold = self.loaded.recogniser.config.threshold
        best: _Pass | None = None
        widened: frozenset[int] = frozenset()
        for _ in range(MAX_PASSES):
            mask = self.mask.frames(first, stop, widened)
            change = self.restorer.change(window, tape, mask)
            if change is None:
                return None
            heard = self._heard_in(window, tape, change)
            done = _Pass(change, mask, heard)
            best = done if best is None or done.total < best.total else best
            widened = frozenset(index for index, sure in heard.items() if sure >= threshold)
            if not widened:
                break
        if best is None:
            return None
        self.still_heard |= {index for index, sure in best.heard.items() if sure >= threshold}
        self.mask.note(window.first_frame, best.mask[context:-context])
        return best.change

    def _heard_in(self, window: Window, tape: Tape, change: Change) -> dict[int, float]:
        """Return how sure the recogniser is of each region of a window after a change."""
        rate, hop_s = self.grid.sample_rate, self.grid.hop_s
        heard = {}
        for index in self.mask.within(window.first_frame, window.stop_frame):
            region = self.mask.regions[index]
            onset_s = max(region.onset_s, window.first_frame * hop_s)
            offset_s = min(region.offset_s, window.stop_frame * hop_s)
            if offset_s <= onset_s:
                continue
            inside = Event(region.label, onset_s, offset_s, region.confidence)
            start, stop = _heard_span(inside, rate, self.loaded.recogniser.config.min_window_s)
            if window.stop_frame in self._continued:  # what follows is not restored yet
                stop = max(start + 1, min(stop, window.stop_frame * self.grid.hop_length))
            samples = tape.part(start, stop, restored=True)
            low, high = max(start, change.start), min(stop, change.stop)
            samples[:, low - start : high - start] += change.samples[
                :, low - change.start : high - change.start
            ]
            heard[index] = _hear(self.loaded, samples, rate, region.label)
        return heard


def _removal(
    region: Event, confidence: float, facts: AudioFacts, work: _Work | None, index: int | None
) -> Removal:
    """Return the report of one region; ``index`` is its place among the confirmed ones."""
    band = None if work is None or index is None else work.mask.band_hz(index)
    low_hz, high_hz = band or (0.0, 0.0)
    action = "kept" if band is None else "removed"
    if band is not None and work is not None and index in work.still_heard:
        action = "reduced"
    return Removal(
        region.label,
        min(region.onset_s, facts.duration_s),
        min(region.offset_s, facts.duration_s),
        round(low_hz, 1),
        round(high_hz, 1),
        round(confidence, 4),
        action,
    )
