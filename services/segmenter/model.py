"""The segmenter's network: a U of small U's on a half-resolution grid.

Sources:
- Qin et al. 2020, "U^2-Net: going deeper with nested U-structure for salient object detection",
  sections 3.1 (residual U-blocks) and 3.2 (nested U, side outputs). We depart from it: five levels
  with dense 3x3 convolutions of 16 to 48 channels, nearest-neighbour upsampling, side outputs
  judged on their own grids and dropped in service instead of fused. The coarsest level also learns
  which classes sound at all.
- Shi et al. 2016, "Real-time single image and video super-resolution using an efficient sub-pixel
  convolutional neural network", section 3.2: pixel shuffle, here at both ends.
- Kong et al. 2018, "Recurrent pixel embedding for instance grouping", for masks as dot products of
  an embedding per pixel; the class vectors and the sigmoid, which lets classes overlap, are ours.

Shapes: B batch, F = 128 mel bands, T frames, f = F / 2, t = T / 2, D embedding, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from common.features import ANALYSIS_RATE_HZ, LogMel
from services.segmenter.config import (
    BANDS,
    FRAME_MULTIPLE,
    HOP_SAMPLES,
    N_FFT,
    SHUFFLE,
    SegmenterConfig,
)

# The log power of quiet to loud recordings, brought to about [-2, 2].
_LOG_CENTRE, _LOG_SCALE = -3.0, 5.0

_CLASS_GAIN = 4.0
"""Class vectors are stored divided by this: the optimizer then moves them as fast as they need."""


@dataclass(frozen=True)
class Segmentation:
    """What the network makes of B spectrograms."""

    mask_logits: Tensor  # (B, F, T)
    embedding: Tensor  # (B, D, f, ceil(T / 2)) in (-1, 1)
    # train mode only:
    side_logits: tuple[Tensor, ...]  # (B, f / 2^i, t / 2^i), coarser and coarser
    presence_logits: Tensor | None  # (B, K, t / 16): does a class sound at all


@dataclass(frozen=True)
class ClassWeights:
    """Vectors (K, D) and biases (K,)."""

    vectors: Tensor
    biases: Tensor


class ConvUnit(nn.Module):
    """3x3 convolution, batch normalisation, ReLU; keeps the grid."""

    def __init__(self, n_in: int, n_out: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(n_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)

    def fuse(self) -> None:
        """Fold the normalisation into the convolution. For eval mode; cannot be undone."""
        self.conv = fuse_conv_bn_eval(self.conv, self.norm)
        self.norm = nn.Identity()


class ResidualU(nn.Module):
    """A small U whose output is added to its input layer's; keeps the grid.

    ``height`` counts its encoder units; it halves the grid height - 2 times, or, if ``dilated``,
    doubles the dilation instead.
    """

    def __init__(self, n_in: int, n_inner: int, n_out: int, height: int, dilated: bool) -> None:
        super().__init__()
        self.dilated = dilated
        dilations = [2**i if dilated else 1 for i in range(height)]
        if not dilated:
            dilations[-1] = 2
        self.entry = ConvUnit(n_in, n_out)
        self.down = nn.ModuleList(
            ConvUnit(n_out if i == 0 else n_inner, n_inner, dilations[i]) for i in range(height)
        )
        self.up = nn.ModuleList(
            ConvUnit(2 * n_inner, n_out if i == 0 else n_inner, dilations[i])
            for i in range(height - 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        entry = self.entry(x)
        levels = []
        x = entry
        for i, unit in enumerate(self.down):
            pools = not self.dilated and 0 < i < len(self.down) - 1
            x = unit(halved(x) if pools else x)
            levels.append(x)
        x = levels.pop()
        for unit in reversed(self.up):
            skip = levels.pop()
            x = unit(torch.cat([widened(x, skip), skip], dim=1))
        return x + entry


class Segmenter(nn.Module):
    """Log-mel spectrograms to a foreground mask and an embedding with one vector per class."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        outer, inner, heights = config.outer, config.inner, config.heights
        depth = len(outer)
        # two features (level, contrast), unshuffled, and the place on the frequency axis
        self.stem = ConvUnit(2 * SHUFFLE**2 + 1, outer[0])
        self.encoders = nn.ModuleList(
            ResidualU(
                outer[max(0, i - 1)], inner[i], outer[i], heights[i], i >= config.dilated_from
            )
            for i in range(depth)
        )
        self.decoders = nn.ModuleList(
            ResidualU(
                outer[i] + outer[i + 1], inner[i], outer[i], heights[i], i >= config.dilated_from
            )
            for i in range(depth - 1)
        )
        self.mask_head = nn.Conv2d(outer[0], SHUFFLE**2, 3, padding=1)
        self.embedding_head = nn.Conv2d(outer[0], config.embedding_dim, 1)
        self.side_heads = nn.ModuleList(nn.Conv2d(n, 1, 3, padding=1) for n in outer[1:])
        self.presence_head = nn.Conv2d(outer[-1], len(config.labels), 1)
        self.class_vectors = nn.Parameter(torch.randn(len(config.labels), config.embedding_dim))
        self.class_biases = nn.Parameter(torch.full((len(config.labels),), -4.0 / _CLASS_GAIN))
        nn.init.constant_(self.mask_head.bias, -1.5)

    def forward(self, features: Tensor) -> Segmentation:
        """Segment log-mel features (B, F, T) as ``front_end`` gives them; any T from 1 up."""
        n_frames = features.shape[-1]
        x = self._prepare(features)  # (B, 2 * 4 + 1, f, t), t a multiple of 16
        x = self.stem(x)
        skips = []
        for i, encoder in enumerate(self.encoders):
            x = encoder(x if i == 0 else halved(x))  # (B, outer[i], f / 2^i, t / 2^i)
            skips.append(x)
        x = skips.pop()
        presence = self.presence_head(x).amax(2) if self.training else None
        sides = [self._side(len(self.encoders) - 1, x)]
        for i in reversed(range(len(self.decoders))):
            skip = skips.pop()
            x = self.decoders[i](torch.cat([widened(x, skip), skip], dim=1))
            if i:
                sides.append(self._side(i, x))
        mask_logits = F.pixel_shuffle(self.mask_head(x), SHUFFLE)[:, 0]  # (B, F, T padded)
        embedding = torch.tanh(self.embedding_head(x))
        return Segmentation(
            mask_logits[..., :n_frames],
            embedding[..., : -(-n_frames // SHUFFLE)],
            tuple(side for side in reversed(sides) if side is not None),
            presence,
        )

    def class_weights(self) -> ClassWeights:
        """Return what turns an embedding into class logits: vectors . embedding + biases."""
        return ClassWeights(_CLASS_GAIN * self.class_vectors, _CLASS_GAIN * self.class_biases)

    def class_logits(self, embedding: Tensor) -> Tensor:
        """Return (B, K, f, t) logits of an embedding (B, D, f, t)."""
        weights = self.class_weights()
        logits = torch.einsum("kd,bdft->bkft", weights.vectors, embedding)
        return logits + weights.biases[:, None, None]

    def fuse(self) -> None:
        """Fold all normalisations for service. For eval mode; cannot be undone."""
        for module in self.modules():
            if isinstance(module, ConvUnit):
                module.fuse()

    def _prepare(self, features: Tensor) -> Tensor:
        n_frames = features.shape[-1]
        half = self.config.contrast_frames // 2
        surroundings = F.avg_pool1d(
            features, 2 * half + 1, stride=1, padding=half, count_include_pad=False
        )
        level = (features - _LOG_CENTRE) / _LOG_SCALE
        x = torch.stack([level, (features - surroundings) / 3.0], dim=1)  # (B, 2, F, T)
        x = F.pad(x, (0, -n_frames % FRAME_MULTIPLE, 0, 0), mode="replicate")
        x = F.pixel_unshuffle(x, SHUFFLE)  # (B, 8, f, t)
        place = torch.linspace(-1.0, 1.0, BANDS // SHUFFLE, dtype=x.dtype, device=x.device)
        x = torch.cat([x, place[None, None, :, None].expand(x.shape[0], 1, -1, x.shape[3])], dim=1)
        return x.contiguous(memory_format=torch.channels_last)

    def _side(self, level: int, x: Tensor) -> Tensor | None:
        return self.side_heads[level - 1](x)[:, 0] if self.training else None


def front_end() -> LogMel:
    """Return the features that the network is trained on: 128 mel bands, 50 frames a second."""
    return LogMel(ANALYSIS_RATE_HZ, N_FFT, HOP_SAMPLES, BANDS)


def halved(x: Tensor) -> Tensor:
    """Return the maxima of 2x2 cells; a last odd row or column makes cells of its own."""
    return F.max_pool2d(x, 2, ceil_mode=True)


def widened(x: Tensor, like: Tensor) -> Tensor:
    """Return ``x`` repeated to the grid of ``like``."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    wide = F.interpolate(x, scale_factor=2.0, mode="nearest")
    if wide.shape[-2:] == like.shape[-2:]:  # a slice of everything would still cost a copy
        return wide
    return wide[..., : like.shape[-2], : like.shape[-1]]
