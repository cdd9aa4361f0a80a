"""Attention rollout through the patch branch of ``hybrid``.

Source: Abnar and Zuidema 2020, "Quantifying attention flow in transformers": heads averaged, half
of each layer passes by its attention (the residual connection), the layers multiplied. We depart in
that there is no class token: every cell is read out alike, so the rows are averaged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from services.classifier.config import CELL_FRAMES
from services.classifier.explain.question import Question, Relevance, relevance_of
from services.classifier.networks.hybrid import Hybrid


def rolled_out(attentions: tuple[Tensor, ...]) -> Tensor:
    """Return where each cell's value comes from, (cells, cells); every row sums to 1.

    Args:
        attentions: per layer, (heads, cells, cells), rows summing to 1.
    """
    n_cells = attentions[0].shape[-1]
    itself = torch.eye(n_cells, device=attentions[0].device)
    flow = itself
    for attention in attentions:
        flow = (0.5 * attention.mean(0) + 0.5 * itself) @ flow
    return flow


def attention_rollout(question: Question) -> Relevance:
    """Return how much of all cells' values comes from each place, at least 0; sums to 1.

    Raises:
        TypeError: the network is no `hybrid`.
    """
    x, network = question.logmel, question.model.network
    if not isinstance(network, Hybrid):
        raise TypeError("only hybrid attends")
    with torch.no_grad():
        attentions = network.attentions(question.model.network_input(x))
        source = rolled_out(tuple(attention[0] for attention in attentions)).mean(0)
    T = x.shape[2]
    grid = source.reshape(1, 1, -1, T // CELL_FRAMES)  # (1, 1, f, t)
    bins_per_cell = x[0].numel() / source.numel()
    fine = F.interpolate(grid, x.shape[1:], mode="nearest") / bins_per_cell
    return relevance_of(fine[0, 0])
