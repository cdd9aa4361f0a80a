"""What goes through modules of a network while it computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass(frozen=True)
class Passed:
    """What went into each module, its first argument, and what came out of it; the last time."""

    into: dict[nn.Module, Tensor] = field(default_factory=dict)
    out_of: dict[nn.Module, Tensor] = field(default_factory=dict)

    def note(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Note one pass: a forward hook."""
        self.into[module], self.out_of[module] = inputs[0], output


@contextmanager
def watched(modules: Iterable[nn.Module]) -> Iterator[Passed]:
    """Note what goes through ``modules`` while the block lasts, gradients and all."""
    passed = Passed()
    handles = [module.register_forward_hook(passed.note) for module in modules]
    try:
        yield passed
    finally:
        for handle in handles:
            handle.remove()
