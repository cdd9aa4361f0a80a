"""`resnet`: residual blocks over the log-mel spectrogram, global average pooling, a linear head.

Source: Samarth, Soni and Shah 2026, "Audio classification using deep convolutional neural
networks": a convolution with batch norm, four stages of residual blocks of rising width, global
average pooling, one fully connected layer; 18 to 34 layers, 47 MB. Its block is the basic block of
He et al. 2016; its file is as large as that of a ResNet-18 of width 64. It hears 128 mels of
22.05 kHz, n_fft 2048, hop 512.

Where we depart:

- ``width`` 16 instead of 64: 0.70 M weights instead of 11.2 M, to be trained on a CPU.
- Strides: the stem halves both axes, the second and third stage too, the fourth the bands only. So
  the last map lies on the grid of cells (16 bands x 8 frames), and each column can be scored.
- 64 mels of 32 kHz, a logarithm with a floor and norms per band over all clips, as the others have
  them, not log(1 + S) normalised per spectrogram; PyTorch's initialisation, not He's.
- A second head scores the columns, and its loss is added; the paper only knows whole clips.
- Where there is a foreground mask, it weights the average. Without one it is the paper's.
- Dropout before the heads.

67 M multiply-adds per second of audio. Letters: B batch, F mel bands, T frames, f = F / 16 and
t = T / 8 cells, K classes, w width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from services.classifier.config import Config, ResNetSettings
from services.classifier.networks.cells import head, mean_of_all, mean_of_bands
from services.classifier.networks.scores import Scores

STRIDES = ((1, 1), (2, 2), (2, 2), (2, 1))
"""Of each stage's first block, (bands, frames)."""


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut: the identity where sizes allow, else 1 x 1."""

    def __init__(self, c_in: int, c_out: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.shortcut = nn.Sequential()
        if c_in != c_out or stride != (1, 1):
            self.shortcut = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False), nn.BatchNorm2d(c_out)
            )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, c_out, F / stride, T / stride) of (B, c_in, F, T)."""
        return self.relu(self.residual(x) + self.shortcut(x))

    def fuse(self) -> None:
        """Fold the norms into the convolutions, for inference only."""
        conv1, norm1, relu, conv2, norm2 = self.residual
        self.residual = nn.Sequential(
            fuse_conv_bn_eval(conv1, norm1), relu, fuse_conv_bn_eval(conv2, norm2)
        )
        if len(self.shortcut):
            self.shortcut = nn.Sequential(fuse_conv_bn_eval(*self.shortcut))


class ResNet(nn.Module):
    """Stem, four stages, average, heads."""

    def __init__(self, config: Config, settings: ResNetSettings) -> None:
        super().__init__()
        w, K = settings.width, len(config.labels)
        self.stem = nn.Sequential(
            nn.Conv2d(1, w, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(w), nn.ReLU()
        )  # (B, w, F/2, T/2)
        widths = (w, w, 2 * w, 4 * w, 8 * w)
        self.stage1, self.stage2, self.stage3, self.stage4 = (
            nn.Sequential(
                BasicBlock(widths[n], widths[n + 1], STRIDES[n]),
                *(BasicBlock(widths[n + 1], widths[n + 1], (1, 1)) for _ in range(count - 1)),
            )
            for n, count in enumerate(settings.blocks)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.clip_head = head(8 * w, K)
        self.segment_head = head(8 * w, K)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Scores:
        """Return the scores.

        Args:
            x: (B, 1, F, T) log-mel, each band normalised, T a multiple of 8.
            mask: (B, f, t) probability of foreground per cell, or None for all ones.
        """
        x = self.stage1(self.stem(x))  # (B, w, F/2, T/2)
        x = self.stage2(x)  # (B, 2w, F/4, T/4)
        maps = self.stage4(self.stage3(x))  # (B, 8w, f, t)
        by_time = mean_of_bands(maps, mask)  # (B, 8w, t)
        segments = self.segment_head(self.dropout(by_time).transpose(1, 2)).transpose(1, 2)
        return Scores(
            clip=self.clip_head(self.dropout(mean_of_all(maps, mask))),
            segments=segments,
            branches=(),
            embedding=by_time,
        )

    def feature_stages(self) -> dict[str, nn.Module]:
        """Return the modules whose outputs are maps (B, C, bands, time), in order, by name."""
        return {
            "stem": self.stem,
            "stage1": self.stage1,
            "stage2": self.stage2,
            "stage3": self.stage3,
            "stage4": self.stage4,
        }

    def fuse(self) -> None:
        """Fold the norms into the convolutions and lay these out for speed, for inference only."""
        conv, norm, relu = self.stem
        self.stem = nn.Sequential(fuse_conv_bn_eval(conv, norm), relu)
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            for block in stage:
                block.fuse()
        self.to(memory_format=torch.channels_last)
