"""The noise suppressor: a convolutional U in frequency with a recurrent layer over time.

It sees the log-mel spectrogram and the segmenter's mask side by side and says, per band and frame,
how much of it is foreground. Rate, level and channels of the recording never pass through it.

Sources: Ronneberger et al. 2015, "U-Net" (skips across the U); Tan and Wang 2018, "A convolutional
recurrent neural network for real-time speech enhancement" (recurrence at the bottom); Valin 2018,
"A hybrid DSP/deep learning approach to real-time full-band speech enhancement" (gains on bands).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.enhancer.config import N_BANDS, DenoiserConfig

LOG_SCALE = 4.0
"""Log powers, less the mean of their chunk, are divided by this."""


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
