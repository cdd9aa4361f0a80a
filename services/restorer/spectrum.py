"""The native-rate short-time spectrum: its grid, analysis, synthesis, noise and phase repair.

Frame k is centred on sample k * hop_length of the recording, whatever part of it is analysed, so
that windows of one file share one grid. Spectra are complex (..., T, F), frames before bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from services.restorer.config import FRAME_S, HOPS_PER_FRAME, LOG_FLOOR, RAYLEIGH_LOG_STD

_NOISE_BLOCK = 1 << 16
_SMALL_PRIMES = (2, 3, 5, 7)
_HANN_SQUARED_SUM = 1.5
"""Sum of squared periodic Hann windows at three quarters overlap: 4 * 3/8."""


def _is_smooth(n: int) -> bool:
    for prime in _SMALL_PRIMES:
        while n % prime == 0:
            n //= prime
    return n == 1


@dataclass(frozen=True)
class Grid:
    """The time-frequency grid of one sample rate: frames of close to 32 ms, a quarter apart.

    ``n_fft`` is the multiple of 4 nearest to 32 ms whose prime factors are small: 1024 at 32 kHz,
    1400 at 44.1 kHz, 1536 at 48 kHz.
    """

    sample_rate: int

    @cached_property
    def n_fft(self) -> int:
        wanted = self.sample_rate * FRAME_S / HOPS_PER_FRAME
        candidates = range(max(2, int(0.9 * wanted)), int(1.1 * wanted) + 2)
        return HOPS_PER_FRAME * min(filter(_is_smooth, candidates), key=lambda n: abs(n - wanted))

    @property
    def hop_length(self) -> int:
        return self.n_fft // HOPS_PER_FRAME

    @property
    def hop_s(self) -> float:
        return self.hop_length / self.sample_rate

    @property
    def n_bins(self) -> int:
        return self.n_fft // 2 + 1

    @cached_property
    def freqs_hz(self) -> np.ndarray:
        """Bin frequencies (F,) in hertz, float64."""
        return np.arange(self.n_bins) * (self.sample_rate / self.n_fft)

    @cached_property
    def window(self) -> Tensor:
        return torch.hann_window(self.n_fft)

    def frame_at(self, time_s: float) -> int:
        """Return the frame whose centre is nearest to ``time_s``."""
        return round(time_s * self.sample_rate / self.hop_length)

    def samples_of(self, first_frame: int, stop_frame: int) -> tuple[int, int]:
        """Return the samples [start, stop) that frames [first, stop) look at."""
        half = self.n_fft // 2
        return first_frame * self.hop_length - half, (stop_frame - 1) * self.hop_length + half


def analyse(waveform: Tensor, grid: Grid) -> Tensor:
    """Return spectra (..., T, F) of waveforms (..., samples) that start half a frame early."""
    frames = waveform.unfold(-1, grid.n_fft, grid.hop_length)
    return torch.fft.rfft(frames * grid.window)


def synthesise(spectrum: Tensor, grid: Grid) -> Tensor:
    """Return the waveforms (..., (T + 3) * hop_length) nearest to spectra (..., T, F).

    Source: Griffin and Lim 1984, equation 6. Overlap-add with one fixed scale: linear, and exactly
    zero where the spectrum is zero, which lets a change be added to an untouched recording.
    """
    frames = torch.fft.irfft(spectrum, n=grid.n_fft) * (grid.window / _HANN_SQUARED_SUM)
    count = frames.shape[-2]
    pieces = frames.unflatten(-1, (HOPS_PER_FRAME, grid.hop_length))  # (..., T, 4, hop)
    total = frames.new_zeros(*frames.shape[:-2], count + HOPS_PER_FRAME - 1, grid.hop_length)
    for index in range(HOPS_PER_FRAME):
        total[..., index : index + count, :] += pieces[..., index, :]
    return total.flatten(-2)


def power_of(spectrum: Tensor) -> Tensor:
    """Return |X|^2 of a complex spectrum; faster than by way of |X|."""
    return spectrum.real.square() + spectrum.imag.square()


def log_magnitude(power: Tensor) -> Tensor:
    """Return ln|X| of power |X|^2, floored at -100 dB of one unit."""
    return 0.5 * torch.log(power + LOG_FLOOR)


def position_noise(start: int, stop: int, stream: int) -> Tensor:
    """Return white Gaussian noise, variance 1, of samples [start, stop) of an endless noise.

    The same positions always give the same values, in whatever pieces they are asked for.

    Args:
        start: first sample, may be negative.
        stop: one past the last sample.
        stream: which of the independent noises, at least 0.
    """
    parts = []
    for block in range(start // _NOISE_BLOCK, -(-stop // _NOISE_BLOCK)):
        key = np.array([block & 0xFFFF_FFFF_FFFF_FFFF, stream], dtype=np.uint64)
        values = np.random.Generator(np.random.Philox(key=key)).standard_normal(
            _NOISE_BLOCK, dtype=np.float32
        )
        low = max(start - block * _NOISE_BLOCK, 0)
        high = min(stop - block * _NOISE_BLOCK, _NOISE_BLOCK)
        parts.append(values[low:high])
    return torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, np.float32))


def standardised_log(noise: Tensor, grid: Grid) -> Tensor:
    """Return ln|N| of the spectrum of white noise, shifted and scaled to mean 0, deviation 1.

    For complex Gaussian N of power p: mean (ln p - Euler's constant) / 2, deviation pi / sqrt(24).
    """
    power = grid.n_fft * 3.0 / 8.0  # sum of the squared window
    mean = 0.5 * (math.log(power) - float(np.euler_gamma))
    return (torch.log(noise.abs().clamp_min(1e-9)) - mean) / RAYLEIGH_LOG_STD


def settle_phase(start: Tensor, replace: Tensor, grid: Grid, rounds: int) -> Tensor:
    """Return ``start`` with the phases of the replaced bins made consistent with all others.

    Source: Griffin and Lim 1984, with every bin that is not replaced put back after each round.

    Args:
        start: (..., T, F) complex, first guess; its magnitudes are kept.
        replace: (..., T, F) bool.
        grid: the grid of both.
        rounds: how many rounds; 0 returns ``start``.
    """
    magnitude = start.abs()
    current = start
    for _ in range(rounds):
        again = analyse(synthesise(current, grid), grid)
        unit = again / again.abs().clamp_min(1e-12)
        current = torch.where(replace, magnitude * unit, start)
    return current
