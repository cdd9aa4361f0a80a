"""The two architectures of the enhancer: the denoiser and the generator of the top band.

The denoiser is a convolutional U in frequency with a recurrent layer over time. It sees the log-mel
spectrogram and the segmenter's mask side by side and says, per band and frame, how much of it is
foreground. Rate, level and channels of the recording never pass through it.

The generator is a chain of residual-in-residual dense blocks on a frequency-folded grid. It sees
the log magnitudes of the upsampled recording, with the empty top filled by copies of the band below
it (the excitation), and says how loud every bin of the top has to be. The phase is the
excitation's. Only the top band is synthesised; the waveform it is added to is left as it is.

Sources. Denoiser: Ronneberger et al. 2015, "U-Net" (skips across the U); Tan and Wang 2018, "A
convolutional recurrent neural network for real-time speech enhancement" (recurrence at the bottom);
Valin 2018, "A hybrid DSP/deep learning approach to real-time full-band speech enhancement" (gains
on bands). Generator: Wang et al. 2018, "ESRGAN" (section 3.1: no batch normalisation, residuals
scaled by 0.2); Dietz et al. 2002, "Spectral band replication" (the excitation). We depart from
ESRGAN in folding neighbouring frequency bins into channels, so that a position sees its whole band
at once and the grid stays small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.enhancer.config import N_BANDS, DenoiserConfig, GeneratorConfig

LOG_SCALE = 4.0
"""Natural logarithms are divided by this on their way into a network, and back."""
POWER_FLOOR = 1e-11
"""Added to power before the logarithm; the STFT is scaled so that a full-scale sine is near 0."""
RESIDUAL_SCALE = 0.2
COORDINATE_HZ = 24_000.0
GUARD_BINS = 8
"""The excitation's source band ends this many bins below the cut-off, where nothing rolls off."""


