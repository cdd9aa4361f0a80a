"""A sentence encoder made by hand, small enough to see why it judges as it does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from model2vec import StaticModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

AXES = ("dog", "rain", "duck", "bird", "nothing")
WORDS = {
    "dog": {"dog": 1.0},
    "puppy": {"dog": 0.9, "nothing": 0.1},
    "kennel": {"dog": 0.9, "nothing": 0.4},
    "rain": {"rain": 1.0},
    "tempest": {"rain": 0.95, "nothing": 0.2},
    "duck": {"duck": 1.0, "dog": 0.8},
    "quacker": {"duck": 0.7, "dog": 0.9},
    "blackbird": {"bird": 1.0},
    "songster": {"bird": 0.9, "nothing": 0.2},
    "ledger": {"nothing": 1.0, "dog": 0.3},
    "remove": {"nothing": 1.0},
}
"""How far each word lies along each axis."""


def make_model(folder: Path, vectors: np.ndarray | None = None) -> Path:
    """Write a model of Model2Vec to a folder and return the folder."""
    vocabulary = {word: number for number, word in enumerate(["[UNK]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    rows = [[0.0] * len(AXES)]
    rows += [[place.get(axis, 0.0) for axis in AXES] for place in WORDS.values()]
    made = np.array(rows, np.float32) if vectors is None else vectors
    StaticModel(made, tokenizer).save_pretrained(folder)
    return folder
