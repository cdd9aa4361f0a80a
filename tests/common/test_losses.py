"""Losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from common.losses import (
    GaussianNLL,
    MultiResolutionSTFTLoss,
    NegativeSiSdr,
    SoftDiceLoss,
    weighted_mean,
)


def test_weighted_mean() -> None:
    values = torch.tensor([1.0, 2.0, 6.0])
    assert weighted_mean(values, None).item() == pytest.approx(3.0)
    assert weighted_mean(values, torch.tensor([1.0, 1.0, 0.0])).item() == pytest.approx(1.5)
    assert weighted_mean(values, torch.zeros(3)).item() == 0.0


def test_soft_dice_by_hand() -> None:
    loss = SoftDiceLoss(smooth=0.0)
    # overlap 1, extents 1 and 2: Dice = 2 / 3
    value = loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
    assert value.item() == pytest.approx(1 / 3)
    # overlap 0.5, extents 0.5 and 1: Dice = 1 / 1.5
    value = loss(torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]]))
    assert value.item() == pytest.approx(1 / 3)


def test_soft_dice_extremes_and_weight() -> None:
    loss = SoftDiceLoss()
    empty, full = torch.zeros(1, 4), torch.ones(1, 4)
    assert loss(empty, empty).item() == pytest.approx(0.0)
    assert loss(full, full).item() == pytest.approx(0.0)
    assert loss(full, empty).item() == pytest.approx(1 - 1 / 5)
    ignore_last = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    almost = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert loss(almost, full, ignore_last).item() == pytest.approx(0.0)


def test_soft_dice_is_a_mean_over_items() -> None:
    estimate = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    target = torch.ones(2, 2)
    assert SoftDiceLoss(smooth=0.0)(estimate, target).item() == pytest.approx(1 / 6)


def test_gaussian_nll_by_hand() -> None:
    mean, target = torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.0])
    log_variance = torch.log(torch.tensor([4.0, 1.0]))
    first = 0.5 * (math.log(4.0) + 1.0)
    loss = GaussianNLL()
    assert loss(mean, log_variance, target).item() == pytest.approx(first / 2)
    only_first = torch.tensor([1.0, 0.0])
    assert loss(mean, log_variance, target, only_first).item() == pytest.approx(first)


def test_gaussian_nll_is_least_at_the_true_variance() -> None:
    error = torch.full((8,), 2.0)
    zero = torch.zeros(8)
    values = [
        GaussianNLL()(zero, torch.full((8,), math.log(variance)), error).item()
        for variance in (2.0, 4.0, 8.0)
    ]
    assert values[1] == min(values)


def test_gaussian_nll_clamps_the_log_variance() -> None:
    loss = GaussianNLL(min_log_variance=-2.0)
    exact = loss(torch.zeros(1), torch.tensor([-50.0]), torch.zeros(1))
    assert exact.item() == pytest.approx(-1.0)


def test_multi_resolution_stft_of_equal_signals_is_zero() -> None:
    waveform = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    assert MultiResolutionSTFTLoss()(waveform, waveform).item() == pytest.approx(0.0, abs=1e-6)


def test_multi_resolution_stft_of_doubled_signal() -> None:
    # magnitudes differ by a factor of two everywhere: convergence 1, log distance ln 2
    waveform = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    value = MultiResolutionSTFTLoss(floor=1e-12)(2.0 * waveform, waveform)
    assert value.item() == pytest.approx(1.0 + math.log(2.0), rel=1e-4)


def test_multi_resolution_stft_has_finite_gradients_in_silence() -> None:
    estimate = torch.zeros(1, 3000, requires_grad=True)
    MultiResolutionSTFTLoss()(estimate, torch.zeros(1, 3000)).backward()
    assert estimate.grad is not None
    assert torch.isfinite(estimate.grad).all()


def test_negative_si_sdr_by_hand() -> None:
    target = torch.tensor([1.0, -1.0, 1.0, -1.0])
    noise = torch.tensor([1.0, 1.0, -1.0, -1.0])  # orthogonal to the target, zero mean
    loss = NegativeSiSdr()
    assert loss(target + noise, target).item() == pytest.approx(0.0, abs=1e-4)
    assert loss(target + 0.1 * noise, target).item() == pytest.approx(-20.0, abs=1e-3)
    assert loss(7.0 * (target + 0.1 * noise), target).item() == pytest.approx(-20.0, abs=1e-3)


def test_negative_si_sdr_is_bounded() -> None:
    target = torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert NegativeSiSdr(bound_db=60.0)(target, target).item() == pytest.approx(-60.0, abs=1e-3)
