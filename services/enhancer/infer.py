"""Serving of the enhancer: one recording in, its clean and, where it was narrow, wide version out.

Streams: memory does not grow with the length of the recording. Never imports training code.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common import checkpoint
from common.audio import AudioLimits, AudioReader, AudioWriter
from common.domain import ArtifactKind
from common.errors import OutOfMemory, ParametersInvalid, WeightsInvalid
from common.features import LogMel
from common.masks import MaskReader
from common.params import EnhanceParams
from common.settings import get_settings
from common.stage_io import OutputFile, StageInput, StageOutput, each
from services.enhancer.config import (
    ANALYSIS_HOP,
    ANALYSIS_N_FFT,
    ANALYSIS_RATE_HZ,
    N_BANDS,
    WEIGHTS,
    DenoiserConfig,
    GeneratorConfig,
    widened_rate,
)
from services.enhancer.model import Denoiser, Generator
from services.enhancer.suppress import Suppressor
from services.enhancer.widen import Widener

BLOCK_S = 5.0
DENOISER_FILE = "denoiser.safetensors"
GENERATOR_FILES = {"l1": "generator_l1.safetensors", "gan": "generator_gan.safetensors"}


@dataclass(frozen=True)
class LoadedEnhancer:
    """Both models in eval mode. ``digest`` is of all weights files together."""

    denoiser: Denoiser
    front_end: LogMel
    generators: dict[str, Generator]
    device: str
    digest: str


def load(device: str, weights: Path = WEIGHTS) -> LoadedEnhancer:
    """Load the models from the weights files in a folder.

    Args:
        device: "cpu", "cuda", or "auto".
        weights: folder of the denoiser's and both generators' files.

    Raises:
        WeightsInvalid: a file is missing, damaged or does not fit its config.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    digests = []
    denoiser_file = checkpoint.load(weights / DENOISER_FILE)
    denoiser = Denoiser(_config(DenoiserConfig, denoiser_file))
    checkpoint.restore(denoiser, denoiser_file)
    digests.append(denoiser_file.digest)
    generators = {}
    for name, file in GENERATOR_FILES.items():
        generator_file = checkpoint.load(weights / file)
        generator = Generator(_config(GeneratorConfig, generator_file))
        checkpoint.restore(generator, generator_file)
        digests.append(generator_file.digest)
        # faster on processors; the values are the same
        generator = generator.to(device, memory_format=torch.channels_last).eval()
        generators[name] = generator.requires_grad_(False)
    front_end = LogMel(ANALYSIS_RATE_HZ, ANALYSIS_N_FFT, ANALYSIS_HOP, N_BANDS).to(device)
    return LoadedEnhancer(
        denoiser=denoiser.to(device).eval().requires_grad_(False),
        front_end=front_end,
        generators=generators,
        device=device,
        digest=hashlib.sha256("".join(digests).encode()).hexdigest(),
    )


def _config(kind: Any, file: checkpoint.Checkpoint) -> Any:
    try:
        config = {k: tuple(v) if isinstance(v, list) else v for k, v in file.config.items()}
        return kind(**config)
    except TypeError as error:
        raise WeightsInvalid(f"the config in the weights file does not fit: {error}") from error


def process(loaded: LoadedEnhancer, item: StageInput) -> StageOutput:
    """Enhance one recording.

    Noise is suppressed at the native rate; then recordings of 8 to 24 kHz are widened. Length,
    channels and level stay; without widening the rate stays too.

    Raises:
        AudioError: the recording cannot be decoded.
        ParametersInvalid: parameters of another stage.
        DiskFull, OutOfMemory: as they say.
    """
    try:
        return _process(loaded, item)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory("the device has no memory left") from error
    except MemoryError as error:
        raise OutOfMemory("the host has no memory left") from error


process_shard = each(process)


def _process(loaded: LoadedEnhancer, item: StageInput) -> StageOutput:
    params = item.params
    if not isinstance(params, EnhanceParams):
        raise ParametersInvalid("these are not the parameters of enhancement")
    with ExitStack() as stack:
        limits = AudioLimits.from_settings(get_settings())
        reader = stack.enter_context(AudioReader(item.audio_path, limits))
        rate_in, channels = reader.info.sample_rate, reader.info.channels
        rate_out = widened_rate(rate_in) if params.widen else None

        stream = item.phases.timed("decode", reader.blocks(BLOCK_S))
        suppressor = None
        if params.denoise:
            mask_path = item.upstream.get(ArtifactKind.MASK)
            mask = None if mask_path is None else stack.enter_context(MaskReader(mask_path))
            suppressor = Suppressor(
                loaded.denoiser,
                loaded.front_end,
                loaded.device,
                rate_in,
                channels,
                params.gain_floor_db,
                mask,
            )
            stream = suppressor.process(stream)
        if rate_out is not None:
            generator = loaded.generators[params.generator]
            stream = Widener(generator, loaded.device, rate_in, rate_out).process(stream)

        writer = AudioWriter(item.scratch, "enhanced", rate_out or rate_in, channels)
        stack.enter_context(writer)
        for block in item.phases.timed("infer", stream):
            with item.phases.phase("encode"):
                writer.write(block)
        with item.phases.phase("encode"):
            writer.close()
    # decoding happens while the models wait for it
    _subtract(item.phases.seconds, "infer", "decode")
    output = OutputFile(writer.path, writer.media_type)
    return StageOutput(
        files={ArtifactKind.ENHANCED: output},
        result={
            "sample_rate_in": rate_in,
            "sample_rate_out": rate_out or rate_in,
            "widened": rate_out is not None,
            "mean_gain_db": round(suppressor.mean_gain_db, 2) if suppressor else 0.0,
            "clipped_values": writer.clipped_values,
        },
        audio=reader.facts(),
    )


def _subtract(seconds: dict[str, float], outer: str, inner: str) -> None:
    seconds[outer] = max(0.0, seconds.get(outer, 0.0) - seconds.get(inner, 0.0))
