"""The classifier to beat: statistics of cepstral coefficients and a random forest.

Source: Piczak 2015, "ESC: Dataset for environmental sound classification", section 5 (means and
deviations of MFCC over a clip, random forest); the coefficients of Davis and Mermelstein 1980.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.fft import dct
from sklearn.ensemble import RandomForestClassifier

from common.datasets import Clip, ClipBank
from common.features import LogMel
from services.classifier.config import Config

Array = np.ndarray[Any, Any]

N_MFCC = 20
N_TREES = 500


def cepstral_statistics(bank: ClipBank, clips: Sequence[Clip], config: Config) -> Array:
    """Return (N, 80): means and deviations of 20 coefficients and of their changes."""
    front = LogMel(config.sample_rate, config.n_fft, config.hop_length, config.n_mels)
    rows = []
    for clip in clips:
        with torch.inference_mode():
            logmel = front(torch.from_numpy(bank.waveform(clip))[None])[0].numpy()  # (F, T)
        mfcc = dct(logmel, axis=0, norm="ortho")[:N_MFCC]
        change = np.diff(mfcc, axis=1) if mfcc.shape[1] > 1 else np.zeros_like(mfcc)
        parts = (mfcc.mean(1), mfcc.std(1), change.mean(1), change.std(1))
        rows.append(np.concatenate(parts))
    return np.stack(rows)


def forest_confidence(
    bank: ClipBank, train: Sequence[Clip], test: Sequence[Clip], config: Config, seed: int = 0
) -> Array:
    """Return (N, K) confidences for ``test`` of a forest grown on ``train``."""
    forest = RandomForestClassifier(N_TREES, random_state=seed, n_jobs=1)
    numbers = [config.labels.index(clip.label) for clip in train]
    forest.fit(cepstral_statistics(bank, train, config), numbers)
    confidence = np.zeros((len(test), len(config.labels)))
    confidence[:, forest.classes_] = forest.predict_proba(cepstral_statistics(bank, test, config))
    return confidence
