"""What the hybrid knows of textures: its statistics, and how it is taught."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from common.datasets import Clip, ClipBank
from services.classifier.config import Config, HybridSettings
from services.classifier.data import BatchMaker, MelBank
from services.classifier.model import Classifier, build
from services.classifier.networks.hybrid import TEXTURE_SHARE, Hybrid
from services.classifier.networks.texture import LAGS, n_statistics, statistics
from services.classifier.textures import teach_texture

SMALL = HybridSettings((8, 8, 8, 8), patch_width=8, patch_layers=1, patch_heads=2, fused_width=8)
LABELS = ("fast", "slow")
RATE = 32_000
N_BANDS, N_GROUPS, N_LAGS = 64, 16, len(LAGS)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def changes(found: torch.Tensor) -> torch.Tensor:
    """Return the mean change of the bands' groups, of the groups and of all, by lag, (7, 33)."""
    logs = found[0, N_BANDS : N_BANDS + N_LAGS * (2 * N_GROUPS + 1)]
    return logs.exp().reshape(N_LAGS, -1) - 0.03


def test_statistics_by_hand() -> None:
    """All bands go up and down by 1, twenty frames each: mean change 0.1 times the lag, at most."""
    square = torch.tensor([1.0] * 20 + [-1.0] * 20).repeat(16)
    found = statistics(square.expand(1, N_BANDS, -1))
    assert found.shape == (1, n_statistics(N_BANDS)) == (1, 447)
    torch.testing.assert_close(found[0, :N_BANDS].exp(), torch.full((N_BANDS,), 1.03))
    wanted = [
        0.1,
        0.2,
        0.4,
        0.8,
        1.6,
        0.8,
        1.6,
    ]  # lag 32 lies 8 frames before a period, 64 24 after
    for row, change in zip(changes(found), wanted, strict=True):
        torch.testing.assert_close(row, torch.full((33,), change), atol=1e-4, rtol=0)
    moments, correlations = found[0, 295:327], found[0, 327:]
    size = 1.0 / 1.1  # of what is divided by its deviation and a floor of 0.1
    torch.testing.assert_close(moments[:16], torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(moments[16:], torch.full((16,), math.log1p(size**4)))
    torch.testing.assert_close(correlations, torch.full((120,), size**2))


def test_bands_against_each_other_correlate_below_zero_and_cancel() -> None:
    square = torch.tensor([1.0] * 20 + [-1.0] * 20).repeat(16)
    x = square * torch.tensor([1.0] * 32 + [-1.0] * 32)[:, None]
    found = statistics(x[None])
    assert changes(found)[:, 32].abs().max() < 1e-4  # of all bands together
    first, second = torch.triu_indices(16, 16, 1)
    signs = torch.where((first < 8) == (second < 8), 1.0, -1.0)
    assert (found[0, 327:].sign() == signs).all()


def test_a_gain_and_an_equaliser_change_nothing() -> None:
    torch.manual_seed(0)
    x = 0.5 * torch.randn(3, N_BANDS, 300)  # all of it within the range that counts
    curve = torch.randn(N_BANDS, 1) * 0.3 + 2.0
    torch.testing.assert_close(statistics(x + curve), statistics(x), atol=1e-4, rtol=1e-4)


def test_silence_around_a_sound_is_as_deep_as_it_may_be() -> None:
    torch.manual_seed(0)
    sound = torch.randn(1, N_BANDS, 200)
    deep, deeper = torch.full((1, N_BANDS, 200), -30.0), torch.full((1, N_BANDS, 200), -90.0)
    torch.testing.assert_close(
        statistics(torch.cat([sound, deep], 2)), statistics(torch.cat([sound, deeper], 2))
    )


@pytest.mark.parametrize("n_frames", [8, 40, 248])
def test_what_is_short_is_repeated(n_frames: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, N_BANDS, n_frames)
    often = x.repeat(1, 1, math.ceil(256 / n_frames))
    torch.testing.assert_close(statistics(x), statistics(often))


@pytest.mark.parametrize("level", [-20.0, 0.0, 20.0])
def test_gradients_are_finite_where_nothing_changes(level: float) -> None:
    x = torch.full((1, N_BANDS, 16), level, requires_grad=True)
    statistics(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def flutter(period_s: float, seed: int) -> np.ndarray:
    """Noise that comes and goes: all that tells the classes apart is how fast."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(2 * RATE) / RATE
    gate = (time_s + rng.uniform(0, period_s)) % period_s < period_s / 2
    return 0.1 * rng.standard_normal(2 * RATE) * np.where(gate, 1.0, 0.05)


def maker_of(folder: Path, config: Config) -> BatchMaker:
    clips = []
    for n in range(12):
        label, period_s = (LABELS[0], 0.06) if n % 2 else (LABELS[1], 0.6)
        path = folder / f"{n}.wav"
        soundfile.write(path, flutter(period_s, n), RATE)
        clips.append(Clip(path, label, "folders", 1, str(n), n))
    bank = ClipBank.open(clips, folder / "cache", RATE)
    return BatchMaker(MelBank(bank, clips, config), config, seed=0)


def settled(config: Config) -> Classifier:
    """A fresh model whose bands have been normalised, as after a training."""
    torch.manual_seed(0)
    model = build(config)
    model.bands(torch.full((2, 64, 100), -5.0) + 3.0 * torch.randn(2, 64, 100))
    return model.eval()


@pytest.mark.parametrize("multi_label", [True, False])
def test_taught_it_knows_rhythms_it_has_not_heard(tmp_path: Path, multi_label: bool) -> None:
    config = Config(labels=LABELS, network=SMALL, multi_label=multi_label)
    model = settled(config)
    assert isinstance(model.network, Hybrid)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    unheard = np.stack([flutter(0.06, 100), flutter(0.6, 101)]).astype(np.float32)
    logmel = model.features(torch.from_numpy(unheard))
    untaught = model(logmel).clip
    maker = maker_of(tmp_path, config)
    state = torch.get_rng_state()
    teach_texture(model, maker, steps=60, seed=3)
    assert torch.equal(torch.get_rng_state(), state)

    heard = model.network.texture(model.network_input(logmel)[:, 0])
    assert heard.argmax(1).tolist() == [0, 1]
    torch.testing.assert_close(model(logmel).clip, untaught + TEXTURE_SHARE * heard)
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("network.texture.") for name in changed)

    again = settled(config)
    teach_texture(again, maker, steps=60, seed=3)
    assert all(torch.equal(after[name], tensor) for name, tensor in again.state_dict().items())


def test_without_steps_it_has_no_say(tmp_path: Path) -> None:
    config = Config(labels=LABELS, network=SMALL)
    model = settled(config)
    assert isinstance(model.network, Hybrid)
    teach_texture(model, maker_of(tmp_path, config), steps=0, seed=0)
    assert not model.network.texture(torch.randn(2, 64, 80)).any()


def test_one_clip_is_enough_to_be_taught(tmp_path: Path) -> None:
    path = tmp_path / "one.wav"
    soundfile.write(path, flutter(0.6, 0), RATE)
    config = Config(labels=LABELS, network=SMALL)
    clips = [Clip(path, LABELS[1], "folders", 1, "one", 0)]
    bank = ClipBank.open(clips, tmp_path / "cache", RATE)
    model = settled(config)
    teach_texture(model, BatchMaker(MelBank(bank, clips, config), config, seed=0), steps=5, seed=0)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
