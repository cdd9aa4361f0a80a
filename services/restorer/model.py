"""The two models of the restorer.

Recogniser: convolutional recurrent network (Cakir et al. 2017, "Convolutional recurrent neural
networks for polyphonic sound event detection"), with attention pooling over time (Kong et al.
2018). It answers per label whether it sounds in a region, and whether nothing does.

Inpainter: gated convolutions (Yu et al. 2019, "Free-form image inpainting with gated
convolution", equation 3) in a two-level U. It departs from the source in that it corrects a prior
interpolated from the known bins instead of drawing from nothing, that its grid is folded into
channels, and that it predicts a mean and a log-variance, trained by likelihood instead of a GAN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.features import ANALYSIS_RATE_HZ, LogMel
from services.restorer.config import InpainterConfig, RecogniserConfig

NORM_MEAN = -6.0
NORM_SCALE = 4.0
"""Log-mel values are shifted and scaled by these before the first layer."""

LEAK = 0.2
"""Slope of the gated convolutions below zero; ELU, as in the source, takes a third of the time."""


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, then pooling."""

    def __init__(self, c_in: int, c_out: int, pool: tuple[int, int]) -> None:
        super().__init__()
        self.first = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(c_out)
        self.second = nn.Conv2d(c_out, c_out, 3, padding=1, groups=max(1, c_out // 16), bias=False)
        self.second_norm = nn.BatchNorm2d(c_out)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first_norm(self.first(x)))
        x = F.avg_pool2d(x, self.pool)
        return F.relu(self.second_norm(self.second(x)))


class Recogniser(nn.Module):
    """Which labels sound in a stretch of audio; the last output says that none does."""

    def __init__(self, config: RecogniserConfig) -> None:
        super().__init__()
        self.config = config
        self.n_outputs = len(config.labels) + 1
        self.log_mel = LogMel(ANALYSIS_RATE_HZ, config.n_fft, config.hop_length, config.n_mels)
        widths = (1, *config.channels)
        pools = ((2, 2), (2, 2), (4, 2), (4, 1))
        self.blocks = nn.ModuleList(
            ConvBlock(c_in, c_out, pool)
            for c_in, c_out, pool in zip(widths, widths[1:], pools, strict=False)
        )
        self.gru = nn.GRU(widths[-1], config.hidden, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.2)
        self.attention = nn.Linear(2 * config.hidden, self.n_outputs)
        self.classify = nn.Linear(2 * config.hidden, self.n_outputs)

    def features(self, waveform: Tensor) -> Tensor:
        """Return the log-mel (B, n_mels, T) of waveforms (B, samples) at 32 kHz."""
        return self.log_mel(waveform)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Return logits (B, K + 1) of log-mel features (B, n_mels, T), T >= 8."""
        x = ((log_mel - NORM_MEAN) / NORM_SCALE).unsqueeze(1)  # (B, 1, F, T)
        for block in self.blocks:
            x = block(x)
        x = x.mean(2).transpose(1, 2)  # (B, T / 8, channels)
        x = self.dropout(self.gru(x)[0])  # (B, T / 8, 2 hidden)
        weight = torch.softmax(self.attention(x), dim=1)
        return (weight * self.classify(x)).sum(1)


def heard(logits: Tensor) -> Tensor:
    """Return the probability (B, K) per label that it sounds and the stretch is not empty."""
    probability = torch.sigmoid(logits)
    return probability[:, :-1] * (1.0 - probability[:, -1:])


class GatedConv(nn.Module):
    """Leaky ReLU of features times sigmoid of a gate, both from one 3x3 convolution."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        # dilated along time only: a hole is long in time
        self.conv = nn.Conv2d(
            c_in,
            2 * c_out,
            3,
            stride=stride,
            padding=(1, dilation),
            dilation=(1, dilation),
        )

    def forward(self, x: Tensor) -> Tensor:
        features, gate = self.conv(x).chunk(2, dim=1)
        return F.leaky_relu(features, LEAK) * torch.sigmoid(gate)


@dataclass(frozen=True)
class Fill:
    """What the inpainter expects: mean and log-variance of the log-magnitude, both (B, F, T)."""

    mean: Tensor
    log_variance: Tensor


class Inpainter(nn.Module):
    """Corrects the prior of masked bins from what surrounds them."""

    N_INPUTS = 4

    def __init__(self, config: InpainterConfig) -> None:
        super().__init__()
        self.config = config
        folded = config.fold_bins * config.fold_frames
        width, deep = config.width, config.deep_width
        self.stem = GatedConv(self.N_INPUTS * folded + 1, width)
        self.shallow = nn.ModuleList([GatedConv(width, width), GatedConv(width, width)])
        self.down = GatedConv(width, deep, stride=2)
        self.deep = nn.ModuleList(GatedConv(deep, deep, dilation=d) for d in config.dilations)
        self.up = GatedConv(deep + width, width)
        self.head = nn.Conv2d(width, 2 * folded, 3, padding=1)
        nn.init.zeros_(self.head.weight)  # starts as the prior itself
        nn.init.zeros_(self.head.bias)

    def forward(
        self, log_magnitude: Tensor, mask: Tensor, prior: Fill, replace: Tensor, low_bin: Tensor
    ) -> Fill:
        """Return the fill of every bin; it is meant only where ``replace`` is 1.

        Args:
            log_magnitude: (B, F, T) natural logarithm, about zero mean per item.
            mask: (B, F, T) removal mask in [0, 1].
            prior: what interpolation in time expects, same shift as ``log_magnitude``.
            replace: (B, F, T) in {0, 1}: bins whose ``log_magnitude`` must not be seen.
            low_bin: (B,) index of the first bin on the 32 kHz grid, for patches of a part.
        """
        bins, frames = log_magnitude.shape[-2:]
        seen = torch.where(replace > 0, prior.mean, log_magnitude)
        inputs = torch.stack(
            [seen / 2.0, mask, prior.mean / 2.0, prior.log_variance / 2.0], dim=1
        )  # (B, 4, F, T)
        x, rows, columns = self._fold(inputs)
        height = torch.arange(rows, device=x.device, dtype=x.dtype) * self.config.fold_bins
        height = (low_bin[:, None] + height) / 512.0 - 0.5  # (B, rows): position in the spectrum
        x = torch.cat([x, height[:, None, :, None].expand(-1, 1, -1, columns)], dim=1)
        x = self.stem(x)
        for layer in self.shallow:
            x = x + layer(x)
        skip = x
        x = self.down(x)
        for layer in self.deep:
            x = x + layer(x)
        x = F.interpolate(x, scale_factor=2, mode="nearest")[:, :, :rows, :columns]
        x = self.up(torch.cat([x, skip], dim=1))
        mean, spread = self._unfold(self.head(x), bins, frames)
        bound = self.config.max_delta
        return Fill(
            mean=prior.mean + bound * torch.tanh(mean / bound),
            log_variance=prior.log_variance + bound * torch.tanh(spread / bound),
        )

    def _fold(self, x: Tensor) -> tuple[Tensor, int, int]:
        """Fold (B, C, F, T) to (B, C * folded, rows, columns), padded by its edge."""
        by, over = self.config.fold_bins, self.config.fold_frames
        pad_f, pad_t = -x.shape[2] % (2 * by), -x.shape[3] % (2 * over)
        x = F.pad(x, (0, pad_t, 0, pad_f), mode="replicate")
        batch, channels, bins, frames = x.shape
        rows, columns = bins // by, frames // over
        x = x.reshape(batch, channels, rows, by, columns, over).permute(0, 1, 3, 5, 2, 4)
        return x.reshape(batch, channels * by * over, rows, columns), rows, columns

    def _unfold(self, x: Tensor, bins: int, frames: int) -> tuple[Tensor, Tensor]:
        """Undo ``_fold`` of two channels: (B, 2 * folded, rows, columns) to two (B, F, T)."""
        by, over = self.config.fold_bins, self.config.fold_frames
        batch, _, rows, columns = x.shape
        x = x.reshape(batch, 2, by, over, rows, columns).permute(0, 1, 4, 2, 5, 3)
        x = x.reshape(batch, 2, rows * by, columns * over)[:, :, :bins, :frames]
        return x[:, 0], x[:, 1]
