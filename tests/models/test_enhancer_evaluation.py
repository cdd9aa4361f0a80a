"""The enhancer's evaluation: measures against values worked out by hand, peers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from services.enhancer import peers
from tests.models.signals import noise


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
