"""`vgg_slat`: a fully convolutional network that scores segments of 128 frames, every 64 frames.

Sources: Mehta, "Audio event classification using deep CNN", whose network is that of Kumar,
Khadkevich and Fuegen 2018, "Knowledge transfer from weakly labeled audio using convolutional neural
network for sound events and scenes". Blocks of 3 x 3 convolutions, each with batch norm and ReLU,
widths 16, 16 | 32, 32 | 64, 64 | 128, 128 | 256, 256 | 512, each block ended by 2 x 2 max pooling;
F1, 2 x 2 to 1024; F2, 1 x 1 to the classes; global max or average pooling over segments. For 896
frames x 128 mels the maps shrink to 14 x 2, and F1 leaves K = 13 segments. Its table halves the
maps once too often; these are the sizes that make 13.

Segments: one per 64 frames but the first, so T / 64 - 1. The paper's 896 frames are 10.4 s at its
hop of 11.6 ms; ours, of 10 ms, makes a segment 1.28 s, every 0.64 s. A clip of 10 s is 1000 frames,
filled up to 1024: 15 segments; of 5 s, 504 frames, filled up to 512: 7. What is filled up is the
average of each band, which is what convolutions see beyond the border.

SLAT, strong label assumption training: every segment is trained on the labels of its clip, as if
they held all the time. That is a choice of targets, and so the recipe's, as is the loss: binary
cross-entropy or focal.

Where we depart:

- 64 mels: the bands are pooled as often as two rows are left (five times of six), so that F1 has
  the paper's size. It always spans all rows.
- F1 has a batch norm like the blocks; the paper's table names none there.
- Segments' logits are pooled, not their sigmoids: for the maximum it is the same, while the average
  is that of the logits.
- Scores are read at the cells of time (80 ms), linearly between the centres of segments.
- Where there is a foreground mask, a segment weighs as much as it holds of it: in the average, or
  its odds in the maximum.
- The LSTM over segments (``lstm_width``; its equations are in the paper, its place is not) stands
  between F1 and F2. Dropout before F2.

Without the LSTM the network consists of modules that layer-wise relevance propagation knows, each
used once. 4.5 M weights, 115 M multiply-adds per second of audio. Letters: B batch, F mel bands,
T frames, f = F / 16 and t = T / 8 cells, S segments, K classes, D width of what F2 sees.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from services.classifier.config import CELL_FRAMES, Config, VggSlatSettings
from services.classifier.networks.cells import MASK_FLOOR, RARE_LOGIT, on_cells
from services.classifier.networks.scores import Scores

N_BLOCKS = 6
HOP_FRAMES = 2**N_BLOCKS
SEGMENT_FRAMES = 2 * HOP_FRAMES
FIRST_CENTRE_FRAME = (SEGMENT_FRAMES - 1) / 2
MIN_ROWS = 2


def _convolved(c_in: int, c_out: int) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]


def _fused(block: nn.Sequential) -> nn.Sequential:
    """Return a block with its norms, each right after a convolution, folded into these."""
    modules: list[nn.Module] = []
    for module in block:
        if isinstance(module, nn.BatchNorm2d):
            modules.append(fuse_conv_bn_eval(modules.pop(), module))
        else:
            modules.append(module)
    return nn.Sequential(*modules)


class VggSlat(nn.Module):
    """Six blocks, F1, perhaps an LSTM, F2, pooling."""

    def __init__(self, config: Config, settings: VggSlatSettings) -> None:
        super().__init__()
        K, rows, c_in = len(config.labels), config.n_mels, 1
        self.by_maximum = settings.pooling == "max"
        self.blocks = nn.Sequential()
        for number, c_out in enumerate(settings.channels, start=1):
            convolutions = _convolved(c_in, c_out)
            if number < N_BLOCKS:
                convolutions += _convolved(c_out, c_out)
            pooled = rows // 2 >= MIN_ROWS
            rows = rows // 2 if pooled else rows
            pool = nn.MaxPool2d((2 if pooled else 1, 2))
            self.blocks.append(nn.Sequential(*convolutions, pool))
            c_in = c_out
        width = settings.segment_width
        self.f1 = nn.Sequential(
            nn.Conv2d(c_in, width, (rows, 2), bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.lstm = None
        if settings.lstm_width:
            self.lstm = nn.LSTM(width, settings.lstm_width, batch_first=True)
            width = settings.lstm_width
        self.dropout = nn.Dropout(config.dropout)
        self.f2 = nn.Conv2d(width, K, 1)
        nn.init.constant_(self.f2.bias, RARE_LOGIT)  # at first, nothing sounds
        self.average = None if self.by_maximum else nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Scores:
        """Return the scores.

        Args:
            x: (B, 1, F, T) log-mel, each band normalised, T a multiple of 8.
            mask: (B, f, t) probability of foreground per cell, or None for all ones.
        """
        n_cells = x.shape[3] // CELL_FRAMES
        missing = max(-x.shape[3] % HOP_FRAMES, SEGMENT_FRAMES - x.shape[3])
        maps = self.blocks(F.pad(x, (0, missing)))  # (B, C, 2, S + 1)
        features = self.f1(maps)  # (B, D, 1, S)
        if self.lstm is not None:
            in_time, _ = self.lstm(features[:, :, 0].transpose(1, 2))
            features = in_time.transpose(1, 2)[:, :, None]
        logits = self.f2(self.dropout(features))  # (B, K, 1, S)
        return Scores(
            clip=self._pooled(logits, mask, missing),
            segments=on_cells(logits[:, :, 0], HOP_FRAMES, FIRST_CENTRE_FRAME, n_cells),
            branches=(),
            embedding=on_cells(features[:, :, 0], HOP_FRAMES, FIRST_CENTRE_FRAME, n_cells),
        )

    def _pooled(self, logits: Tensor, mask: Tensor | None, missing: int) -> Tensor:
        """Return the clip's logits (B, K) of those of segments (B, K, 1, S)."""
        if mask is None:
            return logits.amax((2, 3)) if self.average is None else self.average(logits)[:, :, 0, 0]
        by_time = F.pad(mask.mean(1, keepdim=True), (0, missing // CELL_FRAMES), mode="replicate")
        window, step = SEGMENT_FRAMES // CELL_FRAMES, HOP_FRAMES // CELL_FRAMES
        weight = F.avg_pool1d(by_time, window, step) + MASK_FLOOR  # (B, 1, S)
        if self.by_maximum:
            odds = weight / weight.amax(2, keepdim=True)
            return (logits[:, :, 0] + odds.log()).amax(2)
        return (logits[:, :, 0] * weight).sum(2) / weight.sum(2)

    def feature_stages(self) -> dict[str, nn.Module]:
        """Return the modules whose outputs are maps (B, C, bands, time), in order, by name."""
        blocks = {f"block{number}": block for number, block in enumerate(self.blocks, start=1)}
        return {**blocks, "f1": self.f1}

    def fuse(self) -> None:
        """Fold the norms into the convolutions and lay these out for speed, for inference only."""
        self.blocks = nn.Sequential(*(_fused(block) for block in self.blocks))
        self.f1 = _fused(self.f1)
        self.to(memory_format=torch.channels_last)
