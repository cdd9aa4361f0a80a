"""Processor time of the whole ``process``: decoding, features, mask, network, writing."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from common.datasets import Clip, ClipBank
from common.domain import ArtifactKind
from common.masks import MASK_BANDS, MASK_HOP_S, MaskWriter
from common.params import ClassifyParams
from common.stage_io import StageInput
from services.classifier.evaluation.predictions import Array
from services.classifier.infer import process
from services.classifier.listening import LoadedClassifier

SHORT_S = 5
LONG_S = 600
SHORT_ROUNDS = 15
LONG_ROUNDS = 3


@dataclass(frozen=True)
class Speed:
    """Processor time of ``process`` on one core: median, and divided by the audio's length."""

    what: str
    seconds: float
    rtf: float


def time_process(
    loaded: LoadedClassifier, what: str, waveform: Array, rate_hz: int, suffix: str, rounds: int
) -> Speed:
    """Return how long ``process`` takes for samples (n,) or (n, C), mask and encoding included."""
    duration_s = len(waveform) / rate_hz
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        audio, mask = scratch / f"in{suffix}", scratch / "mask.npz"
        soundfile.write(audio, waveform, rate_hz)
        noise = np.random.default_rng(0).random((MASK_BANDS, round(duration_s / MASK_HOP_S) + 1))
        with MaskWriter(mask) as writer:
            writer.append(noise.astype(np.float32))
        times_s = []
        for _ in range(rounds):
            upstream = {ArtifactKind.MASK: mask}
            item = StageInput("timing", audio, ClassifyParams(), upstream, scratch)
            started_s = time.process_time()
            process(loaded, item)
            times_s.append(time.process_time() - started_s)
    seconds = float(np.median(times_s))
    return Speed(what, seconds, seconds / duration_s)


def measure_speed(loaded: LoadedClassifier, bank: ClipBank, clips: Sequence[Clip]) -> list[Speed]:
    """Return the speed for a short mono clip and for ten minutes of stereo."""
    minute = np.concatenate([bank.waveform(clip) for clip in clips[:12]])
    short = soxr.resample(np.resize(minute, SHORT_S * bank.sample_rate), bank.sample_rate, 44_100)
    stereo = soxr.resample(np.resize(minute, LONG_S * bank.sample_rate), bank.sample_rate, 48_000)
    both = np.stack([stereo, stereo[::-1]], axis=1)
    rounds = SHORT_ROUNDS
    return [
        time_process(loaded, "5 s, mono, 44.1 kHz, Ogg Vorbis", short, 44_100, ".ogg", rounds),
        time_process(loaded, "5 s, mono, 44.1 kHz, WAV", short, 44_100, ".wav", rounds),
        time_process(loaded, "10 min, stereo, 48 kHz, FLAC", both, 48_000, ".flac", LONG_ROUNDS),
    ]
