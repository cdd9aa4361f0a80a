"""Does a map show what the classifier goes by? Deletion and insertion of what it calls relevant.

Source: Petsiuk, Das and Saenko 2018, "RISE", section 4.3. We depart in that whole blocks are taken
away or put back, since scattered bins disturb a network by their edges alone, and in what takes
their place: the quiet background of the same window, or silence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.classifier.explain.question import SILENCE, FloatArray, Question

BLOCK_BANDS, BLOCK_FRAMES = 4, 8
STEPS = 16


@dataclass(frozen=True)
class Faithfulness:
    """Areas under the label's probability, in [0, 1].

    ``deletion``: while blocks are taken away, the most relevant first; lower is better.
    ``insertion``: while they are put into an empty window; higher is better.
    """

    deletion: float
    insertion: float


def faithfulness(question: Question, order: Tensor, fill: Tensor) -> Faithfulness:
    """Return both areas.

    Args:
        question: the label and its window.
        order: numbers of blocks, from ``by_relevance`` or at random.
        fill: (1, F, T) what stands where blocks are taken away.
    """
    _, F, T = question.logmel.shape
    grid = (F // BLOCK_BANDS, T // BLOCK_FRAMES)
    gone = torch.zeros(STEPS + 1, len(order))
    for step in range(STEPS + 1):
        gone[step, order[: round(len(order) * step / STEPS)]] = 1.0
    gone = gone.view(-1, *grid).repeat_interleave(BLOCK_BANDS, 1).repeat_interleave(BLOCK_FRAMES, 2)
    here = gone.bool()
    deleted = question.probabilities(torch.where(here, fill, question.logmel))
    inserted = question.probabilities(torch.where(here, question.logmel, fill))
    return Faithfulness(_area(deleted), _area(inserted))


def by_relevance(relevance: FloatArray) -> Tensor:
    """Return the numbers of blocks, row by row, the most relevant first."""
    F, T = relevance.shape
    blocks = relevance.reshape(F // BLOCK_BANDS, BLOCK_BANDS, T // BLOCK_FRAMES, BLOCK_FRAMES)
    return torch.from_numpy(blocks.mean((1, 3)).ravel()).argsort(descending=True, stable=True)


def at_random(question: Question, seed: int) -> Tensor:
    """Return the numbers of blocks in random order."""
    _, F, T = question.logmel.shape
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(F // BLOCK_BANDS * (T // BLOCK_FRAMES), generator=generator)


def fills(question: Question) -> dict[str, Tensor]:
    """Return what may stand where blocks are taken away, (1, F, T) each."""
    return {
        "background": question.background(),
        "silence": torch.full_like(question.logmel, SILENCE),
    }


def _area(probabilities: FloatArray) -> float:
    return float(np.trapezoid(probabilities, dx=1.0 / STEPS))
