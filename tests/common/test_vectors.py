"""Vectors along time: means over segments by hand, stretches of time, other weights."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ArtifactInvalid
from common.masks import MaskWriter
from common.vectors import VectorReader, VectorWriter, most_bytes
from tests.damaged_vectors import DAMAGES, N_VECTORS, sound

DIGEST = "a" * 64


def written(path: Path, segments: np.ndarray, pieces: list[int]) -> Path:
    """Write segments (D, t), split before the given positions."""
    with VectorWriter(path, DIGEST, len(segments), 0.08) as writer:
        for piece in np.split(segments.astype(np.float32), pieces, axis=1):
            writer.append(piece)
    return path


def test_each_vector_is_the_mean_of_five_segments(tmp_path: Path) -> None:
    segments = np.stack([np.arange(12.0), np.full(12, -3.0)])
    with VectorReader(written(tmp_path / "v.npz", segments, [])) as reader:
        assert (reader.width, reader.n_vectors, reader.digest) == (2, 3, DIGEST)
        assert reader.vector_s == pytest.approx(0.4)
        # segments 0 to 4, 5 to 9, and the two that are left
        np.testing.assert_array_equal(reader.vectors(), [[2.0, 7.0, 10.5], [-3.0, -3.0, -3.0]])


def test_pieces_of_any_length_give_the_same_file(tmp_path: Path) -> None:
    segments = np.random.default_rng(0).standard_normal((3, 43))
    whole = written(tmp_path / "a.npz", segments, []).read_bytes()
    assert written(tmp_path / "b.npz", segments, [1, 2, 9, 9, 31]).read_bytes() == whole


def test_vectors_of_a_stretch_of_time(tmp_path: Path) -> None:
    segments = np.repeat(np.arange(10.0), 5)[None]  # vector n is n, from 0.4 n seconds on
    with VectorReader(written(tmp_path / "v.npz", segments, [])) as reader:
        assert reader.between(0.4, 1.2).tolist() == [[1.0, 2.0]]
        assert reader.between(0.3, 1.3).tolist() == [[1.0, 2.0]]
        assert reader.between(1.25, 1.3).tolist() == [[3.0]]  # shorter than a vector
        assert reader.between(4.0, 99.0).shape == (1, 0)
        assert reader.between(-5.0, 0.5).tolist() == [[0.0]]


def test_what_is_not_in_half_precision_is_bounded(tmp_path: Path) -> None:
    with VectorReader(written(tmp_path / "v.npz", np.full((1, 5), 1e9), [])) as reader:
        assert reader.vectors().tolist() == [[65504.0]]


def test_other_weights_and_other_files_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "v.npz", np.zeros((1, 5)), [])
    VectorReader(path, DIGEST).close()
    with pytest.raises(ArtifactInvalid, match="weights aaaaaaaaaaaa, which do not compare"):
        VectorReader(path, "b" * 64)
    with MaskWriter(tmp_path / "mask.npz") as writer:
        writer.append(np.zeros((128, 3), np.float32))
    with pytest.raises(ArtifactInvalid):
        VectorReader(tmp_path / "mask.npz")
    with pytest.raises(ArtifactInvalid):
        VectorReader(tmp_path / "none.npz")


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), VectorWriter(tmp_path / "v.npz", DIGEST, 1, 0.08):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_refused_at_no_cost(tmp_path: Path, name: str) -> None:
    path = sound(tmp_path / "v.npz", DIGEST)
    DAMAGES[name](path)
    size_bytes = path.stat().st_size
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactInvalid) as refused, VectorReader(path) as reader:
            reader.vectors()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 20 << 20, f"{peak_bytes} bytes for a file of {size_bytes}"
    assert len(str(refused.value)) < 500
    assert str(tmp_path) not in str(refused.value)


@given(st.data())
def test_any_damage_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "v.npz"
    segments = np.arange(30.0)[None]
    raw = bytearray(written(path, segments, []).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        with VectorReader(path) as reader:
            assert np.isfinite(reader.vectors()).all()
    except ArtifactInvalid:
        pass


def test_a_sound_file_is_no_larger_than_can_be(tmp_path: Path) -> None:
    path = sound(tmp_path / "v.npz", DIGEST)
    assert path.stat().st_size < most_bytes(N_VECTORS * 0.4) < 1 << 30
    assert most_bytes(0.0) > 0
