"""Words that no list foresees, judged by a sentence encoder: the nearest of all known phrases.

The encoder is a folder with a static model of Model2Vec (S. Tulkens and T. van Dongen, "Model2Vec:
fast state-of-the-art static embeddings", 2024): a vector for each token, whose mean is that of the
text. The library is the extra ``encoder``: import this module only where an encoder is wanted. It
loads no PyTorch and downloads nothing here.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from model2vec import StaticModel
from numpy.typing import NDArray

from common.errors import EncoderInvalid
from common.text.reading import known_phrases
from common.text.understanding import Guess

SHORTEST = 1e-12  # a vector shorter than this has no direction
ALIKE = 1e-6  # cosines that differ by less are equal but for rounding
Vectors = NDArray[np.float32]


class Encoder:
    """A sentence encoder and the vectors of all known phrases, of labels and of others.

    Args:
        folder: Where the model lies.
        labels: What may be named.
        threshold: The least cosine similarity of a label, in [0, 1].

    Raises:
        EncoderInvalid: the model is missing, damaged, or has none of the words that name labels.
    """

    def __init__(self, folder: Path, labels: tuple[str, ...], threshold: float) -> None:
        self._model = _load(folder)
        self._threshold = threshold
        self._lock = threading.Lock()  # encoding sets the tokenizer's options
        phrases = list(known_phrases(labels))
        try:
            vectors = self._encode([phrase for phrase, _ in phrases])
        except Exception as error:
            raise _damaged(folder, error) from error
        if not np.isfinite(vectors).all():
            raise _damaged(folder, "vectors are not finite")
        seen = np.flatnonzero(np.any(vectors, axis=1))
        self._vectors: Vectors = vectors[seen]
        self._meant = [phrases[index][1] for index in seen]
        self._named = sum(map(bool, self._meant))  # they come first
        if not self._named:
            raise EncoderInvalid(f"the model in {folder} has no word that names a label")

    def nearest(self, words: str) -> Guess | None:
        """Return the label that some words mean.

        None where no label is similar enough, and where something that is no label is more so.
        """
        similar = self._vectors @ self._encode([words])[0]
        best = int(similar[: self._named].argmax())
        similarity = max(0.0, min(1.0, float(similar[best])))
        if similarity < self._threshold or similar.max() > similar[best] + ALIKE:
            return None
        return Guess(self._meant[best], similarity)

    def _encode(self, texts: list[str]) -> Vectors:
        """Return vectors of length 1, zeros for a text of which no token is known."""
        with self._lock:
            vectors = np.asarray(self._model.encode(texts), np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(lengths, SHORTEST), np.float32)


def _load(folder: Path) -> StaticModel:
    if not folder.is_dir():
        raise EncoderInvalid(f"{folder} is no folder")
    try:
        # a name that is not absolute could be taken for that of a model to download
        return StaticModel.from_pretrained(folder.resolve())
    except Exception as error:  # a damaged tokenizer is a plain Exception
        raise _damaged(folder, error) from error


def _damaged(folder: Path, why: object) -> EncoderInvalid:
    return EncoderInvalid(f"the model in {folder} cannot be read: {why}")
