"""What every network of the classifier returns. Letters: B batch, K classes, D features, t cells.

A cell is 8 frames (80 ms) of time; networks that step more coarsely repeat their scores on it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Logits. ``clip`` (B, K) of the whole input, ``segments`` (B, K, t) of each cell of time.

    ``branches`` are the (B, K) logits of each branch alone, for the auxiliary losses; a network of
    one branch has none. ``embedding`` (B, D, t) is what the segments are scored by.
    """

    clip: Tensor
    segments: Tensor
    branches: tuple[Tensor, ...]
    embedding: Tensor