class ConvBlock(nn.Module):
    """3 x 3 convolution, batch normalisation, ReLU; halves the bands if ``stride`` is 2."""

    def __init__(self, ins: int, outs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(ins, outs, 3, stride=(stride, 1), padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ins, F, T) to (B, outs, F // stride, T)."""
        return F.relu(self.norm(self.conv(x)))


class Denoiser(nn.Module):
    """Band gains as logits."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        ins = (2, *config.channels[:-1])
        self.down = nn.ModuleList(
            ConvBlock(a, b, stride=1 if i == 0 else 2)
            for i, (a, b) in enumerate(zip(ins, config.channels, strict=True))
        )
        bottom = config.channels[-1] * (N_BANDS >> (len(config.channels) - 1))
        self.squeeze = nn.Linear(bottom, config.hidden)
        self.gru = nn.GRU(config.hidden, config.hidden, batch_first=True, bidirectional=True)
        self.unsqueeze = nn.Linear(2 * config.hidden, bottom)
        # from the bottom up: what comes from below plus the skip, to the next width
        widths = list(reversed(config.channels))
        self.up = nn.ModuleList(
            ConvBlock(2 * width, widths[min(i + 1, len(widths) - 1)])
            for i, width in enumerate(widths)
        )
        self.leave = nn.Conv2d(config.channels[0], 1, kernel_size=1)

    def forward(self, log_mel: Tensor, mask: Tensor) -> Tensor:
        """Return logits of the gains.

        Args:
            log_mel: (B, 64, T) natural log power.
            mask: (B, 64, T) probability of foreground in [0, 1]; 0.5 where nothing is known.

        Returns:
            (B, 64, T); their sigmoid is the gain.
        """
        level = log_mel.mean(dim=(1, 2), keepdim=True)
        x = torch.stack([(log_mel - level) / LOG_SCALE, 2.0 * mask - 1.0], dim=1)  # (B, 2, 64, T)
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        B, channels, bands, T = x.shape  # (B, 48, 8, T)
        rows = x.permute(0, 3, 1, 2).reshape(B, T, channels * bands)
        remembered, _ = self.gru(F.relu(self.squeeze(rows)))
        rows = F.relu(self.unsqueeze(remembered))
        x = rows.reshape(B, T, channels, bands).permute(0, 2, 3, 1)
        for i, block in enumerate(self.up):
            skip = skips[-1 - i]
            if x.shape[2] != skip.shape[2]:
                x = F.interpolate(x, scale_factor=(2.0, 1.0), mode="nearest")
            x = block(torch.cat([x, skip], dim=1))
        return self.leave(x).squeeze(1)


class DenseBlock(nn.Module):
    """Convolutions that each see all before them; the last returns to ``width`` channels."""

    def __init__(self, width: int, growth: int, convs: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(
                width + i * growth, growth if i < convs - 1 else width, kernel_size=3, padding=1
            )
            for i in range(convs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, F, T) to the same."""
        seen = [x]
        for conv in self.convs[:-1]:
            seen.append(F.leaky_relu(conv(torch.cat(seen, dim=1)), 0.2))
        return x + RESIDUAL_SCALE * self.convs[-1](torch.cat(seen, dim=1))


class ResidualInResidual(nn.Module):
    """A chain of dense blocks with a residual around it."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.dense = nn.Sequential(
            *(
                DenseBlock(config.width, config.growth, config.convs_per_dense)
                for _ in range(config.dense_per_block)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + RESIDUAL_SCALE * self.dense(x)


@dataclass(frozen=True)
class Generated:
    """What the generator made. ``waveform`` (B, samples) is the top band alone."""

    waveform: Tensor
    log_magnitude: Tensor  # (B, bins, T), natural; of the mixture of both bands
    cutoff_bin: int


class Generator(nn.Module):
    """Top band of an upsampled recording."""

    window: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", torch.hann_window(config.n_fft).sqrt(), persistent=False)
        inputs = config.fold + 2  # the bins of a position, its frequency, its known share
        self.enter = nn.Conv2d(inputs, config.width, kernel_size=3, padding=1)
        self.body = nn.Sequential(*(ResidualInResidual(config) for _ in range(config.blocks)))
        self.merge = nn.Conv2d(config.width, config.width, kernel_size=3, padding=1)
        self.leave = nn.Conv2d(2 * config.width, config.fold, kernel_size=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    @property
    def bins(self) -> int:
        """Bins on the grid: all but the one at half the sample rate."""
        return self.config.n_fft // 2

    def cutoff_bin(self, rate_in: int, sample_rate: int) -> int:
        """Return the first bin to be generated for a recording upsampled from ``rate_in``."""
        cutoff_hz = self.config.cutoff_share * rate_in / 2
        return round(cutoff_hz * self.config.n_fft / sample_rate)

    def spectrum(self, waveform: Tensor) -> Tensor:
        """Return the complex grid (B, bins, samples // hop + 1) of waveforms (B, samples)."""
        grid = torch.stft(
            waveform,
            self.config.n_fft,
            hop_length=self.config.hop_length,
            window=self.window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        return grid[:, :-1] * (2.0 / self.config.n_fft)

    def forward(self, upsampled: Tensor, rate_in: int, sample_rate: int) -> Generated:
        """Generate the top band.

        Args:
            upsampled: (B, samples) at ``sample_rate``, samples at least n_fft // 2 + 1.
            rate_in: Hz, what it was upsampled from.
            sample_rate: Hz.
        """
        cut = self.cutoff_bin(rate_in, sample_rate)
        known = self.spectrum(upsampled)  # (B, bins, T)
        excited = torch.cat([known[:, :cut], self._excitation(known, cut)], dim=1)
        log_excited = log_magnitude(excited)
        gain = self._log_gain(log_excited, cut, sample_rate)  # (B, bins, T)
        # no bin of the top gets louder than the loudest of its frame below: nothing can run away
        loudest = log_excited[:, :cut].amax(dim=1, keepdim=True)
        bounded = torch.minimum(gain[:, cut:], loudest - log_excited[:, cut:])
        top = excited[:, cut:] * torch.exp(bounded)
        # what rolls off above the cut-off stays in the mixture
        total = torch.cat([known[:, :cut], known[:, cut:] + top], dim=1)
        return Generated(self._waveform(top, cut, upsampled.shape[-1]), log_magnitude(total), cut)

    def _excitation(self, known: Tensor, cut: int) -> Tensor:
        """Return (B, bins - cut, T): the upper half of the known band, repeated to the top.

        Moving a band up by m bins turns the phase from frame to frame by 2 pi m hop / n_fft, which
        is a multiple of 2 pi for the m chosen here: the copies stay continuous.
        """
        step = self.config.n_fft // self.config.hop_length
        end = cut - GUARD_BINS
        patch = max(step, (end // 2) // step * step)
        target = torch.arange(cut, self.bins, device=known.device)
        shift = torch.div(target - end, patch, rounding_mode="floor") + 1
        return known[:, target - shift * patch]

    def _log_gain(self, log_excited: Tensor, cut: int, sample_rate: int) -> Tensor:
        """Return natural log gains (B, bins, T)."""
        fold = self.config.fold
        B, bins, T = log_excited.shape
        level = log_excited[:, :cut].mean(dim=(1, 2), keepdim=True)
        folded = ((log_excited - level) / LOG_SCALE).reshape(B, bins // fold, fold, T)
        folded = folded.transpose(1, 2)  # (B, fold, bins // fold, T)
        device = folded.device
        hz = (torch.arange(bins, device=device) + 0.5) * (sample_rate / self.config.n_fft)
        coordinate = (hz / COORDINATE_HZ).reshape(-1, fold).mean(1)
        unknown = (torch.arange(bins, device=device) >= cut).float().reshape(-1, fold).mean(1)
        extra = torch.stack([coordinate, unknown])[None, :, :, None].expand(B, -1, -1, T)
        entered = self.enter(torch.cat([folded, extra], dim=1))  # (B, width, bins // fold, T)
        merged = self.merge(self.body(entered))
        out = self.leave(torch.cat([F.leaky_relu(entered, 0.2), F.leaky_relu(merged, 0.2)], dim=1))
        return out.transpose(1, 2).reshape(B, bins, T) * LOG_SCALE

    def _waveform(self, top: Tensor, cut: int, samples: int) -> Tensor:
        """Return (B, samples) of the top band (B, bins - cut, T)."""
        grid = F.pad(torch.view_as_real(top), (0, 0, 0, 0, cut, 1))
        return torch.istft(
            torch.view_as_complex(grid.contiguous()) * (self.config.n_fft / 2.0),
            self.config.n_fft,
            hop_length=self.config.hop_length,
            window=self.window,
            center=True,
            length=samples,
        )


def log_magnitude(grid: Tensor) -> Tensor:
    """Return the natural log magnitude of a complex grid, floored at -110 dB."""
    return 0.5 * torch.log(grid.real.square() + grid.imag.square() + POWER_FLOOR)
