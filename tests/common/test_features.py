"""The log-mel front end against torchaudio and values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchaudio

from common.features import LOG_FLOOR, LogMel, mel_filters
from common.mel import hz_to_mel, mel_centres_hz, mel_edges_hz, mel_to_hz


def test_mel_scale_by_hand() -> None:
    assert hz_to_mel(0.0).item() == 0.0
    assert hz_to_mel(6300.0).item() == pytest.approx(2595.0)  # 1 + 6300 / 700 = 10
    assert mel_to_hz(2595.0).item() == pytest.approx(6300.0)
    frequencies_hz = np.array([0.0, 55.0, 1000.0, 16000.0])
    np.testing.assert_allclose(mel_to_hz(hz_to_mel(frequencies_hz)), frequencies_hz, atol=1e-9)


def test_filters_by_hand() -> None:
    filters = mel_filters(32_000, 2048, 128, 0.0, 16_000.0)
    edges_hz = mel_edges_hz(128, 0.0, 16_000.0)
    bins_hz = np.arange(1025) * 32_000 / 2048
    for band in (0, 40, 127):
        low, centre, high = edges_hz[band : band + 3]
        expected = np.interp(bins_hz, [low, centre, high], [0.0, 1.0, 0.0], left=0.0, right=0.0)
        np.testing.assert_allclose(filters[band].numpy(), expected, atol=1e-3)


def test_filters_refuse_a_spectrum_that_is_too_coarse() -> None:
    with pytest.raises(ValueError, match="too fine"):
        mel_filters(32_000, 512, 128, 0.0, 16_000.0)


def test_log_mel_equals_torchaudio() -> None:
    waveform = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)) * 0.1
    reference = torchaudio.transforms.MelSpectrogram(
        32_000, n_fft=1024, hop_length=320, n_mels=64, pad_mode="constant"
    )
    expected = torch.log(reference(waveform) + LOG_FLOOR)
    torch.testing.assert_close(LogMel(32_000, 1024, 320, 64)(waveform), expected)


@pytest.mark.parametrize("samples", [1, 319, 320, 6401])
def test_frames_of_any_length(samples: int) -> None:
    features = LogMel(32_000, 1024, 320, 64)(torch.zeros(3, samples))
    assert features.shape == (3, 64, samples // 320 + 1)
    assert torch.all(features == math.log(LOG_FLOOR))


def test_a_sine_lands_in_its_band_with_its_power() -> None:
    n_fft, band = 2048, 90
    frequency_hz = mel_centres_hz(128, 0.0, 16_000.0)[band]
    frequency_hz = round(frequency_hz / (32_000 / n_fft)) * (32_000 / n_fft)  # on a bin
    waveform = torch.sin(2 * math.pi * frequency_hz * torch.arange(32_000) / 32_000)
    features = LogMel(32_000, n_fft, 640, 128)(waveform[None])[0, :, 25]
    assert features.argmax().item() == band
    # A Hann window sums to n_fft / 2, a unit sine puts a quarter of n_fft into its bin and half of
    # that into both neighbours: the band holds at most 1.5 times the power of the bin.
    peak = (n_fft / 4) ** 2
    assert 0.8 * peak < features.max().exp().item() <= 1.5 * peak * 1.001
