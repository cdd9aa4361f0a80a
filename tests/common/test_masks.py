"""Masks and embeddings: what is written comes back, on any grid, and damage is noticed."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from common.errors import ArtifactInvalid
from common.masks import (
    EMBEDDING_BANDS,
    MASK_BANDS,
    MASK_CENTRES_HZ,
    MASK_HOP_S,
    EmbeddingReader,
    EmbeddingWriter,
    MaskReader,
    MaskWriter,
    embedding_centres_hz,
)

LABELS = ("dog", "siren")
VECTORS = np.array([[2.0, 0.0, -1.0], [0.0, 4.0, 0.0]], np.float32)
BIASES = np.array([0.5, -1.0], np.float32)


def random_mask(n_frames: int) -> np.ndarray:
    levels = np.random.default_rng(0).integers(0, 256, (MASK_BANDS, n_frames))
    return (levels / 255).astype(np.float32)


def write_mask(path: Path, mask: np.ndarray, step: int = 100) -> Path:
    with MaskWriter(path) as writer:
        for start in range(0, mask.shape[1], step):
            writer.append(mask[:, start : start + step])
    return path


def write_embedding(path: Path, embedding: np.ndarray) -> Path:
    with EmbeddingWriter(path, LABELS, VECTORS, BIASES) as writer:
        writer.append(embedding)
    return path


def test_round_trip_in_any_slice(tmp_path: Path) -> None:
    mask = random_mask(1300)
    with MaskReader(write_mask(tmp_path / "m.npz", mask)) as reader:
        assert reader.n_frames == 1300
        np.testing.assert_allclose(reader.frames(0, 1300), mask, atol=1e-6)
        np.testing.assert_allclose(reader.frames(500, 1030), mask[:, 500:1030], atol=1e-6)
        np.testing.assert_allclose(reader.read(1.0, 2.0), mask[:, 50:100], atol=1e-6)
        past = reader.read(25.9, 26.1)  # the last 5 frames and 5 past the end
        np.testing.assert_allclose(past[:, :5], mask[:, 1295:], atol=1e-6)
        assert past.shape == (MASK_BANDS, 10)
        assert not past[:, 5:].any()
        before = reader.read(-0.02, 0.02)
        assert not before[:, 0].any()


def test_numpy_opens_it_and_bytes_repeat(tmp_path: Path) -> None:
    mask = random_mask(600)
    one = write_mask(tmp_path / "one.npz", mask, step=7)
    two = write_mask(tmp_path / "two.npz", mask, step=600)
    assert one.read_bytes() == two.read_bytes()
    with np.load(one) as arrays:
        assert arrays["frames_000000"].shape == (MASK_BANDS, 512)
        assert arrays["frames_000001"].shape == (MASK_BANDS, 88)
        assert json.loads(arrays["meta"].tobytes())["n_frames"] == 600


def test_empty_mask(tmp_path: Path) -> None:
    with MaskReader(write_mask(tmp_path / "m.npz", random_mask(0))) as reader:
        assert reader.n_frames == 0
        assert reader.read(0.0, 0.1).shape == (MASK_BANDS, 5)
        assert not reader.on_grid(0.0, 3, 0.01, [100.0]).any()


def test_own_grid_gives_the_mask_itself(tmp_path: Path) -> None:
    mask = random_mask(60)
    with MaskReader(write_mask(tmp_path / "m.npz", mask)) as reader:
        same = reader.on_grid(0.2, 30, MASK_HOP_S, MASK_CENTRES_HZ())
        np.testing.assert_allclose(same, mask[:, 10:40], atol=1e-4)


def test_grid_by_hand(tmp_path: Path) -> None:
    mask = np.zeros((MASK_BANDS, 4), np.float32)
    mask[10, 1], mask[11, 1] = 1.0, 0.2
    centres = MASK_CENTRES_HZ()
    with MaskReader(write_mask(tmp_path / "m.npz", mask)) as reader:
        # a quarter of the way from frame 1 to frame 2, in band 10
        grid = reader.on_grid(0.025, 1, 0.01, [centres[10]])
        assert grid.item() == pytest.approx(0.75, abs=1e-4)
        # midway in mel between bands 10 and 11
        midway_hz = embedding_centres_hz()[5]
        assert reader.on_grid(0.02, 1, 0.01, [midway_hz]).item() == pytest.approx(0.6, abs=1e-4)


def test_grid_holds_the_edges(tmp_path: Path) -> None:
    mask = np.zeros((MASK_BANDS, 5), np.float32)
    mask[-1, -1] = 1.0
    with MaskReader(write_mask(tmp_path / "m.npz", mask)) as reader:
        assert reader.on_grid(0.08, 3, 0.01, [16_000.0, 22_050.0]).min() == 1.0
        assert reader.on_grid(-1.0, 2, 0.01, [0.0]).max() == 0.0


def test_centres() -> None:
    centres = MASK_CENTRES_HZ()
    assert centres.shape == (MASK_BANDS,)
    assert np.all(np.diff(centres) > 0)
    assert 0 < centres[0] < 30
    assert 15_000 < centres[-1] < 16_000
    halves = embedding_centres_hz()
    assert halves.shape == (EMBEDDING_BANDS,)
    assert centres[0] < halves[0] < centres[1]


def test_embedding_round_trip_and_class_mask(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    embedding = rng.uniform(-1, 1, (3, EMBEDDING_BANDS, 300)).astype(np.float32)
    with EmbeddingReader(write_embedding(tmp_path / "e.npz", embedding)) as reader:
        assert reader.labels == LABELS
        assert reader.n_frames == 300
        np.testing.assert_allclose(reader.frames(0, 300), embedding, atol=0.5 / 127 + 1e-6)
        logits = 2.0 * embedding[0] - embedding[2] + 0.5
        expected = 1 / (1 + np.exp(-logits))
        np.testing.assert_allclose(reader.class_mask("dog", 0.0, 12.0), expected, atol=5e-3)
        past = reader.class_mask("siren", 11.0, 13.0)
        assert past.shape == (EMBEDDING_BANDS, 50)
        assert past[:, :25].all()
        assert not past[:, 25:].any()
        grid = reader.class_on_grid("dog", 0.01, 300, 0.04, embedding_centres_hz())
        np.testing.assert_allclose(grid, expected, atol=5e-3)
        with pytest.raises(KeyError):
            reader.class_mask("unicorn", 0.0, 1.0)


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    def fail() -> None:
        with MaskWriter(tmp_path / "m.npz") as writer:
            writer.append(random_mask(10))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())


def test_damage_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(ArtifactInvalid):
        MaskReader(tmp_path / "missing.npz")
    path = tmp_path / "m.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(ArtifactInvalid):
        MaskReader(path)
    whole = write_mask(path, random_mask(1000)).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactInvalid):
        MaskReader(path)
    changed = bytearray(whole)
    changed[2000] ^= 0xFF
    path.write_bytes(bytes(changed))
    with MaskReader(path) as reader, pytest.raises(ArtifactInvalid):
        reader.read(0.0, 1.0)


def test_another_kind_is_refused(tmp_path: Path) -> None:
    embedding = write_embedding(tmp_path / "e.npz", np.zeros((3, EMBEDDING_BANDS, 4), np.float32))
    with pytest.raises(ArtifactInvalid, match="not a"):
        MaskReader(embedding)
    with pytest.raises(ArtifactInvalid, match="not a"):
        EmbeddingReader(write_mask(tmp_path / "m.npz", random_mask(4)))
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as archive:
        archive.writestr("other.txt", "nothing")
    with pytest.raises(ArtifactInvalid, match="no meta"):
        MaskReader(tmp_path / "z.npz")
