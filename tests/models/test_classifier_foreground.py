"""The foreground mask on the grids of front ends: means over time and frequency, by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.masks import MaskReader, MaskWriter
from common.mel import hz_to_mel, mel_to_hz
from common.soundscapes import Soundscape
from services.classifier.config import Config
from services.classifier.evaluation.scenes import oracle_mask
from services.classifier.foreground import mask_cells, span_means
from services.classifier.model import build
from tests.models.networks import SMALL

DEFAULT = Config()


@contextmanager
def stored(folder: Path, mask: np.ndarray) -> Iterator[MaskReader]:
    """Write a mask (128, T), and open it."""
    with MaskWriter(folder / "mask.npz") as writer:
        writer.append(mask.astype(np.float32))
    with MaskReader(folder / "mask.npz") as reader:
        yield reader


def cells_of(folder: Path, mask: np.ndarray, config: Config, start: int, n: int) -> np.ndarray:
    with stored(folder, mask) as reader:
        return mask_cells(reader, start, n, config)


def test_means_of_spans_by_hand() -> None:
    values = np.array([[1.0, 0.0], [3.0, 0.0], [5.0, 8.0]], np.float32)
    # half a row; half of the first and of the second; the rest, and a row beyond the end
    means = span_means(values, np.array([0.0, 0.5, 1.5, 4.0]))
    np.testing.assert_allclose(means, [[1.0, 0.0], [2.0, 0.0], [(1.5 + 10.0) / 2.5, 6.4]])
    inside = span_means(values, np.array([1.25, 1.5]))  # less than a row
    np.testing.assert_allclose(inside, [[3.0, 0.0]])


def test_cells_by_hand(tmp_path: Path) -> None:
    mask = np.zeros((128, 12), np.float32)
    mask[:32, 4:8] = 1.0
    mask[32, 8] = 1.0
    wanted = np.zeros((4, 4), np.float32)
    wanted[0, 1] = 1.0
    wanted[1, 2] = 1 / 128
    np.testing.assert_allclose(cells_of(tmp_path, mask, DEFAULT, 0, 4), wanted, atol=1e-6)


@pytest.mark.parametrize("start", [0, 1, 51, 1_000_003])
def test_default_cells_are_32_bands_by_4_frames(tmp_path: Path, start: int) -> None:
    mask = np.random.default_rng(0).random((128, 400))
    with stored(tmp_path, mask) as reader:
        frames = reader.frames(4 * start, 4 * (start + 64))
        cells = mask_cells(reader, start, 64, DEFAULT)
    wanted = frames.reshape(4, 32, 64, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(cells, wanted, atol=1e-6)


def test_cells_of_another_rate_and_hop_do_not_drift(tmp_path: Path) -> None:
    """A segment of 4096 samples at 22.05 kHz lasts 9.288 mask frames."""
    config = replace(DEFAULT, sample_rate=22_050, hop_length=512)
    mask = np.zeros((128, 1000), np.float32)
    mask[:, 500:600] = 1.0  # 10 s to 12 s: segments 53.83 to 64.60
    cells = cells_of(tmp_path, mask, config, 0, 107)
    wanted = np.zeros(107)
    wanted[54:64] = 1.0
    wanted[53] = 54 - 10.0 / config.segment_s
    wanted[64] = 12.0 / config.segment_s - 64
    np.testing.assert_allclose(cells, np.tile(wanted, (4, 1)), atol=1e-6)
    later = cells_of(tmp_path, mask, config, 51, 20)
    np.testing.assert_allclose(later, cells[:, 51:71], atol=1e-6)


@pytest.mark.parametrize("n_mels", [16, 48, 80, 96, 512])
@pytest.mark.parametrize("sample_rate", [8_000, 22_050, 44_100])
def test_cells_are_where_their_frequencies_are(
    tmp_path: Path, n_mels: int, sample_rate: int
) -> None:
    """A mask that rises with frequency, in mel, is read at the middle of each cell."""
    config = replace(DEFAULT, sample_rate=sample_rate, n_mels=n_mels)
    bands = np.arange(128) / 127
    cells = cells_of(tmp_path, np.tile(bands[:, None], (1, 40)), config, 0, 4)
    edges = np.linspace(0.0, hz_to_mel(sample_rate / 2).item(), config.mask_bands + 1)
    edges = np.minimum(edges, hz_to_mel(16_000.0)) / hz_to_mel(16_000.0)
    assert cells.shape == (n_mels // 16, 4)
    below = edges[1:] < 1.0  # cells that end below 16 kHz
    middles = (edges[1:] + edges[:-1])[below] / 2
    np.testing.assert_allclose(cells[below, 0], middles, atol=0.01)


def test_above_the_mask_its_top_band_holds(tmp_path: Path) -> None:
    mask = np.zeros((128, 40))
    mask[127] = 0.6
    config = replace(DEFAULT, sample_rate=96_000, n_mels=256, n_fft=16_384)
    edges_hz = mel_to_hz(np.linspace(0.0, hz_to_mel(48_000.0).item(), 17))
    above = edges_hz[:-1] > 16_000.0
    assert 0 < above.sum() < 16
    cells = cells_of(tmp_path, mask, config, 0, 2)
    np.testing.assert_allclose(cells[above], 0.6, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [{"hop_length": 16}, {"hop_length": 16, "sample_rate": 192_000}, {"hop_length": 1024}],
    ids=repr,
)
def test_cells_shorter_and_longer_than_frames_are_probabilities(
    tmp_path: Path, change: dict[str, int]
) -> None:
    config = replace(DEFAULT, **change)
    cells = cells_of(tmp_path, np.full((128, 2_000), 0.4), config, 10, 64)
    np.testing.assert_allclose(cells, 0.4, atol=1e-6)
    assert not cells_of(tmp_path, np.ones((128, 1)), config, 10**6, 2).any()  # after its end


@pytest.mark.parametrize("n_mels", [48, 96])
def test_networks_take_the_cells_of_their_front_end(tmp_path: Path, n_mels: int) -> None:
    for small in SMALL.values():
        config = replace(small, n_mels=n_mels)
        cells = cells_of(tmp_path, np.full((128, 40), 0.4), config, 0, 8)
        model = build(config).eval()
        with torch.inference_mode():
            logmel = model.features(torch.zeros(1, 8 * config.segment_samples))
            scores = model(logmel, torch.from_numpy(cells)[None])
        assert bool(scores.clip.isfinite().all())


@pytest.mark.parametrize("rate_hz", [11_025, 22_050, 32_000, 96_000])
def test_true_masks_of_any_rate_are_on_the_masks_grid(rate_hz: int) -> None:
    """At 11.025 kHz a frame of the mask would be 220.5 samples."""
    n = 30 * rate_hz
    time_s = np.arange(n) / rate_hz
    tone = np.where(time_s >= 25.0, np.sin(2 * np.pi * 1000 * time_s), 0.0).astype(np.float32)
    noise = (0.001 * np.random.default_rng(0).standard_normal(n)).astype(np.float32)
    mask = oracle_mask(Soundscape(rate_hz, tone + noise, noise, None, ()))
    assert mask.shape == (128, 1501)
    loudest = mask[30:50].max(axis=0)
    assert abs(int(np.argmax(loudest > 0.9)) - 1250) <= 3
