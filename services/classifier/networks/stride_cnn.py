"""`stride_cnn`: four convolutions that each halve the spectrogram, average pooling, a linear head.

Source: Garriga Munoz 2024, "Deep learning techniques for audio recognition and classification",
a thesis: four blocks of convolution (stride 2), ReLU and batch norm in this order, with 8, 16, 32
and 64 channels, He initialisation with slope 0.1 and biases of zero; average pooling; one linear
layer. Of the kernels it shows the first, 5 x 5; the others we take as 3 x 3. It hears stereo of
44.1 kHz and varies mels and window together: 32 and 512, 64 and 1024, 128 and 2048.

Where we depart:

- Mono of 32 kHz with 64 mels, and no text encoder beside it, which the thesis plans and leaves out.
- A second head scores the columns of the last map, one per 16 frames, read at the cells between
  them; the thesis only knows whole clips.
- Where there is a foreground mask, it weights the average. Without one it is the thesis' own.
- Dropout before the heads.

27 k weights as in the thesis, 1.7 M multiply-adds per second of audio; ``channels`` makes it wider.
Letters: B batch, F mel bands, T frames, f = F / 16 and t = T / 8 cells, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.classifier.config import CELL_FRAMES, Config, StrideCnnSettings
from services.classifier.networks.cells import head, mean_of_all, mean_of_bands, on_cells
from services.classifier.networks.scores import Scores

STEP_FRAMES = 16
"""Frames from one column of the last map to the next; the first is centred on frame 0."""


class StrideBlock(nn.Sequential):
    """Convolution of stride 2, ReLU, norm: (B, c_in, F, T) to (B, c_out, F/2, T/2), rounded up."""

    def __init__(self, c_in: int, c_out: int, kernel: int) -> None:
        conv = nn.Conv2d(c_in, c_out, kernel, stride=2, padding=kernel // 2)
        nn.init.kaiming_normal_(conv.weight, a=0.1)
        nn.init.zeros_(conv.bias)
        super().__init__(conv, nn.ReLU(), nn.BatchNorm2d(c_out))


class StrideCnn(nn.Module):
    """Four blocks, average, heads."""

    def __init__(self, config: Config, settings: StrideCnnSettings) -> None:
        super().__init__()
        (c1, c2, c3, c4), K = settings.channels, len(config.labels)
        self.block1 = StrideBlock(1, c1, 5)
        self.block2 = StrideBlock(c1, c2, 3)
        self.block3 = StrideBlock(c2, c3, 3)
        self.block4 = StrideBlock(c3, c4, 3)
        self.dropout = nn.Dropout(config.dropout)
        self.clip_head = head(c4, K)
        self.segment_head = head(c4, K)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Scores:
        """Return the scores.

        Args:
            x: (B, 1, F, T) log-mel, each band normalised, T a multiple of 8.
            mask: (B, f, t) probability of foreground per cell, or None for all ones.
        """
        n_cells = x.shape[3] // CELL_FRAMES
        maps = self.block4(self.block3(self.block2(self.block1(x))))  # (B, c4, f, ceil(T/16))
        if mask is not None:
            mask = F.adaptive_avg_pool2d(mask, maps.shape[2:])
        columns = mean_of_bands(maps, mask)  # (B, c4, ceil(T/16))
        by_time = on_cells(columns, STEP_FRAMES, 0.0, n_cells)  # (B, c4, t)
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
            "block1": self.block1,
            "block2": self.block2,
            "block3": self.block3,
            "block4": self.block4,
        }

    def fuse(self) -> None:
        """Lay the convolutions out for speed, for inference only.

        The norms stay: they come after the ReLU, and the next convolution pads with zeros, so
        that neither neighbour can take them in.
        """
        self.to(memory_format=torch.channels_last)
