"""Whose bins are removed: the share of a class among those that the classifier heard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.domain import Event
from common.masks import (
    EMBEDDING_BANDS,
    MASK_BANDS,
    EmbeddingReader,
    EmbeddingWriter,
    MaskReader,
    MaskWriter,
)
from services.restorer.regions import RemovalMask
from services.restorer.spectrum import Grid

SIREN = Event("siren", 1.0, 3.0, 1.0)
DOG = Event("dog", 2.0, 4.0, 1.0)
DURATION_S = 4


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """All foreground; every bin is a siren with probability 0.2 and a dog with 0.8."""
    mask, embedding = tmp_path / "mask.npz", tmp_path / "embedding.npz"
    with MaskWriter(mask) as writer:
        writer.append(np.ones((MASK_BANDS, DURATION_S * 50), np.float32))
    probabilities = np.array([0.2, 0.8])
    biases = np.log(probabilities / (1.0 - probabilities)).astype(np.float32)
    vectors = np.zeros((2, 8), np.float32)
    with EmbeddingWriter(embedding, ("siren", "dog"), vectors, biases) as embedding_writer:
        embedding_writer.append(np.zeros((8, EMBEDDING_BANDS, DURATION_S * 25), np.float32))
    return mask, embedding


@pytest.mark.parametrize(
    ("heard", "at_s", "share"),
    [
        ([SIREN], 2.5, 1.0),  # nothing else was heard: the foreground is the siren's
        ([SIREN, DOG], 2.5, 0.25),  # 0.2 of the dog's 0.8
        ([SIREN, DOG], 1.5, 1.0),  # the dog is not heard yet
    ],
)
def test_only_classes_heard_at_that_moment_compete(
    files: tuple[Path, Path], heard: list[Event], at_s: float, share: float
) -> None:
    grid = Grid(32_000)
    with MaskReader(files[0]) as mask, EmbeddingReader(files[1]) as embedding:
        removal = RemovalMask(mask, embedding, [SIREN], heard, grid)
        frame = removal.frames(grid.frame_at(at_s), grid.frame_at(at_s) + 1)[0]
    middle = frame[grid.n_bins // 8 : grid.n_bins // 2].numpy()
    np.testing.assert_allclose(middle, share, atol=0.01)
