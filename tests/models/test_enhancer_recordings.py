"""The enhancer on audio: gains, the band above, and whole recordings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from scipy import signal

from common.audio import AudioReader, resample_blocks
from common.domain import ArtifactKind
from common.errors import AudioEmpty, AudioUnreadable, ParametersInvalid
from common.masks import MASK_BANDS, MaskWriter
from common.params import EnhanceParams, RestoreParams
from common.stage_io import StageInput, StageOutput
from services.enhancer import config, infer
from services.enhancer.config import GAIN_HOP_S, N_BANDS
from services.enhancer.gains import GainApplier, GainSmoother, band_centres_hz, band_weights
from services.enhancer.widen import Widener, high_pass
from tests.models.signals import noise


@pytest.fixture(scope="module")
def loaded() -> infer.LoadedEnhancer:
    torch.set_num_threads(1)
    return infer.load("cpu")


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


# The band above


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
