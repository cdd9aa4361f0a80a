"""Chunks cover a stream exactly, and cross-fades join them without a trace."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.chunking import Chunk, CrossFader, chunks


def in_blocks(audio: np.ndarray, size: int) -> list[np.ndarray]:
    return [audio[:, i : i + size] for i in range(0, audio.shape[1], size)]


@given(
    n=st.integers(1, 300),
    block=st.integers(1, 120),
    chunk=st.integers(2, 90),
    overlap=st.integers(0, 89),
)
def test_chunks_and_fades_keep_everything(n: int, block: int, chunk: int, overlap: int) -> None:
    overlap = min(overlap, chunk - 1)
    audio = np.arange(2 * n, dtype=np.float32).reshape(2, n)
    made = list(chunks(in_blocks(audio, block), chunk, overlap))
    assert [c.is_first for c in made] == [True] + [False] * (len(made) - 1)
    assert [c.is_last for c in made] == [False] * (len(made) - 1) + [True]
    for index, c in enumerate(made):
        assert c.start == index * (chunk - overlap)
        np.testing.assert_array_equal(c.audio, audio[:, c.start : c.start + chunk])
    assert all(c.audio.shape[1] == chunk for c in made[:-1])
    if len(made) > 1:  # the last one brings something new
        assert made[-1].audio.shape[1] > overlap
    np.testing.assert_array_equal(faded(made), audio)


def faded(made: list[Chunk]) -> np.ndarray:
    fader = CrossFader()
    parts = [fader.add(c.start, c.audio) for c in made]
    parts.append(fader.flush())
    return np.concatenate([part for part in parts if part is not None], axis=-1)


def test_fade_is_linear() -> None:
    fader = CrossFader()
    assert fader.add(0, np.zeros((1, 6), np.float32)) is None
    first = fader.add(3, np.ones((1, 6), np.float32))
    rest = fader.flush()
    np.testing.assert_allclose(first, [[0.0, 0.0, 0.0]])
    np.testing.assert_allclose(rest, [[0.25, 0.5, 0.75, 1.0, 1.0, 1.0]])


def test_fader_serves_masks_of_more_axes_and_is_new_after_a_flush() -> None:
    fader = CrossFader()
    for _ in range(2):
        fader.add(0, np.zeros((4, 3, 10), np.float32))
        finished = fader.add(8, np.ones((4, 3, 10), np.float32))
        assert finished is not None
        assert finished.shape == (4, 3, 8)
        rest = fader.flush()
        assert rest is not None
        assert rest.shape == (4, 3, 10)
        assert fader.flush() is None


def test_a_gap_is_refused() -> None:
    fader = CrossFader()
    fader.add(0, np.zeros((1, 5), np.float32))
    with pytest.raises(ValueError, match="does not continue"):
        fader.add(6, np.zeros((1, 5), np.float32))


def test_no_blocks_no_chunks() -> None:
    assert list(chunks([], 10, 2)) == []


def test_overlap_must_be_below_the_chunk() -> None:
    with pytest.raises(ValueError, match="overlap"):
        list(chunks([np.zeros((1, 5), np.float32)], 4, 4))


def test_chunks_are_made_as_soon_as_they_are_full() -> None:
    """Memory stays bounded: no more than a chunk and a block are held."""
    taken = 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield np.zeros((1, 10), np.float32)

    stream = chunks(blocks(), 20, 5)
    next(stream)
    assert taken == 3
