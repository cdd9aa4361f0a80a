"""From spectrum and removal mask to the restored spectrum. No files, no streaming.

Per bin: mask below 0.3 untouched, up to 0.8 the gain sqrt(1 - M^2) with the mixture's phase, above
that a magnitude drawn from what the inpainter expects and a phase settled by Griffin-Lim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.restorer.config import (
    BIN_HZ,
    GRIFFIN_LIM_ROUNDS,
    INPAINT_BINS,
    MASK_REPLACE,
    MASK_TOUCH,
)
from services.restorer.model import Fill, Inpainter
from services.restorer.prior import Prior, interpolate_in_time, known_weight
from services.restorer.spectrum import (
    Grid,
    analyse,
    log_magnitude,
    position_noise,
    power_of,
    settle_phase,
    standardised_log,
)

_TINY_POWER = 1e-20
_SAME_CHANNEL = 0.999


@dataclass(frozen=True)
class Expected:
    """What should sound in each bin: mean and standard deviation of ln|X|, (T, F) tensors."""

    mean: Tensor
    std: Tensor


def gain_of(mask: Tensor) -> Tensor:
    """Return the gain in [0, 1] of each bin: 1 below 0.3, else sqrt(1 - M^2)."""
    attenuated = (1.0 - mask.square()).clamp_min(0.0).sqrt()
    return torch.where(mask < MASK_TOUCH, torch.ones_like(mask), attenuated)


def _between_grids(values: np.ndarray, from_hz: np.ndarray, to_hz: np.ndarray) -> np.ndarray:
    """Interpolate (F, T) from one set of rising frequencies to another, edges held."""
    if len(from_hz) == len(to_hz) and np.allclose(from_hz, to_hz):
        return values
    position = np.interp(to_hz, from_hz, np.arange(len(from_hz)))
    low = np.minimum(position.astype(np.int64), len(from_hz) - 2)
    share = (position - low).astype(np.float32)[:, None]
    return (1.0 - share) * values[low] + share * values[low + 1]


def correct(inpainter: Inpainter, level: np.ndarray, mask: np.ndarray, prior: Prior) -> Prior:
    """Return the prior corrected by the inpainter, all (F, T) on the 32 kHz grid or its low part.

    Args:
        inpainter: the model, in eval mode.
        level: log-magnitude, gains of partly masked bins applied.
        mask: removal mask in [0, 1].
        prior: interpolation in time of ``level``.
    """
    device = next(inpainter.parameters()).device
    reference = float(prior.mean.mean())

    def batch(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None].to(device)

    with torch.inference_mode():
        fill = inpainter(
            batch(level - reference),
            batch(mask),
            Fill(batch(prior.mean - reference), batch(prior.log_variance)),
            batch(mask > MASK_REPLACE),
            torch.zeros(1, device=device),
        )
    return Prior(fill.mean[0].cpu().numpy() + reference, fill.log_variance[0].cpu().numpy())


def expect(inpainter: Inpainter | None, power: Tensor, mask: Tensor, grid: Grid) -> Expected:
    """Return what should sound in every bin.

    Args:
        inpainter: the model, or None for interpolation in time alone.
        power: (T, F) |X|^2, the mean of all channels, on the native grid.
        mask: (T, F) removal mask in [0, 1].
        grid: the native grid.
    """
    scale = grid.n_fft * grid.sample_rate  # power per hertz is alike at every rate
    level = (log_magnitude(power / scale * _REFERENCE) + gain_of(mask).clamp_min(1e-3).log()).T
    level_np, mask_np = level.numpy(), mask.T.numpy()
    prior = interpolate_in_time(level_np, known_weight(mask_np), grid.hop_s)
    mean, log_variance = prior.mean, prior.log_variance
    if inpainter is not None:
        n_bins = min(INPAINT_BINS, int(grid.freqs_hz[-1] / BIN_HZ + 1e-6) + 1)
        model_hz = np.arange(n_bins) * BIN_HZ
        on_model = [
            _between_grids(values, grid.freqs_hz, model_hz)
            for values in (level_np, mask_np, mean, log_variance)
        ]
        before = Prior(on_model[2], on_model[3])
        after = correct(inpainter, on_model[0], on_model[1], before)
        native = grid.freqs_hz <= model_hz[-1] + BIN_HZ  # above it the prior stands
        to_hz = grid.freqs_hz[native]
        mean, log_variance = mean.copy(), log_variance.copy()
        mean[native] += _between_grids(after.mean - before.mean, model_hz, to_hz)
        log_variance[native] += _between_grids(
            after.log_variance - before.log_variance, model_hz, to_hz
        )
    offset = 0.5 * np.log(scale / _REFERENCE)
    return Expected(
        mean=torch.from_numpy(np.ascontiguousarray(mean.T)) + float(offset),
        std=torch.from_numpy(np.ascontiguousarray(np.exp(0.5 * log_variance).T)),
    )


_REFERENCE = 1024.0 * 32_000.0
"""``n_fft * sample_rate`` of the grid the inpainter was trained on."""


@dataclass(frozen=True)
class ChannelTraits:
    """How one channel differs from the mean of all, per bin (F,), taken from untouched bins.

    ``level`` in nepers; ``coherence`` complex, at most 1 in magnitude.
    """

    level: Tensor
    coherence: Tensor


def channel_traits(spectrum: Tensor, mid: Tensor, power: Tensor, mask: Tensor) -> ChannelTraits:
    """Return the traits of a channel with ``spectrum`` (T, F) against ``mid`` (T, F) complex.

    Args:
        spectrum: of the channel.
        mid: of the mean of all channels.
        power: (T, F) mean power of all channels.
        mask: (T, F); only bins below 0.3 are looked at, or all where a bin is never free.
    """
    free = (mask < MASK_TOUCH).to(power.dtype)
    free = torch.where(free.sum(0, keepdim=True) > 0, free, torch.ones_like(free))
    own = (free * power_of(spectrum)).sum(0)
    level = 0.5 * torch.log((own + _TINY_POWER) / ((free * power).sum(0) + _TINY_POWER))
    middle = (free * power_of(mid)).sum(0)
    cross = (free * spectrum * mid.conj()).sum(0)
    coherence = cross / (own * middle + _TINY_POWER**2).sqrt().clamp_min(_TINY_POWER)
    size = coherence.abs()
    alike = size > _SAME_CHANNEL  # copies of one channel stay copies
    return ChannelTraits(level, torch.where(alike, coherence / size.clamp_min(1e-9), coherence))


def restore_channel(
    spectrum: Tensor,
    mask: Tensor,
    expected: Expected,
    grid: Grid,
    *,
    first_frame: int,
    channel: int = 0,
    traits: ChannelTraits | None = None,
    draw: bool = True,
    rounds: int = GRIFFIN_LIM_ROUNDS,
) -> Tensor:
    """Return the restored spectrum (T, F) of one channel; bins below 0.3 are the same object's.

    Args:
        spectrum: (T, F) complex, the recording.
        mask: (T, F) removal mask in [0, 1].
        expected: what should sound, for the mean of the channels.
        grid: the native grid.
        first_frame: position of the first frame in the recording: the seed of what is drawn.
        channel: its index: an independent draw as far as ``traits`` allow.
        traits: how the channel differs from the mean; None for a single channel.
        draw: False puts the mean magnitude instead of a draw.
        rounds: Griffin-Lim rounds.
    """
    replace = mask > MASK_REPLACE
    kept = spectrum * gain_of(mask)
    if not bool(replace.any()):
        return kept
    start, stop = grid.samples_of(first_frame, first_frame + spectrum.shape[0])
    noise = analyse(position_noise(start, stop, stream=0), grid)
    mean = expected.mean
    if traits is not None:
        own = analyse(position_noise(start, stop, stream=1 + channel), grid)
        alike = traits.coherence
        noise = alike * noise + (1.0 - power_of(alike)).clamp_min(0.0).sqrt() * own
        mean = mean + traits.level
    drawn = mean + expected.std * standardised_log(noise, grid) if draw else mean
    # the event leads here: what lies under it cannot be much louder than both together
    ceiling = torch.log(spectrum.abs() + 1e-9)
    magnitude = torch.exp(torch.minimum(drawn, ceiling))
    unit = noise / noise.abs().clamp_min(1e-9)
    return settle_phase(torch.where(replace, magnitude * unit, kept), replace, grid, rounds)
