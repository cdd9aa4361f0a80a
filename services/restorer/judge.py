"""An independent ear for the evaluation: MFCC statistics and a random forest.

It shares no features, no architecture and no training code with the recogniser, so that a removal
cannot please it by fooling the recogniser. Trained anew by each evaluation, in under a minute.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.fft import dct
from sklearn.ensemble import RandomForestClassifier

from common.features import ANALYSIS_RATE_HZ, LogMel
from common.labels import LABELS
from services.restorer.data import SoundscapePool, label_levels
from services.restorer.losses import ABSENT_DB

N_MFCC = 20
N_TREES = 300
NONE = len(LABELS)
_LEVEL_DB = 3.0


class Judge:
    """Names the loudest foreground label of a stretch, or says that there is none."""

    def __init__(self, pool: SoundscapePool, n_crops: int, seed: int = 0) -> None:
        """Train on ``n_crops`` stretches of the pool's soundscapes, with events and without."""
        self._log_mel = LogMel(ANALYSIS_RATE_HZ, 1024, 320, 40)
        rng = np.random.default_rng(seed)
        features, answers = [], []
        while len(answers) < n_crops:
            pool.refresh()
            scape = pool.draw()
            for event in scape.events:
                start = max(0, int((event.onset_s - 0.1) * ANALYSIS_RATE_HZ))
                part = slice(start, int((event.offset_s + 0.1) * ANALYSIS_RATE_HZ))
                levels = label_levels(scape.events, scape.mixture, part)
                index = LABELS.index(event.label)
                if levels[index] >= _LEVEL_DB:
                    features.append(self._features(scape.mixture[part]))
                    answers.append(index)
                if rng.random() < 0.2 or levels.max() <= ABSENT_DB:
                    features.append(self._features(scape.background[part]))
                    answers.append(NONE)
        self._forest = RandomForestClassifier(
            N_TREES, class_weight="balanced_subsample", random_state=seed, n_jobs=1
        ).fit(np.stack(features), answers)

    def probability(self, waveform: np.ndarray, label: str) -> float:
        """Return how likely the loudest foreground sound of (n,) at 32 kHz is ``label``."""
        shares = self._forest.predict_proba(self._features(waveform)[None])[0]
        known = list(self._forest.classes_)
        index = LABELS.index(label)
        return float(shares[known.index(index)]) if index in known else 0.0

    def names(self, waveform: np.ndarray) -> str | None:
        """Return the likeliest label, or None for nothing in the foreground."""
        index = int(self._forest.predict(self._features(waveform)[None])[0])
        return None if index == NONE else LABELS[index]

    def _features(self, waveform: np.ndarray) -> np.ndarray:
        log_mel = self._log_mel(torch.from_numpy(waveform)[None])[0].numpy()  # (40, T)
        mfcc = dct(log_mel, axis=0, norm="ortho")[:N_MFCC]
        delta = np.diff(mfcc, axis=1, prepend=mfcc[:, :1])
        return np.concatenate(
            [mfcc.mean(1), mfcc.std(1), mfcc.max(1), mfcc.min(1), delta.std(1)]
        ).astype(np.float32)
