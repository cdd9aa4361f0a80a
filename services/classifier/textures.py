"""Teaching the texture of a `hybrid` (``networks.texture``), once all else has been trained.

Learns from statistics of clips, whole and in parts of any length, each laid over that of another
(mixup, Zhang et al. 2018): what is known of the mixture of two statistics is the mixture of labels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from services.classifier.augment import MIXUP_ALPHA, varied
from services.classifier.config import CELL_FRAMES, WINDOW_SEGMENTS, HybridSettings
from services.classifier.data import BatchMaker
from services.classifier.losses import PresenceLoss, ShareLoss
from services.classifier.model import Classifier
from services.classifier.networks.hybrid import Hybrid
from services.classifier.networks.texture import Texture, statistics

PARTS = 3
"""Of each clip, beside the whole; half of what is drawn are parts."""
SHORTEST_FRAMES = 32
MOST_CLIPS = 20_000
BATCH = 256
LR = 2e-3
WEIGHT_DECAY = 0.01


def teach_texture(model: Classifier, maker: BatchMaker, steps: int, seed: int) -> None:
    """Teach the texture of a trained model from nothing; without one, or steps, nothing happens.

    Args:
        model: in eval mode, all but its texture trained.
        maker: the clips that it was trained on, and how often each is drawn.
        steps: of BATCH mixtures each.
        seed: of weights, parts and mixtures.
    """
    config, network, settings = model.config, model.network, model.config.network
    if not isinstance(network, Hybrid) or not isinstance(settings, HybridSettings) or steps == 0:
        return
    rng = np.random.default_rng((seed, steps))
    numbers, shares = _drawn(maker, rng)
    found = torch.stack(list(_statistics(model, maker, numbers, rng)))  # (N, 1 + PARTS, n)
    present = torch.zeros(len(numbers), len(config.labels))
    for row, number in enumerate(numbers):
        for label in maker.mels.clips[number].labels:
            present[row, config.labels.index(label)] = 1.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        texture = Texture(config.n_mels, len(config.labels), settings.texture_width)
        texture.mean.copy_(found[:, 0].mean(0))
        texture.deviation.copy_(found[:, 0].std(0, correction=0) + 1e-3)
        _fit(texture, found, present, shares, config.multi_label, steps, rng)
    network.texture = texture.eval().requires_grad_(False).to(_device_of(model))


def _device_of(model: Classifier) -> torch.device:
    return next(model.parameters()).device


def _drawn(maker: BatchMaker, rng: np.random.Generator) -> tuple[list[int], np.ndarray]:
    """Return the clips to learn from and how often each is drawn, which adds up to 1."""
    shares: dict[int, float] = {}
    for label, share in zip(maker.known, maker.label_shares, strict=True):
        clips = maker.by_label[label]
        shares |= dict(zip(clips.numbers.tolist(), share * clips.shares, strict=True))
    numbers = sorted(rng.permutation(sorted(shares))[:MOST_CLIPS].tolist())
    weights = np.array([shares[number] for number in numbers])
    return numbers, weights / weights.sum()


@torch.inference_mode()
def _statistics(
    model: Classifier, maker: BatchMaker, numbers: list[int], rng: np.random.Generator
) -> Iterator[Tensor]:
    """Yield the statistics of each clip, whole and of its parts, (1 + PARTS, n)."""
    for number in tqdm(numbers, desc="textures", unit="clip", leave=False):
        n_frames = maker.mels.n_frames(number)
        longest = min(n_frames, WINDOW_SEGMENTS * CELL_FRAMES)
        shortest = min(longest, SHORTEST_FRAMES)
        rows = []
        for part in range(1 + PARTS):
            length = longest
            if part:
                length = round(float(np.exp(rng.uniform(np.log(shortest), np.log(longest)))))
            start = int(rng.integers(0, n_frames - length + 1))
            logmel = maker.mels.logmel(number, slice(start, start + length))
            if part:
                logmel = varied(logmel, maker.how, rng)
            batch = torch.from_numpy(logmel.T[None]).to(_device_of(model))
            rows.append(statistics(model.network_input(batch)[:, 0])[0].cpu())
        yield torch.stack(rows)


def _fit(
    texture: Texture,
    found: Tensor,
    present: Tensor,
    shares: np.ndarray,
    multi_label: bool,
    steps: int,
    rng: np.random.Generator,
) -> None:
    """Fit a fresh texture to statistics (N, 1 + PARTS, n) of clips with labels (N, K)."""
    optimizer = torch.optim.AdamW(texture.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    cycle = OneCycleLR(optimizer, LR, steps)
    of_presence, of_share = PresenceLoss(), ShareLoss()
    for _ in range(steps):
        keep = torch.from_numpy(rng.beta(MIXUP_ALPHA, MIXUP_ALPHA, (BATCH, 1)).astype(np.float32))
        rows = torch.from_numpy(rng.choice(len(found), (2, BATCH), p=shares))
        parts = rng.integers(1, 1 + PARTS, (2, BATCH)) * (rng.random((2, BATCH)) < 0.5)
        x, y = found[rows, torch.from_numpy(parts)], present[rows]
        logits = texture.of_statistics(keep * x[0] + (1.0 - keep) * x[1])
        target = keep * y[0] + (1.0 - keep) * y[1]
        if multi_label:
            loss = of_presence(logits, target)
        else:
            loss = of_share(logits, target / target.sum(1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()
