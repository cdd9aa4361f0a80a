"""Segments one recording, chunk by chunk: a mask, an embedding and regions on disk.

One mask for all channels, from their mean, at the analysis rate. Memory is bounded whatever the
duration. Digital silence is never given to the model: its mask is exactly 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import special
from torch import Tensor

from common import checkpoint
from common.audio import AudioLimits, AudioReader
from common.chunking import Chunk, CrossFader, chunks
from common.domain import ArtifactKind
from common.features import ANALYSIS_RATE_HZ, LOG_FLOOR, LogMel
from common.masks import EmbeddingWriter, MaskWriter
from common.params import SegmentParams
from common.resample import resample_blocks
from common.settings import get_settings
from common.stage_io import OutputFile, StageInput, StageOutput, each
from services.segmenter.config import (
    CHUNK_FRAMES,
    CHUNK_SAMPLES,
    FRAME_MULTIPLE,
    HOP_SAMPLES,
    OVERLAP_SAMPLES,
    SHUFFLE,
    TRIM_FRAMES,
    SegmenterConfig,
)
from services.segmenter.model import Segmenter, front_end
from services.segmenter.regions import RegionFinder

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "segmenter.safetensors"

SILENT_LOGIT = -30.0  # rounds to probability 0 in the file
_SILENT_FEATURE = float(np.log(LOG_FLOOR)) + 1e-4
_CUDA_BATCH = 8

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LoadedSegmenter:
    """The model in eval mode, its normalisations folded, and what it needs."""

    model: Segmenter
    front_end: LogMel
    config: SegmenterConfig
    device: str
    digest: str
    silence: Float32Array  # (D, f) the embedding of a recording without sound
    batch_size: int


@dataclass(frozen=True)
class Piece:
    """Finished frames. Embedding frames come at half the rate."""

    mask: Float32Array  # (F, T) in [0, 1]
    embedding: Float32Array  # (D, f, t) in [-1, 1]


def load(device: str, weights: Path = DEFAULT_WEIGHTS) -> LoadedSegmenter:
    """Load the segmenter.

    Args:
        device: "cpu", "cuda" or "auto".
        weights: a file by ``services.segmenter.train``.

    Raises:
        WeightsInvalid: missing, damaged, or not of this model.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    stored = checkpoint.load(weights)
    config = SegmenterConfig.from_json(stored.config)
    model = Segmenter(config)
    checkpoint.restore(model, stored)
    model.eval().requires_grad_(False)
    model.fuse()
    model.to(device, memory_format=torch.channels_last)
    features = front_end().to(device)
    with torch.inference_mode():
        nothing = features(torch.zeros(1, 4 * FRAME_MULTIPLE * HOP_SAMPLES, device=device))
        silence = model(nothing).embedding[0].float().mean(-1).cpu().numpy()
    batch_size = 1 if device == "cpu" else _CUDA_BATCH
    return LoadedSegmenter(model, features, config, device, stored.digest, silence, batch_size)


def process(loaded: LoadedSegmenter, item: StageInput) -> StageOutput:
    """Write mask, embedding and regions of one recording into ``item.scratch``.

    Raises:
        AudioError: the recording cannot be decoded; see ``common.errors`` for which.
        DiskFull: no space in the scratch folder.
    """
    params = item.params if isinstance(item.params, SegmentParams) else SegmentParams()
    mask_path, embedding_path = item.scratch / "mask.npz", item.scratch / "embedding.npz"
    weights = loaded.model.class_weights()
    vectors, biases = weights.vectors.cpu().numpy(), weights.biases.cpu().numpy()
    finder = RegionFinder(params)
    mask_sum = 0.0
    with (
        AudioReader(item.audio_path, AudioLimits.from_settings(get_settings())) as reader,
        MaskWriter(mask_path) as mask_writer,
        EmbeddingWriter(embedding_path, loaded.config.labels, vectors, biases) as embedding_writer,
    ):
        mono = (block.mean(axis=0, keepdims=True) for block in reader.blocks())
        resampled = resample_blocks(mono, reader.info.sample_rate, ANALYSIS_RATE_HZ)
        windows = item.phases.timed("decode", windows_of(resampled))
        for piece in item.phases.timed("infer", segment(loaded, windows)):
            with item.phases.phase("encode"):
                mask_writer.append(piece.mask)
                embedding_writer.append(piece.embedding)
                finder.add(piece.mask)
                mask_sum += float(piece.mask.mean(axis=0).sum())
        n_frames = mask_writer.n_frames
        facts = reader.facts()
    # decoding happens while inference waits for it
    seconds = item.phases.seconds
    seconds["infer"] = max(0.0, seconds.get("infer", 0.0) - seconds.get("decode", 0.0))
    regions = finder.finish(facts.duration_s)
    regions_path = item.scratch / "regions.json"
    with item.phases.phase("encode"):
        content = {"version": 1, "regions": [asdict(region) for region in regions]}
        regions_path.write_text(json.dumps(content))
    return StageOutput(
        files={
            ArtifactKind.MASK: OutputFile(mask_path, "application/zip"),
            ArtifactKind.EMBEDDING: OutputFile(embedding_path, "application/zip"),
            ArtifactKind.REGIONS: OutputFile(regions_path, "application/json"),
        },
        result={"regions": len(regions), "density": round(mask_sum / max(1, n_frames), 4)},
        audio=facts,
        batch_size=loaded.batch_size,
    )


