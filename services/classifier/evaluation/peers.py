"""The classifiers to beat: statistics of cepstral coefficients under a forest and under an SVM.

Source: Piczak 2015, "ESC: Dataset for environmental sound classification", section 5 (means and
deviations of MFCC over a clip; random forest, SVM); the coefficients of Davis and Mermelstein 1980.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from scipy.fft import dct
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import f1_score, make_scorer
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from tqdm import tqdm

from common.datasets import Clip, ClipBank
from common.features import LogMel
from services.classifier.config import Config

Array = np.ndarray[Any, Any]
Peer = Literal["forest", "svm"]

PEER_NAMES: dict[Peer, str] = {"forest": "MFCC + random forest", "svm": "MFCC + SVM"}

N_MFCC = 20
N_TREES = 500
SVM_C = (1.0, 3.0, 10.0, 30.0, 100.0)
SVM_SPLITS = 3
UNKNOWN_LOGIT = -30.0
"""Of a class that the training side lacks."""


class CepstralBank:
    """Means and deviations of 20 coefficients and of their changes, once per clip: 80 numbers."""

    def __init__(self, bank: ClipBank, clips: Sequence[Clip], config: Config) -> None:
        front = LogMel(config.sample_rate, config.n_fft, config.hop_length, config.n_mels)
        self._rows = {
            clip.path: _statistics(front, bank.waveform(clip))
            for clip in tqdm(clips, desc="cepstra", unit="clip", mininterval=2.0, leave=False)
        }

    def rows(self, clips: Sequence[Clip]) -> Array:
        """Return (N, 80) of clips that the bank was made of."""
        return np.stack([self._rows[clip.path] for clip in clips])


def _statistics(front: LogMel, waveform: Array) -> Array:
    with torch.inference_mode():
        logmel = front(torch.from_numpy(waveform)[None])[0].numpy()  # (F, T)
    mfcc = dct(logmel, axis=0, norm="ortho")[:N_MFCC]
    change = np.diff(mfcc, axis=1) if mfcc.shape[1] > 1 else np.zeros_like(mfcc)
    return np.concatenate([mfcc.mean(1), mfcc.std(1), change.mean(1), change.std(1)])


def peer_logits(
    peer: Peer,
    cepstra: CepstralBank,
    train: Sequence[Clip],
    test: Sequence[Clip],
    labels: Sequence[str],
    seed: int,
) -> Array:
    """Return (N, K) logits of a softmax for ``test``, by a peer that learnt from ``train``.

    Args:
        peer: the forest's logits are the logarithms of its shares of votes, the SVM's are the
            distances from its one-against-rest borders.
        cepstra: holds the clips of both.
        train: each clip counts under its first label.
        test: likewise.
        labels: the K classes.
        seed: of the forest; the SVM has no chance in it.
    """
    numbers = np.array([labels.index(clip.label) for clip in train])
    known, columns = _FITS[peer](cepstra.rows(train), numbers, train, seed)(cepstra.rows(test))
    logits = np.full((len(test), len(labels)), UNKNOWN_LOGIT, np.float32)
    logits[:, known] = columns
    return logits


_Predict = Callable[[Array], tuple[Array, Array]]


def _forest(rows: Array, numbers: Array, clips: Sequence[Clip], seed: int) -> _Predict:
    forest = RandomForestClassifier(N_TREES, random_state=seed, n_jobs=1).fit(rows, numbers)
    tiny = np.exp(UNKNOWN_LOGIT)
    return lambda test: (forest.classes_, np.log(forest.predict_proba(test) + tiny))


def _svm(rows: Array, numbers: Array, clips: Sequence[Clip], seed: int) -> _Predict:
    """Fit an SVM with radial kernel, its C chosen on the training side, recordings kept whole."""
    search = GridSearchCV(
        make_pipeline(StandardScaler(), SVC(cache_size=500)),
        {"svc__C": SVM_C},
        scoring=make_scorer(f1_score, average="macro", pos_label=None, zero_division=0),
        cv=StratifiedGroupKFold(SVM_SPLITS, shuffle=True, random_state=0),
    )
    search.fit(rows, numbers, groups=[clip.source_id for clip in clips])

    def predict(test: Array) -> tuple[Array, Array]:
        distances = search.decision_function(test)
        if distances.ndim == 1:  # two classes: one border
            distances = np.stack([-distances, distances], axis=1)
        return search.classes_, distances

    return predict


_FITS: dict[Peer, Callable[[Array, Array, Sequence[Clip], int], _Predict]] = {
    "forest": _forest,
    "svm": _svm,
}
