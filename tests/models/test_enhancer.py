"""The enhancer: both models, their losses against hand-worked values, and whole recordings."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from scipy import signal

from common import checkpoint
from common.audio import AudioReader, resample_blocks
from common.domain import ArtifactKind
from common.errors import AudioEmpty, AudioUnreadable, ParametersInvalid, WeightsInvalid
from common.masks import MASK_BANDS, MaskWriter
from common.params import EnhanceParams, RestoreParams
from common.stage_io import StageInput, StageOutput
from services.enhancer import config, infer, peers
from services.enhancer.config import (
    GAIN_HOP_S,
    N_BANDS,
    DenoiserConfig,
    DiscriminatorConfig,
    GeneratorConfig,
)
from services.enhancer.data import bandwidth_hz, degraded, log_mel, narrowed, oracle_mask
from services.enhancer.discriminator import Discriminator
from services.enhancer.gains import GainApplier, GainSmoother, band_centres_hz, band_weights
from services.enhancer.losses import (
    CompressedSpectrumLoss,
    FeatureMatchingLoss,
    NegativeSpectralSnr,
    RelativisticDiscriminatorLoss,
    RelativisticGeneratorLoss,
)
from services.enhancer.model import Denoiser, Generator, log_magnitude
from services.enhancer.widen import Widener, high_pass

SMALL_DENOISER = DenoiserConfig(channels=(8, 12, 16, 16), hidden=16)
SMALL_GENERATOR = GeneratorConfig(width=16, growth=8, blocks=1, dense_per_block=1)


@pytest.fixture(scope="module")
def loaded() -> infer.LoadedEnhancer:
    torch.set_num_threads(1)
    return infer.load("cpu")


def noise(channels: int, n: int, level: float = 0.1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (level * rng.standard_normal((channels, n))).astype(np.float32)


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


# Gains


@pytest.mark.parametrize(
    ("sample_rate", "n"), [(48_000, 30_001), (11_025, 5_000), (8_000, 1), (44_100, 30)]
)
def test_gains_of_one_change_nothing(sample_rate: int, n: int) -> None:
    audio = noise(2, n)
    out = applied(audio, sample_rate, np.ones((N_BANDS, n * 100 // sample_rate + 1), np.float32))
    np.testing.assert_allclose(out, audio, atol=1e-6)


def applied(audio: np.ndarray, sample_rate: int, gains: np.ndarray) -> np.ndarray:
    applier = GainApplier(sample_rate, audio.shape[0])
    parts = []
    for start in range(0, audio.shape[1], 7_001):
        applier.push_audio(audio[:, start : start + 7_001])
        applier.push_gains(gains[:, :40])
        gains = gains[:, 40:]
        parts.append(applier.pull())
    applier.push_gains(gains)
    parts += [applier.pull(), applier.flush()]
    return np.concatenate(parts, axis=1)


def test_gains_act_where_and_when_they_should() -> None:
    rate, n = 16_000, 32_000
    audio = noise(1, n)
    gains = np.ones((N_BANDS, 201), np.float32)
    gains[band_centres_hz() > 2_000.0, 100:] = 0.1
    out = applied(audio, rate, gains)
    hz, _, before = signal.stft(audio[0], rate, nperseg=1024)
    _, _, after = signal.stft(out[0], rate, nperseg=1024)
    half = before.shape[1] // 2
    late = np.abs(after[:, half + 4 :]).mean(axis=1) / np.abs(before[:, half + 4 :]).mean(axis=1)
    early = np.abs(after[:, : half - 4]).mean(axis=1) / np.abs(before[:, : half - 4]).mean(axis=1)
    np.testing.assert_allclose(early, 1.0, atol=0.05)
    np.testing.assert_allclose(late[hz < 1_500], 1.0, atol=0.1)
    np.testing.assert_allclose(late[hz > 2_500], 0.1, atol=0.03)


def test_band_weights_interpolate() -> None:
    centres = band_centres_hz()
    np.testing.assert_allclose(band_weights(centres), np.eye(N_BANDS), atol=1e-5)
    outside = band_weights(np.array([0.0, 90_000.0]))
    np.testing.assert_allclose(outside[:, [0, -1]], np.eye(2))
    np.testing.assert_allclose(band_weights(np.linspace(0, 24e3, 99)).sum(axis=1), 1.0, atol=1e-6)


def test_smoothing_attacks_fast_and_releases_slowly() -> None:
    smoother = GainSmoother()
    gains = np.zeros((N_BANDS, 40), np.float32)
    gains[:, 10:20] = 1.0
    smoothed = np.concatenate([smoother.smooth(gains[:, :15]), smoother.smooth(gains[:, 15:])], 1)
    assert smoothed[0, 10] == pytest.approx(1.0 - math.exp(-2.0), rel=1e-4)  # 10 ms of 5 ms
    after_50_ms = smoothed[0, 24] / smoothed[0, 19]
    assert after_50_ms == pytest.approx(math.exp(-1.0), rel=1e-4)
    assert pytest.approx(0.01) == GAIN_HOP_S


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


def test_rates_that_are_widened() -> None:
    assert config.widened_rate(7_999) is None
    assert config.widened_rate(8_000) == 48_000
    assert config.widened_rate(11_025) == 44_100
    assert config.widened_rate(22_050) == 44_100
    assert config.widened_rate(24_000) == 48_000
    assert config.widened_rate(32_000) is None


def test_high_pass_stops_and_passes() -> None:
    taps = high_pass(7_360.0, 48_000)
    hz, response = signal.freqz(taps, worN=8_192, fs=48_000)
    level_db = 20 * np.log10(np.abs(response) + 1e-12)
    assert level_db[hz < 6_960].max() < -95
    assert np.abs(level_db[hz > 7_400]).max() < 0.1


@pytest.mark.parametrize("rate_in", [8_000, 16_000])
def test_low_band_is_copied(loaded: infer.LoadedEnhancer, rate_in: int) -> None:
    rate = 48_000
    narrow = noise(1, 12 * rate_in)
    widener = Widener(loaded.generators["gan"], "cpu", rate_in, rate)
    wide = np.concatenate(list(widener.process([narrow])), axis=1)[0]
    assert len(wide) == 12 * rate
    base = np.concatenate(list(resample_blocks([narrow], rate_in, rate)), axis=1)[0]
    made = wide - base
    # a window whose own side lobes lie below -90 dB
    window = signal.windows.blackmanharris(len(made))
    change, before = (np.abs(np.fft.rfft(x * window)) for x in (made, base))
    hz = np.fft.rfftfreq(len(made), 1.0 / rate)
    low = hz < 0.85 * rate_in / 2
    assert np.sqrt(np.mean(change[low] ** 2)) < 1e-4 * np.sqrt(np.mean(before[low] ** 2))
    power = np.square(made).mean()
    assert 1e-8 < power < np.square(base).mean()


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


# Whole recordings


def enhance(
    loaded: infer.LoadedEnhancer,
    folder: Path,
    audio: np.ndarray,
    sample_rate: int,
    mask: Path | None = None,
    **params: Any,
) -> tuple[StageOutput, np.ndarray]:
    path = folder / "in.wav"
    soundfile.write(path, audio.T, sample_rate, subtype="FLOAT", format="RF64")
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    upstream = {} if mask is None else {ArtifactKind.MASK: mask}
    item = StageInput("in", path, EnhanceParams(**params), upstream, scratch)
    output = infer.process(loaded, item)
    assert set(item.phases.seconds) == {"decode", "infer", "encode"}
    with AudioReader(output.files[ArtifactKind.ENHANCED].path) as reader:
        blocks = list(reader.blocks())
        assert reader.info.sample_rate == output.result["sample_rate_out"]
    return output, np.concatenate(blocks, axis=1)


@pytest.mark.parametrize(
    ("sample_rate", "channels", "n", "rate_out"),
    [
        (48_000, 2, 96_000, 48_000),
        (44_100, 1, 1, 44_100),
        (8_000, 1, 1, 48_000),
        (16_000, 1, 100, 48_000),
        (11_025, 2, 11_025, 44_100),
        (2_000, 1, 2_000, 2_000),
        (96_001, 1, 9_600, 96_001),
        (32_000, 64, 16_000, 32_000),
    ],
)
def test_length_channels_and_rate(
    loaded: infer.LoadedEnhancer,
    tmp_path: Path,
    sample_rate: int,
    channels: int,
    n: int,
    rate_out: int,
) -> None:
    output, audio = enhance(loaded, tmp_path, noise(channels, n), sample_rate)
    assert audio.shape == (channels, round(n * rate_out / sample_rate))
    assert np.isfinite(audio).all()
    assert output.result["sample_rate_in"] == sample_rate
    assert output.result["sample_rate_out"] == rate_out
    assert output.result["widened"] == (rate_out != sample_rate)
    assert output.audio.duration_s == pytest.approx(n / sample_rate)
    assert output.audio.channels == channels


def test_silence_stays_silent(loaded: infer.LoadedEnhancer, tmp_path: Path) -> None:
    output, audio = enhance(loaded, tmp_path, np.zeros((2, 30_000), np.float32), 16_000)
    assert audio.shape == (2, 90_000)
    assert not audio.any()
    assert output.result["mean_gain_db"] == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("kind", ["nan", "dc", "clipped"])
def test_odd_values(loaded: infer.LoadedEnhancer, tmp_path: Path, kind: str) -> None:
    audio = np.full((1, 16_000), np.nan if kind == "nan" else 0.5, np.float32)
    if kind == "clipped":
        audio = np.clip(noise(1, 16_000, level=3.0), -1.0, 1.0)
    _, out = enhance(loaded, tmp_path, audio, 16_000)
    assert np.isfinite(out).all()
    if kind == "nan":
        assert not out.any()


def test_switched_off_it_copies(loaded: infer.LoadedEnhancer, tmp_path: Path) -> None:
    audio = np.round(noise(2, 30_000) * 2**23) / np.float32(2**23)
    output, out = enhance(loaded, tmp_path, audio, 16_000, denoise=False, widen=False)
    np.testing.assert_array_equal(out, audio)
    assert output.result["mean_gain_db"] == 0.0


def test_floor_bounds_the_suppression(loaded: infer.LoadedEnhancer, tmp_path: Path) -> None:
    audio = noise(1, 64_000)
    output, out = enhance(loaded, tmp_path, audio, 32_000, gain_floor_db=-3.0)
    assert -3.01 <= output.result["mean_gain_db"] <= 0.0
    ratio_db = 10 * np.log10(np.square(out).mean() / np.square(audio).mean())
    assert -3.2 <= ratio_db <= 0.1


def test_same_gain_on_each_channel(loaded: infer.LoadedEnhancer, tmp_path: Path) -> None:
    mono = noise(1, 64_000)
    _, out = enhance(loaded, tmp_path, np.concatenate([mono, 0.5 * mono]), 32_000)
    np.testing.assert_allclose(out[1], 0.5 * out[0], atol=1e-6)


def test_the_mask_steers(loaded: infer.LoadedEnhancer, tmp_path: Path) -> None:
    """A mask that is certain of noise turns it down further than one that is certain of events."""
    audio = noise(1, 160_000)
    levels = []
    for value in (0.02, 0.98):
        path = tmp_path / f"mask{value}.npz"
        with MaskWriter(path) as writer:
            writer.append(np.full((MASK_BANDS, 251), value, np.float32))
        output, _ = enhance(loaded, tmp_path, audio, 32_000, mask=path)
        levels.append(output.result["mean_gain_db"])
    assert levels[0] < levels[1] - 3.0


def test_chunks_leave_no_seam(loaded: infer.LoadedEnhancer, tmp_path: Path) -> None:
    """A tone in noise goes over the chunks' borders without a step."""
    rate, n = 32_000, 32_000 * 22
    time_s = np.arange(n) / rate
    tone = 0.3 * np.sin(2 * np.pi * 1_000.0 * time_s).astype(np.float32)
    _, out = enhance(loaded, tmp_path, tone[None] + noise(1, n, 0.001), rate)
    envelope = np.sqrt(np.square(out[0]).reshape(-1, 1_600).mean(axis=1))
    steps_db = np.abs(np.diff(20 * np.log10(envelope[20:-20])))
    assert steps_db.max() < 1.0


