"""Asking the recogniser whether a stretch of audio holds a label."""

from __future__ import annotations

import numpy as np
import soxr
import torch

from common.features import ANALYSIS_RATE_HZ
from services.restorer.model import Recogniser, heard


def for_analysis(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return (n,) float32 at 32 kHz: the mean of the channels of samples (C, n)."""
    mono = samples.mean(axis=0, dtype=np.float32)
    if sample_rate == ANALYSIS_RATE_HZ or not len(mono):
        return mono
    return np.asarray(soxr.resample(mono, sample_rate, ANALYSIS_RATE_HZ), np.float32)


def probabilities(recogniser: Recogniser, waveform: np.ndarray) -> np.ndarray:
    """Return (K,) how sure the recogniser is that each label sounds somewhere in a waveform.

    A long waveform is heard in equal parts and the surest part counts; a short one is padded with
    zeros.

    Args:
        recogniser: in eval mode.
        waveform: (n,) float32 at 32 kHz, any length.
    """
    config = recogniser.config
    longest = round(config.window_s * ANALYSIS_RATE_HZ)
    shortest = round(config.min_window_s * ANALYSIS_RATE_HZ)
    parts = max(1, -(-len(waveform) // longest))
    size = max(shortest, -(-len(waveform) // parts))
    padded = np.zeros(parts * size, np.float32)
    padded[: len(waveform)] = waveform
    batch = torch.from_numpy(padded.reshape(parts, size)).to(recogniser.classify.weight.device)
    with torch.inference_mode():
        surest = heard(recogniser(recogniser.features(batch))).amax(0)
    return surest.cpu().numpy()
