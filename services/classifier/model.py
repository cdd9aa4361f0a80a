"""The hybrid classifier: a convolutional and a patch-transformer branch, fused by a learned gate.

Sources: residual branch, He et al. 2016 (basic block); patch branch, Gong et al. 2021, "AST", with
the positions from a depthwise convolution instead of a table (Chu et al. 2021, "Conditional
positional encodings"), so that clips of any length fit; gate, Arevalo et al. 2017, "Gated
multimodal units". Both branches end on one grid of cells (16 mel bands x 8 frames), where the
foreground mask weights a second pooling beside the plain one. Letters: B batch, F mel bands,
T frames, f = F / 16 and t = T / 8 cells, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from common.features import LogMel
from services.classifier.config import CELL_BANDS, CELL_FRAMES, Config

MASK_FLOOR = 0.05
"""Added to the mask's weights: where nothing is foreground, all cells weigh the same."""

RARE_LOGIT = -3.0


@dataclass(frozen=True)
class Scores:
    """Logits. ``clip`` (B, K) of the whole input, ``segments`` (B, K, t) of each 80 ms.

    ``branches`` are the (B, K) logits of each branch alone, for the auxiliary losses.
    """

    clip: Tensor
    segments: Tensor
    branches: tuple[Tensor, Tensor]


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; the first has the stride."""

    def __init__(self, c_in: int, c_out: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(stride), nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, c_out, F / stride, T / stride) of (B, c_in, F, T)."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))

    def fuse(self) -> None:
        """Fold the norms into the convolutions, for inference only."""
        self.conv1, self.norm1 = fuse_conv_bn_eval(self.conv1, self.norm1), nn.Identity()
        self.conv2, self.norm2 = fuse_conv_bn_eval(self.conv2, self.norm2), nn.Identity()
        pool, conv, norm = self.shortcut
        self.shortcut = nn.Sequential(pool, fuse_conv_bn_eval(conv, norm))


class ConvBranch(nn.Module):
    """A narrow residual network."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        c1, c2, c3, c4 = channels
        self.stem = nn.Sequential(
            nn.Conv2d(1, c1, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(c1), nn.ReLU()
        )  # (B, c1, F/2, T/2)
        self.block1 = ResidualBlock(c1, c2, (2, 2))  # (B, c2, F/4, T/4)
        self.block2 = ResidualBlock(c2, c3, (2, 2))  # (B, c3, F/8, T/8)
        self.block3 = ResidualBlock(c3, c4, (2, 1))  # (B, c4, F/16, T/8)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, c4, f, t) of (B, 1, F, T)."""
        return self.block3(self.block2(self.block1(self.stem(x))))

    def fuse(self) -> None:
        """Fold the norms into the convolutions, for inference only."""
        conv, norm, relu = self.stem
        self.stem = nn.Sequential(fuse_conv_bn_eval(conv, norm), relu)
        for block in (self.block1, self.block2, self.block3):
            block.fuse()


class AttentionLayer(nn.Module):
    """One pre-norm transformer layer over all cells."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 3 * width),
            nn.GELU(),
            nn.Linear(3 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, cells, width) of (B, cells, width)."""
        B, cells, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(B, cells, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, cells, width / heads)
        if self.training:
            # written out: on a CPU its gradient is twice as fast as the fused kernel's
            scores = (q * (width / self.heads) ** -0.5) @ k.transpose(2, 3)
            y = scores.softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(B, cells, width))
        return x + self.mlp(self.norm2(x))


class PatchBranch(nn.Module):
    """Patches of one cell each, embedded linearly and related by attention."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.patch_width
        cell = (CELL_BANDS, CELL_FRAMES)
        self.embed = nn.Conv2d(1, width, cell, stride=cell)
        self.band = nn.Parameter(torch.zeros(1, width, config.mask_bands, 1))
        self.position = nn.Conv2d(width, width, (3, 5), padding=(1, 2), groups=width)
        self.layers = nn.ModuleList(
            AttentionLayer(width, config.patch_heads) for _ in range(config.patch_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, f, t) of (B, 1, F, T)."""
        x = self.embed(x) + self.band
        x = x + self.position(x)
        B, width, f, t = x.shape
        x = x.flatten(2).transpose(1, 2)  # (B, f * t, width)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x).transpose(1, 2).reshape(B, width, f, t)


class Hybrid(nn.Module):
    """Both branches, their gate and the heads."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        K, width = len(config.labels), config.fused_width
        self.config = config
        self.front = LogMel(config.sample_rate, config.n_fft, config.hop_length, config.n_mels)
        self.bands = nn.BatchNorm1d(config.n_mels)
        self.conv = ConvBranch(config.channels)
        self.patch = PatchBranch(config)
        self.from_conv = nn.Conv2d(config.channels[-1], width, 1)
        self.from_patch = nn.Conv2d(config.patch_width, width, 1)
        self.gate = nn.Conv2d(2 * width, width, 1)
        self.mix = nn.Conv1d(3 * width, width, 3, padding=1)
        self.dropout = nn.Dropout(config.dropout)
        self.clip_head = nn.Linear(5 * width, K)
        self.segment_head = nn.Conv1d(width, K, 1)
        self.conv_head = nn.Linear(width, K)
        self.patch_head = nn.Linear(width, K)
        for head in (self.clip_head, self.segment_head):
            nn.init.constant_(head.bias, RARE_LOGIT)  # at first, nothing sounds

    def features(self, waveform: Tensor) -> Tensor:
        """Return log-mel (B, F, T) of waveforms (B, samples); T a multiple of 8, at least 8.

        The last segment is filled up with silence.
        """
        segment = self.config.segment_samples
        short = -waveform.shape[-1] % segment
        return self.front(F.pad(waveform, (0, short)))[..., :-1]

    def forward(self, logmel: Tensor, mask: Tensor | None = None) -> Scores:
        """Return the scores.

        Args:
            logmel: (B, F, T) from ``features``, T a multiple of 8.
            mask: (B, f, t) probability of foreground per cell, or None for all ones.
        """
        x = self.bands(logmel)[:, None].contiguous(memory_format=torch.channels_last)
        conv = self.from_conv(self.conv(x))  # (B, width, f, t)
        patch = self.from_patch(self.patch(x))  # (B, width, f, t)
        gate = torch.sigmoid(self.gate(torch.cat([conv, patch], 1)))
        cells = F.relu(gate * conv + (1.0 - gate) * patch)  # (B, width, f, t)
        weight = torch.ones_like(cells[:, 0]) if mask is None else mask
        weight = weight[:, None] + MASK_FLOOR  # (B, 1, f, t)
        masked = (cells * weight).sum(2) / weight.sum(2)  # (B, width, t)
        by_time = torch.cat([cells.mean(2), cells.amax(2), masked], 1)  # (B, 3 width, t)
        segments = F.relu(self.mix(by_time))  # (B, width, t)
        over_all = (cells * weight).sum((2, 3)) / weight.sum((2, 3))  # (B, width)
        pooled = torch.cat(
            [
                cells.mean((2, 3)),
                cells.mean(2).amax(2),
                over_all,
                segments.mean(2),
                segments.amax(2),
            ],
            1,
        )
        return Scores(
            clip=self.clip_head(self.dropout(pooled)),
            segments=self.segment_head(self.dropout(segments)),
            branches=(
                self.conv_head(F.relu(conv).mean((2, 3))),
                self.patch_head(F.relu(patch).mean((2, 3))),
            ),
        )
