"""The discriminator that the generator is trained against. Not used in serving.

Sources: Isola et al. 2017, "pix2pix" (one score per patch); Miyato et al. 2018 (spectral
normalisation). It looks at log magnitudes at the generator's resolution, with each bin's frequency
beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from services.enhancer.config import DiscriminatorConfig


@dataclass(frozen=True)
class Judged:
    """Untransformed scores (B, 1, f, t), one per patch, and each layer's features."""

    scores: Tensor
    features: list[Tensor]


class Discriminator(nn.Module):
    """Scores patches of a log-magnitude grid."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        ins = (2, *config.channels[:-1])
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(a, b, kernel_size=(5, 3), stride=(2, 1), padding=(2, 1)))
            for a, b in zip(ins, config.channels, strict=True)
        )
        self.score = spectral_norm(nn.Conv2d(config.channels[-1], 1, kernel_size=3, padding=1))

    def forward(self, log_magnitude: Tensor) -> Judged:
        """Judge grids (B, F, T) of natural log magnitudes; F is the band above the cut-off."""
        B, bins, T = log_magnitude.shape
        place = torch.linspace(-1.0, 1.0, bins, device=log_magnitude.device)
        x = torch.stack([log_magnitude / 4.0, place[None, :, None].expand(B, -1, T)], dim=1)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return Judged(self.score(x), features)
