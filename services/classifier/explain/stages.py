"""What every stage of a network makes of a window: its feature maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from services.classifier.explain.hooks import watched
from services.classifier.explain.question import FloatArray, Question

SHOWN_CHANNELS = 8


@dataclass(frozen=True)
class StageMaps:
    """A stage: ``mean`` (f, t) of the size of all its channels' activity, and its busiest channels.

    ``channels`` are their numbers, ``maps`` (SHOWN_CHANNELS or fewer, f, t) their values; busiest
    are those that vary most over the window.
    """

    stage: str
    n_channels: int
    mean: FloatArray
    channels: tuple[int, ...]
    maps: FloatArray


def feature_maps(question: Question) -> list[StageMaps]:
    """Return the maps of every stage, in the order of the network."""
    stages: dict[str, nn.Module] = question.model.network.feature_stages()
    with watched(stages.values()) as passed, torch.no_grad():
        question.logits(question.logmel, question.cells)
    return [
        _maps_of(name, passed.out_of[stage][0].detach().float().cpu())
        for name, stage in stages.items()
    ]


def _maps_of(name: str, output: Tensor) -> StageMaps:
    busiest = output.flatten(1).std(dim=1, correction=0).argsort(descending=True, stable=True)
    chosen = busiest[:SHOWN_CHANNELS]
    return StageMaps(
        stage=name,
        n_channels=len(output),
        mean=output.abs().mean(0).numpy(),
        channels=tuple(chosen.tolist()),
        maps=output[chosen].numpy(),
    )
