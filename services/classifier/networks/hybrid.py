"""`hybrid`: a convolutional and a patch-transformer branch, fused by a learned gate; and textures.

Source: Sainath et al., "Audio manipulation and event classification with deep learning", section
III.B.1: a convolutional branch for local patterns, a transformer branch over fixed-size patches for
what is far apart, and a layer that fuses both. It gives no sizes. Ours are: residual branch, He et
al. 2016 (basic block); patch branch, Gong et al. 2021, "AST", with the positions from a depthwise
convolution instead of a table (Chu et al. 2021, "Conditional positional encodings"), so that clips
of any length fit; gate, Arevalo et al. 2017, "Gated multimodal units".

Where we depart:

- The paper's convolutions are pre-trained; ours start from nothing, with the rest.
- It fuses late. Our branches end on one grid of cells (16 mel bands x 8 frames) and are fused
  there, cell by cell, before anything is pooled; a convolution over time follows, so that segments
  are scored as well as clips. Each branch has a head of its own in training.
- Both branches see two maps: the spectrogram, and the same with each band's mean and deviation over
  the input taken out (``relative``), which a recorder or a room hardly changes. After Kim et al.
  2022, "Domain generalization with relaxed instance frequency-wise normalization"; they relax the
  normalisation, we leave the network both.
- The foreground mask weights a second pooling beside the plain one.
- Beside both branches, statistics of the whole input have a say about the clip (``texture``). They
  are taught on their own: together, the network leaned on them and heard unknown recordings worse.
- Its module that reconstructs audio behind the fusion is the enhancer's and the restorer's here.

0.69 M weights, 32 M multiply-adds per second of audio beside those of attention, whose part grows
with the window. Letters: B batch, F mel bands, T frames, f = F / 16 and t = T / 8 cells, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from services.classifier.config import CELL_BANDS, CELL_FRAMES, Config, HybridSettings
from services.classifier.networks.cells import MASK_FLOOR, RARE_LOGIT
from services.classifier.networks.scores import Scores
from services.classifier.networks.texture import Texture

SPREAD_FLOOR = 0.3
"""Added to a band's deviation, whose average over all clips is 1: steady bands are not blown up."""

TEXTURE_SHARE = 0.5
"""Of the texture's logits, added to the clip's: chosen on a fold that no protocol tests."""


def relative(x: Tensor) -> Tensor:
    """Return (B, 1, F, T) with mean 0 and a deviation below 1 along each band of each item."""
    deviation, mean = torch.std_mean(x, dim=3, keepdim=True, correction=0)
    return (x - mean) / (deviation + SPREAD_FLOOR)


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
            nn.Conv2d(2, c1, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(c1), nn.ReLU()
        )  # (B, c1, F/2, T/2)
        self.block1 = ResidualBlock(c1, c2, (2, 2))  # (B, c2, F/4, T/4)
        self.block2 = ResidualBlock(c2, c3, (2, 2))  # (B, c3, F/8, T/8)
        self.block3 = ResidualBlock(c3, c4, (2, 1))  # (B, c4, F/16, T/8)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, c4, f, t) of (B, 2, F, T)."""
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
        q, k, v = self._split(x)
        # written out in training: on a CPU its gradient is twice as fast as the fused kernel's
        y = self._weights(q, k) @ v if self.training else F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(B, cells, width))
        return x + self.mlp(self.norm2(x))

    def attention(self, x: Tensor) -> Tensor:
        """Return how much each cell (third axis) looks at each (last), (B, heads, cells, cells)."""
        q, k, _ = self._split(x)
        return self._weights(q, k)

    def _split(self, x: Tensor) -> Tensor:
        """Return queries, keys and values, (3, B, heads, cells, width / heads)."""
        B, cells, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(B, cells, 3, self.heads, width // self.heads)
        return qkv.permute(2, 0, 3, 1, 4)

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)).softmax(-1)


