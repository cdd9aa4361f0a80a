"""The restorer's evaluation: measures against values worked out by hand, peers, trials."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from services.restorer import peers
from services.restorer.data import GRID, level_db, oracle_mask
from services.restorer.metrics import damage_snr_db, inside_distance, si_sdr_db
from services.restorer.spectrum import analyse
from services.restorer.trials import Trials


def test_si_sdr_by_hand() -> None:
    reference = np.array([1.0, -1.0, 1.0, -1.0])
    noise = np.array([1.0, 1.0, -1.0, -1.0])
    assert si_sdr_db(3.0 * (reference + 0.1 * noise), reference) == pytest.approx(20.0)


def test_damage_counts_only_what_lies_outside() -> None:
    given = np.ones(10, np.float32)
    output = given.copy()
    output[:5] = 0.0
    outside = np.arange(10) >= 5
    assert damage_snr_db(output, given, outside) == math.inf
    output[9] = 0.9
    assert damage_snr_db(output, given, outside) == pytest.approx(
        10 * math.log10(5 / 0.01), abs=0.01
    )


def test_inside_distance_by_hand() -> None:
    reference = torch.ones(24, 32)
    mask = torch.zeros(24, 32, dtype=torch.bool)
    mask[:12] = True
    estimate = reference.clone()
    estimate[:12] = 10.0  # 10 dB too loud inside
    estimate[12:] = 1e6  # outside does not count
    distance = inside_distance(estimate, reference, mask)
    assert distance.lsd_db == pytest.approx(10.0, abs=1e-3)
    assert distance.texture_db == pytest.approx(10.0, abs=1e-3)
    same = inside_distance(reference, reference, mask)
    assert same.lsd_db == 0.0
    assert same.texture_db == 0.0


def test_two_draws_of_noise_are_alike_in_texture_but_not_per_bin() -> None:
    draws = torch.randn(
        2, 400, 320, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)
    )
    power = draws.abs().square()
    everywhere = torch.ones(400, 320, dtype=torch.bool)
    distance = inside_distance(power[0], power[1], everywhere)
    assert distance.lsd_db == pytest.approx(7.9, abs=0.1)
    assert distance.texture_db < 0.5
    assert distance.roughness == pytest.approx(1.0, abs=0.02)
    smooth = inside_distance(torch.ones(400, 320), power[1], everywhere)
    assert smooth.roughness < 0.01


def test_oracle_mask_is_the_share_of_the_event() -> None:
    generator = torch.Generator().manual_seed(0)
    waveform = torch.randn(GRID.n_fft + 40 * GRID.hop_length, generator=generator)
    spectrum = analyse(waveform, GRID)
    mask = oracle_mask(0.75 * spectrum, spectrum)  # 0.5625 / 1.5625 = 0.36 of the power
    np.testing.assert_allclose(mask, 0.6, atol=1e-4)
    assert oracle_mask(0.0 * spectrum, spectrum).max() == 0.0


def test_level_by_hand() -> None:
    assert level_db(np.full(4, 0.1), np.full(4, 1.0)) == pytest.approx(-20.0, abs=1e-4)
    assert level_db(np.zeros(4), np.ones(4)) == pytest.approx(-100.0)


def test_trials_find_their_threshold() -> None:
    trials = Trials(
        present=np.array([0.9, 0.8, 0.4]),
        removed=np.array([0.1, 0.1, 0.1]),
        stranger=np.array([0.2, 0.2, 0.3]),
    )
    threshold = trials.best_threshold()
    assert 0.3 < threshold <= 0.4
    assert trials.missed(threshold) == 0.0
    assert trials.wrong(threshold) == 0.0
    assert trials.missed(0.5) == pytest.approx(1 / 3)
    assert trials.wrong(0.2) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "fill",
    [
        peers.nothing,
        peers.zero,
        peers.gain_only,
        peers.interpolation,
        peers.learned(None, GRID),
        peers.learned(None, GRID, draw=False),
        peers.true_magnitude(GRID),
    ],
)
def test_peers_leave_free_bins_alone(fill: peers.Filler) -> None:
    generator = torch.Generator().manual_seed(0)
    waveform = 0.1 * torch.randn(GRID.n_fft + 60 * GRID.hop_length, generator=generator)
    spectrum = analyse(waveform, GRID)
    mask = torch.zeros(spectrum.shape)
    mask[20:40, 100:200] = 1.0
    restored = fill(spectrum, mask, spectrum, 0)
    assert torch.equal(restored[mask == 0], spectrum[mask == 0])
    assert torch.isfinite(restored.abs()).all()


def test_interpolation_draws_a_straight_line() -> None:
    spectrum = torch.ones(11, 4, dtype=torch.complex64)
    spectrum[10] = math.exp(2.0)
    mask = torch.zeros(11, 4)
    mask[1:10] = 1.0
    filled = peers.interpolation(spectrum, mask, spectrum, 0)
    assert filled[5, 0].abs().item() == pytest.approx(math.exp(1.0), rel=1e-4)
