"""Statistics of a whole sound, and a small network on them: the part of `hybrid` for textures.

An engine, an air conditioner, rain: what tells them apart is less an event than how each band
fluctuates, how fast, and which bands do so together.

Source: McDermott & Simoncelli 2011, "Sound texture perception via statistics of the auditory
periphery": moments of each band, power of its modulations, correlations between bands. Theirs are
of a cochlear filter bank; ours of log-mel, where modulations are mean changes over several lags.
Gains and equalisers add a constant to a band and change none of them.

Letters: B batch, F mel bands, T frames, G = F / 4 groups of bands, n statistics, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BANDS_PER_GROUP = 4
LAGS = (1, 2, 4, 8, 16, 32, 64)
"""Frames between two levels that are compared; at 10 ms, modulations from 50 Hz to below 1 Hz."""
FEWEST_FRAMES = 256
"""Shorter inputs are repeated, so that there is something to compare at every lag."""
RANGE = 5.0
"""In deviations of a band (about 60 dB): what lies deeper below the loudest cell is silence."""
CHANGE_FLOOR = 0.03
DEVIATION_FLOOR = 0.1
MOST = 5.0
"""A statistic counts as at most so many deviations from its mean over the training clips."""


def n_statistics(n_mels: int) -> int:
    """Return how many statistics there are of so many bands."""
    groups = n_mels // BANDS_PER_GROUP
    return n_mels + len(LAGS) * (2 * groups + 1) + 2 * groups + groups * (groups - 1) // 2


def statistics(x: Tensor) -> Tensor:
    """Return the statistics (B, n) of log-mel (B, F, T), each band normalised."""
    if x.shape[2] < FEWEST_FRAMES:
        x = x.repeat(1, 1, -(-FEWEST_FRAMES // x.shape[2]))
    x = torch.maximum(x, x.amax((1, 2), keepdim=True) - RANGE)
    groups = F.avg_pool1d(x.transpose(1, 2), BANDS_PER_GROUP).transpose(1, 2)  # (B, G, T)
    sizes = [_deviation(x)[..., 0]]
    for lag in LAGS:
        sizes += [
            F.avg_pool1d(_change(x, lag), BANDS_PER_GROUP),
            _change(groups, lag),
            _change(x.mean(1, keepdim=True), lag),
        ]
    centred = groups - groups.mean(2, keepdim=True)
    centred = centred / (_deviation(groups) + DEVIATION_FLOOR)
    correlations = centred @ centred.transpose(1, 2) / x.shape[2]  # (B, G, G)
    first, second = torch.triu_indices(*correlations.shape[1:], offset=1, device=x.device)
    return torch.cat(
        [
            (torch.cat(sizes, 1) + CHANGE_FLOOR).log(),
            centred.pow(3).mean(2),
            centred.pow(4).mean(2).log1p(),
            correlations[:, first, second],
        ],
        1,
    )


def _deviation(x: Tensor) -> Tensor:
    """Return the deviation over time of (B, C, T), (B, C, 1); its gradient is finite at 0."""
    return (x.var(2, keepdim=True, correction=0) + 1e-8).sqrt()


def _change(x: Tensor, lag: int) -> Tensor:
    """Return how much (B, C, T) differs from itself some frames before, in a circle, (B, C)."""
    # by slices and one norm each: `roll`, `abs` and `mean` pass over memory twice as often
    within = torch.linalg.vector_norm(x[..., lag:] - x[..., :-lag], 1, dim=2)
    around = torch.linalg.vector_norm(x[..., :lag] - x[..., -lag:], 1, dim=2)
    return (within + around) / x.shape[2]


class Texture(nn.Module):
    """Statistics, each normalised over the training clips, and one hidden layer."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, n_mels: int, n_labels: int, width: int) -> None:
        super().__init__()
        n = n_statistics(n_mels)
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("deviation", torch.ones(n))
        last = nn.Linear(width, n_labels)
        self.layers = nn.Sequential(
            nn.Dropout(0.1), nn.Linear(n, width), nn.ReLU(), nn.Dropout(0.3), last
        )
        nn.init.zeros_(last.weight)  # until it is taught, it has no say
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of log-mel (B, F, T), each band normalised."""
        return self.of_statistics(statistics(x))

    def of_statistics(self, found: Tensor) -> Tensor:
        """Return the logits (B, K) of statistics (B, n)."""
        logits: Tensor = self.layers(((found - self.mean) / self.deviation).clamp(-MOST, MOST))
        return logits