class PatchBranch(nn.Module):
    """Patches of one cell each, embedded linearly and related by attention."""

    def __init__(self, settings: HybridSettings, mask_bands: int) -> None:
        super().__init__()
        width = settings.patch_width
        cell = (CELL_BANDS, CELL_FRAMES)
        self.embed = nn.Conv2d(2, width, cell, stride=cell)
        self.band = nn.Parameter(torch.zeros(1, width, mask_bands, 1))
        self.position = nn.Conv2d(width, width, (3, 5), padding=(1, 2), groups=width)
        self.layers = nn.ModuleList(
            AttentionLayer(width, settings.patch_heads) for _ in range(settings.patch_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, f, t) of (B, 2, F, T)."""
        B, _, n_bands, T = x.shape
        x = self._embedded(x)
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x).transpose(1, 2)
        return x.reshape(B, -1, n_bands // CELL_BANDS, T // CELL_FRAMES)

    def attentions(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the attention of every layer, (B, heads, cells, cells).

        The cell of band b and segment s is number ``b * t + s``.
        """
        x = self._embedded(x)
        weights = []
        for layer in self.layers:
            weights.append(layer.attention(x))
            x = layer(x)
        return tuple(weights)

    def _embedded(self, x: Tensor) -> Tensor:
        """Return cells with their positions, (B, f * t, width)."""
        x = self.embed(x) + self.band
        return (x + self.position(x)).flatten(2).transpose(1, 2)


class Hybrid(nn.Module):
    """Both branches, their gate, the heads, and the texture."""

    def __init__(self, config: Config, settings: HybridSettings) -> None:
        super().__init__()
        K, width = len(config.labels), settings.fused_width
        self.conv = ConvBranch(settings.channels)
        self.patch = PatchBranch(settings, config.mask_bands)
        self.from_conv = nn.Conv2d(settings.channels[-1], width, 1)
        self.from_patch = nn.Conv2d(settings.patch_width, width, 1)
        self.gate = nn.Conv2d(2 * width, width, 1)
        self.mix = nn.Conv1d(3 * width, width, 3, padding=1)
        self.dropout = nn.Dropout(config.dropout)
        self.clip_head = nn.Linear(5 * width, K)
        self.segment_head = nn.Conv1d(width, K, 1)
        self.conv_head = nn.Linear(width, K)
        self.patch_head = nn.Linear(width, K)
        with torch.random.fork_rng(devices=[]):  # drawn anew when it is taught: no other draw moves
            self.texture = Texture(config.n_mels, K, settings.texture_width)
        self.texture.requires_grad_(False)
        for head in (self.clip_head, self.segment_head):
            nn.init.constant_(head.bias, RARE_LOGIT)  # at first, nothing sounds

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Scores:
        """Return the scores.

        Args:
            x: (B, 1, F, T) log-mel, each band normalised, T a multiple of 8.
            mask: (B, f, t) probability of foreground per cell, or None for all ones.
        """
        heard, x = x[:, 0], self._maps(x)
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
        clip = self.clip_head(self.dropout(pooled))
        if not self.training:  # the texture is taught apart, once the rest has been trained
            clip = clip + TEXTURE_SHARE * self.texture(heard)
        return Scores(
            clip=clip,
            segments=self.segment_head(self.dropout(segments)),
            branches=(
                self.conv_head(F.relu(conv).mean((2, 3))),
                self.patch_head(F.relu(patch).mean((2, 3))),
            ),
            embedding=segments,
        )

    def feature_stages(self) -> dict[str, nn.Module]:
        """Return the modules whose outputs are maps (B, C, bands, time), in order, by name."""
        return {
            "stem": self.conv.stem,
            "block1": self.conv.block1,
            "block2": self.conv.block2,
            "block3": self.conv.block3,
            "patches": self.patch,
            "conv_fused": self.from_conv,
            "patch_fused": self.from_patch,
        }

    def attentions(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the attention of every layer of the patch branch to x, (B, 1, F, T); see there."""
        return self.patch.attentions(self._maps(x))

    def _maps(self, x: Tensor) -> Tensor:
        """Return what the branches see, (B, 2, F, T) of (B, 1, F, T)."""
        maps = torch.cat([x, relative(x)], 1)
        return maps.contiguous(memory_format=torch.channels_last)

    def fuse(self) -> None:
        """Fold the norms into the convolutions and lay these out for speed, for inference only."""
        self.conv.fuse()
        self.conv.to(memory_format=torch.channels_last)
