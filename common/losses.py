"""Losses that more than one model uses. One loss, one class, one source; lower is always better.

Every class is a module without weights, takes ``(estimate, target)`` in that order and returns a
scalar in the units its docstring names. A loss that only one service needs lives in that service.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TINY = 1e-8


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Return the mean of ``values`` under ``weight``; zero where all weights are zero.

    Args:
        values: any shape.
        weight: non-negative, broadcastable to ``values``, or None for the plain mean.
    """
    if weight is None:
        return values.mean()
    weight = weight.expand_as(values)
    return (values * weight).sum() / weight.sum().clamp_min(TINY)


class SoftDiceLoss(nn.Module):
    """1 - Dice coefficient of two soft masks, in [0, 1]; 0 is a perfect match.

    Source: Milletari et al. 2016, "V-Net", equation 1 (squared terms in the denominator). We
    return one minus it, take it per item and average over the batch.
    """

    def __init__(self, smooth: float = 1.0) -> None:
        """``smooth`` is added above and below, so that two empty masks match perfectly."""
        super().__init__()
        self.smooth = smooth

    def forward(self, estimate: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the loss.

        Args:
            estimate: (B, ...) probabilities in [0, 1].
            target: (B, ...) in [0, 1].
            weight: broadcastable to (B, ...), or None.
        """
        w = torch.ones_like(target) if weight is None else weight.expand_as(target)
        overlap = (w * estimate * target).flatten(1).sum(1)
        extent = (w * (estimate.square() + target.square())).flatten(1).sum(1)
        return (1.0 - (2.0 * overlap + self.smooth) / (extent + self.smooth)).mean()


class GaussianNLL(nn.Module):
    """Negative log-likelihood under a normal distribution, in nats, less the constant ln(2 pi)/2.

    Source: Nix and Weigend 1994, "Estimating the mean and variance of the target probability
    distribution". The log-variance is clamped, so that one exact hit cannot run away.
    """

    def __init__(self, min_log_variance: float = -7.0, max_log_variance: float = 7.0) -> None:
        super().__init__()
        self.min_log_variance = min_log_variance
        self.max_log_variance = max_log_variance

    def forward(
        self, mean: Tensor, log_variance: Tensor, target: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Return the loss; ``mean``, ``log_variance`` and ``target`` have one shape.

        Args:
            mean: predicted mean.
            log_variance: natural logarithm of the predicted variance.
            target: what was observed.
            weight: non-negative, broadcastable, or None.
        """
        log_variance = log_variance.clamp(self.min_log_variance, self.max_log_variance)
        nats = 0.5 * (log_variance + (target - mean).square() * torch.exp(-log_variance))
        return weighted_mean(nats, weight)


class MultiResolutionSTFTLoss(nn.Module):
    """Spectral convergence plus L1 of log magnitudes, averaged over STFT resolutions; 0 is perfect.

    Source: Yamamoto et al. 2020, "Parallel WaveGAN", equations 3 to 6, with its three resolutions.
    The log magnitude is natural; ``floor`` is added to the power before the root.
    """

    def __init__(
        self,
        n_ffts: tuple[int, ...] = (512, 1024, 2048),
        hop_lengths: tuple[int, ...] = (50, 120, 240),
        win_lengths: tuple[int, ...] = (240, 600, 1200),
        floor: float = TINY,
    ) -> None:
        super().__init__()
        self.resolutions = tuple(zip(n_ffts, hop_lengths, win_lengths, strict=True))
        self.floor = floor
        for index, win_length in enumerate(win_lengths):
            self.register_buffer(f"window_{index}", torch.hann_window(win_length), persistent=False)

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Return the loss of waveforms (B, samples), each longer than half the largest n_fft."""
        total = estimate.new_zeros(())
        for index, (n_fft, hop_length, win_length) in enumerate(self.resolutions):
            window = self.get_buffer(f"window_{index}")
            e, t = (
                torch.stft(
                    waveform,
                    n_fft,
                    hop_length=hop_length,
                    win_length=win_length,
                    window=window,
                    return_complex=True,
                )
                for waveform in (estimate, target)
            )
            e_magnitude = (e.real.square() + e.imag.square() + self.floor).sqrt()
            t_magnitude = (t.real.square() + t.imag.square() + self.floor).sqrt()
            gap = torch.linalg.vector_norm(t_magnitude - e_magnitude, dim=(1, 2))
            size = torch.linalg.vector_norm(t_magnitude, dim=(1, 2))
            convergence = (gap / size.clamp_min(TINY)).mean()
            total = total + convergence + F.l1_loss(e_magnitude.log(), t_magnitude.log())
        return total / len(self.resolutions)


class NegativeSiSdr(nn.Module):
    """Minus the scale-invariant signal-to-distortion ratio, in dB; lower is better.

    Source: Le Roux et al. 2019, "SDR - half-baked or well done?", equation 5. Both signals are
    made zero-mean first, as in its section 3; the ratio is bounded to +-``bound_db``.
    """

    def __init__(self, bound_db: float = 100.0) -> None:
        super().__init__()
        self.bound_db = bound_db

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Return the loss of waveforms (..., samples), averaged over all but the last axis."""
        estimate = estimate - estimate.mean(-1, keepdim=True)
        target = target - target.mean(-1, keepdim=True)
        energy = target.square().sum(-1, keepdim=True)
        scale = (estimate * target).sum(-1, keepdim=True) / energy.clamp_min(TINY)
        kept = scale * target
        signal = kept.square().sum(-1)
        distortion = (estimate - kept).square().sum(-1)
        bound = math.pow(10.0, -self.bound_db / 10.0)
        signal_db = 10.0 * torch.log10(signal + bound * distortion + TINY**2)
        distortion_db = 10.0 * torch.log10(distortion + bound * signal + TINY**2)
        return (distortion_db - signal_db).mean()
