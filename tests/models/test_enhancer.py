"""The enhancer's models: losses against hand-worked values, training, weights."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import signal

from common import checkpoint
from common.errors import WeightsInvalid
from services.enhancer import config, infer
from services.enhancer.config import N_BANDS, DenoiserConfig, DiscriminatorConfig, GeneratorConfig
from services.enhancer.data import bandwidth_hz, degraded, log_mel, narrowed, oracle_mask
from services.enhancer.discriminator import Discriminator
from services.enhancer.losses import (
    CompressedSpectrumLoss,
    FeatureMatchingLoss,
    NegativeSpectralSnr,
    RelativisticDiscriminatorLoss,
    RelativisticGeneratorLoss,
)
from services.enhancer.model import Denoiser, Generator, log_magnitude
from tests.models.signals import noise

SMALL_DENOISER = DenoiserConfig(channels=(8, 12, 16, 16), hidden=16)
SMALL_GENERATOR = GeneratorConfig(width=16, growth=8, blocks=1, dense_per_block=1)


# Losses, by hand


def test_compressed_spectrum_loss() -> None:
    loss = CompressedSpectrumLoss(exponent=0.5, complex_share=0.5)
    estimate = torch.tensor([[4.0 + 0.0j]])
    target = torch.tensor([[0.0 + 1.0j]])
    # magnitudes 2 and 1: 1; complex 2 and 1j: 4 + 1; the mean of 1 and 5
    assert loss(estimate, target).item() == pytest.approx(3.0, rel=1e-4)
    assert loss(target, target).item() == pytest.approx(0.0, abs=1e-7)


def test_spectral_snr() -> None:
    loss = NegativeSpectralSnr()
    target = torch.tensor([[[3.0 + 4.0j]], [[0.0 + 0.0j]]])
    estimate = torch.tensor([[[3.0 + 3.5j]], [[1.0 + 0.0j]]])
    # 25 over 0.25 is 20 dB, lowered a little by the bound; the silent item does not count
    assert loss(estimate, target).item() == pytest.approx(-20.0, abs=0.5)
    assert NegativeSpectralSnr()(target, target).item() == pytest.approx(-30.0, abs=0.1)


def test_relativistic_losses() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, -1.0])
    # real less mean fake: 3 and 1; fake less mean real: -2 twice
    by_hand = 0.5 * (
        0.5 * (math.log1p(math.exp(-3.0)) + math.log1p(math.exp(-1.0))) + math.log1p(math.exp(-2.0))
    )
    assert RelativisticDiscriminatorLoss()(real, fake).item() == pytest.approx(by_hand, rel=1e-5)
    assert RelativisticGeneratorLoss()(fake, real).item() == pytest.approx(by_hand, rel=1e-5)
    same = RelativisticDiscriminatorLoss()(torch.zeros(4), torch.zeros(4))
    assert same.item() == pytest.approx(math.log(2.0))


def test_feature_matching() -> None:
    real, fake = [torch.tensor([2.0, 2.0]), torch.tensor([1.0])], [torch.tensor([1.0, 3.0])]
    fake.append(torch.tensor([1.0]))
    assert FeatureMatchingLoss()(real, fake).item() == pytest.approx(0.25)


# The denoiser


def denoiser_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    target = (torch.rand(2, N_BANDS, 20) > 0.5).float()
    log_mels = 4.0 * target + torch.randn(2, N_BANDS, 20)
    return log_mels, torch.full_like(target, 0.5), target


def test_denoiser_overfits_one_batch() -> None:
    log_mels, mask, target = denoiser_batch()
    model = Denoiser(SMALL_DENOISER).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(80):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(log_mels, mask), target)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.15 * losses[0]


@pytest.mark.parametrize("frames", [1, 2, 7, 101])
def test_denoiser_keeps_length_and_its_gradients_are_finite(frames: int) -> None:
    model = Denoiser(SMALL_DENOISER)
    silence = torch.full((2, N_BANDS, frames), math.log(1e-6))
    out = model(silence, torch.zeros_like(silence))
    assert out.shape == silence.shape
    torch.autograd.backward(out.square().mean())
    gradients = [weight.grad for weight in model.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)


def test_denoiser_does_not_see_the_level() -> None:
    model = Denoiser(SMALL_DENOISER).eval()
    log_mels, mask, _ = denoiser_batch()
    with torch.no_grad():
        torch.testing.assert_close(model(log_mels, mask), model(log_mels - 3.0, mask))


def test_masks_for_training() -> None:
    rng = np.random.default_rng(0)
    foreground = torch.from_numpy(noise(1, 32_000))
    oracle = oracle_mask(log_mel(), foreground, 0.01 * foreground)[0].numpy()
    assert oracle.shape == (N_BANDS, 101)
    assert oracle.mean() > 0.95
    kinds = [degraded(oracle, rng) for _ in range(40)]
    assert all(m.shape == oracle.shape and m.dtype == np.float32 for m in kinds)
    assert all(m.min() >= 0.0 and m.max() <= 1.0 for m in kinds)
    assert any((m == 0.5).all() for m in kinds)


# The generator


def test_generator_overfits_one_batch() -> None:
    torch.manual_seed(0)
    target = torch.from_numpy(noise(2, 12_000))
    upsampled = torch.from_numpy(np.stack([narrowed(x, 16_000, 44_100) for x in target.numpy()]))
    model = Generator(SMALL_GENERATOR).train()
    wanted = log_magnitude(model.spectrum(target))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        made = model(upsampled, 16_000, 44_100)
        top = slice(made.cutoff_bin, None)
        loss = (made.log_magnitude[:, top] - wanted[:, top]).abs().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    # what is left is chance: the two copies of noise are not alike
    assert losses[-1] < 0.75
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("samples", [1_024, 5_001, 30_000])
def test_generator_keeps_length_and_its_gradients_are_finite(samples: int) -> None:
    model = Generator(SMALL_GENERATOR)
    waveform = torch.from_numpy(noise(2, samples))
    waveform[1] = 0.0
    made = model(waveform, 8_000, 48_000)
    assert made.waveform.shape == waveform.shape
    torch.autograd.backward(made.waveform.square().mean() + made.log_magnitude.mean())
    gradients = [weight.grad for weight in model.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)


def test_discriminator_judges_patches() -> None:
    model = Discriminator(DiscriminatorConfig())
    judged = model(torch.randn(2, 300, 20))
    assert judged.scores.shape[:2] == (2, 1)
    assert len(judged.features) == 4
    torch.autograd.backward(judged.scores.mean())


def test_bandwidth_is_measured() -> None:
    rate = 44_100
    wide = noise(1, 2 * rate)[0]
    assert bandwidth_hz(wide, rate) > 21_000
    low = signal.sosfiltfilt(signal.butter(20, 8_000, fs=rate, output="sos"), wide)
    assert 7_500 < bandwidth_hz(low.astype(np.float32), rate) < 10_500
    assert bandwidth_hz(np.zeros(100, np.float32), rate) == 0.0


# Weights


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model = Denoiser(SMALL_DENOISER).eval()
    path = tmp_path / "denoiser.safetensors"
    checkpoint.save(path, asdict(SMALL_DENOISER), model)
    file = checkpoint.load(path)
    again = Denoiser(infer._config(DenoiserConfig, file)).eval()
    checkpoint.restore(again, file)
    log_mels, mask, _ = denoiser_batch()
    with torch.no_grad():
        torch.testing.assert_close(again(log_mels, mask), model(log_mels, mask))


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(WeightsInvalid):
        infer.load("cpu", tmp_path)
    for file in (infer.DENOISER_FILE, *infer.GENERATOR_FILES.values()):
        checkpoint.save(tmp_path / file, {"what": 1}, {"x": torch.zeros(1)})
    with pytest.raises(WeightsInvalid):
        infer.load("cpu", tmp_path)


def test_committed_weights_are_small() -> None:
    files = sorted(config.WEIGHTS.glob("*.safetensors"))
    assert len(files) == 3
    assert all(file.stat().st_size < 1_600_000 for file in files)