def test_errors_say_what_is_wrong(loaded: infer.LoadedEnhancer, tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(b"this is not audio")
    with pytest.raises(AudioUnreadable):
        infer.process(loaded, StageInput("x", path, EnhanceParams(), {}, tmp_path))
    path.write_bytes(b"")
    with pytest.raises(AudioEmpty):
        infer.process(loaded, StageInput("x", path, EnhanceParams(), {}, tmp_path))
    with pytest.raises(ParametersInvalid):
        infer.process(loaded, StageInput("x", path, RestoreParams(), {}, tmp_path))


# Measures


def test_measures_by_hand() -> None:
    time_s = np.arange(32_000) / 32_000
    target = np.sin(2 * np.pi * 100.0 * time_s).astype(np.float32)
    other = np.sin(2 * np.pi * 300.0 * time_s).astype(np.float32)  # orthogonal, as loud
    mixed = target + np.float32(0.1) * other
    assert peers.snr_db(mixed, target) == pytest.approx(20.0, abs=0.01)
    assert peers.si_sdr_db(3.0 * mixed, target) == pytest.approx(20.0, abs=0.01)
    assert peers.log_spectral_distance(0.5 * target, target, 32_000) == pytest.approx(0.0, abs=1e-3)
    hiss = noise(1, 32_000)[0]
    # white noise loses the upper half of its band to the floor of 1e-8
    low = np.fft.irfft(np.where(np.arange(16_001) < 8_000, np.fft.rfft(hiss), 0.0)).astype("f4")
    high = peers.log_spectral_distance(low, hiss, 32_000, from_hz=8_500.0)
    full = peers.log_spectral_distance(low, hiss, 32_000)
    assert high > 5.0
    assert full == pytest.approx(high / math.sqrt(2.0), rel=0.05)


@pytest.mark.parametrize("method", [peers.wiener, peers.spectral_gate, peers.oracle_ratio_mask])
def test_peers_remove_noise(method: Any) -> None:
    n = 64_000
    event = np.zeros(n, np.float32)
    event[30_000:40_000] = np.sin(2 * np.pi * 1_000.0 * np.arange(10_000) / 32_000)
    mixed = event + noise(1, n, 0.2)[0]
    cleaned = method(mixed, event)
    assert cleaned.shape == mixed.shape
    assert peers.si_sdr_db(cleaned, event) > peers.si_sdr_db(mixed, event) + 2.0


def test_spectral_band_replication_fills_the_top() -> None:
    narrow = noise(1, 16_000)[0]
    wide = peers.spectral_band_replication(narrow, 16_000, 48_000, 48_000)
    assert wide.shape == (48_000,)
    power = np.abs(np.fft.rfft(wide)) ** 2
    assert power[9_000:20_000].mean() > 0.1 * power[1_000:7_000].mean()