process_shard = each(process)


def windows_of(blocks: Iterable[Float32Array]) -> Iterator[Chunk]:
    """Yield the chunks that ``segment`` takes, from mono blocks (1, n) at the analysis rate."""
    return chunks(blocks, CHUNK_SAMPLES, OVERLAP_SAMPLES)


def segment(loaded: LoadedSegmenter, windows: Iterable[Chunk]) -> Iterator[Piece]:
    """Yield the mask and embedding of a recording, in order, without gap or overlap.

    Together the pieces have samples // hop + 1 frames, and half as many (rounded up) of the
    embedding. Neighbouring windows are cross-faded; what lies within ``TRIM_FRAMES`` of an inner
    border is left out first, as the model sees no surroundings there.
    """
    mask_fader, embedding_fader = CrossFader(), CrossFader()
    for group in _grouped(windows, loaded.batch_size):
        for window, logits, embedding in _infer(loaded, group):
            n_frames = logits.shape[1]
            first = 0 if window.is_first else TRIM_FRAMES
            stop = n_frames if window.is_last else n_frames - TRIM_FRAMES
            start = window.start // HOP_SAMPLES + first
            mask = mask_fader.add(start, logits[:, first:stop])
            coarse = slice(first // SHUFFLE, -(-stop // SHUFFLE))
            vectors = embedding_fader.add(start // SHUFFLE, embedding[..., coarse])
            if mask is not None and vectors is not None:
                yield Piece(_sigmoid(mask), vectors)
    mask, vectors = mask_fader.flush(), embedding_fader.flush()
    if mask is not None and vectors is not None:
        yield Piece(_sigmoid(mask), vectors)


@torch.inference_mode()
def features_of(loaded: LoadedSegmenter, waveforms: Float32Array, is_last: bool) -> Tensor:
    """Return features (B, F, T) of waveforms (B, n), T = CHUNK_FRAMES unless it is the last."""
    features = loaded.front_end(torch.from_numpy(waveforms).to(loaded.device))
    return features if is_last else features[..., :CHUNK_FRAMES]


def _infer(
    loaded: LoadedSegmenter, group: list[Chunk]
) -> Iterator[tuple[Chunk, Float32Array, Float32Array]]:
    """Yield each window with its logits (F, T) and embedding (D, f, t)."""
    features = features_of(loaded, np.concatenate([w.audio for w in group]), group[0].is_last)
    silent = (features <= _SILENT_FEATURE).all(dim=1).cpu().numpy()  # (B, T)
    if silent.all():
        logits, embedding = None, None
    else:
        logits, embedding = _run_model(loaded, features)
    n_frames = features.shape[-1]
    n_coarse = -(-n_frames // SHUFFLE)
    for i, window in enumerate(group):
        if logits is None or embedding is None or silent[i].all():
            nothing = np.full((features.shape[1], n_frames), SILENT_LOGIT, np.float32)
            yield window, nothing, np.repeat(loaded.silence[..., None], n_coarse, axis=-1)
            continue
        logits[i][:, silent[i]] = SILENT_LOGIT
        yield window, logits[i], embedding[i]


@torch.inference_mode()
def _run_model(loaded: LoadedSegmenter, features: Tensor) -> tuple[Float32Array, Float32Array]:
    with torch.autocast("cuda", torch.bfloat16, enabled=loaded.device != "cpu"):
        found = loaded.model(features)
    return found.mask_logits.float().cpu().numpy(), found.embedding.float().cpu().numpy()


def _grouped(windows: Iterable[Chunk], size: int) -> Iterator[list[Chunk]]:
    """Yield windows in groups of up to ``size``; the last window comes alone, it may be shorter."""
    group: list[Chunk] = []
    for window in windows:
        if group and (window.is_last or len(group) == size):
            yield group
            group = []
        group.append(window)
    if group:
        yield group


def _sigmoid(logits: Float32Array) -> Float32Array:
    return np.asarray(special.expit(logits), np.float32)
