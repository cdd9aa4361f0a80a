"""The one training loop: steps, moving average, learning rate, checkpoints, resuming, journal.

A model hands in batches and a "batch to losses" function; the loop minimises ``losses["total"]``.
Its parts (``make_optimizer``, ``one_cycle``, ``Ema``, ``Journal``) are public, since training two
networks against each other needs a loop of its own.

Sources: AdamW, Loshchilov and Hutter 2019; one-cycle policy, Smith and Topin 2019, with a cosine
instead of straight lines; moving average of the weights with a warm-up of the decay, as in
Szegedy et al. 2016.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

BatchT = TypeVar("BatchT")
ModuleT = TypeVar("ModuleT", bound=nn.Module)
Losses = dict[str, Tensor]

RESUME_FILE = "resume.pt"
JOURNAL_FILE = "journal.jsonl"
MAX_BAD_STEPS_IN_A_ROW = 10


@dataclass(frozen=True)
class FitConfig:
    """How to fit. ``minutes`` ends the schedule early, wherever the steps are by then."""

    steps: int
    lr: float  # at the peak
    weight_decay: float = 0.01  # of matrices and kernels; biases and norms have none
    ema_decay: float = 0.999
    warmup_share: float = 0.15  # of the schedule, rising to the peak
    final_lr_share: float = 1e-3  # of the peak, at the end
    grad_clip: float = 5.0  # norm over all weights
    minutes: float | None = None  # of training, summed over resumes
    checkpoint_every_s: float = 60.0
    journal_every: int = 20  # steps
    seed: int = 0


@dataclass(frozen=True)
class FitResult(Generic[ModuleT]):
    """What a fit made. ``history`` holds the journal's lines, each with step, seconds, losses."""

    ema_model: ModuleT
    steps: int
    seconds: float
    history: tuple[dict[str, float], ...]


def one_cycle(position: float, warmup_share: float, final_lr_share: float) -> float:
    """Return the learning rate as a share of its peak at ``position`` in [0, 1]."""
    position = min(max(position, 0.0), 1.0)
    if position < warmup_share:
        return 0.04 + 0.96 * 0.5 * (1.0 - math.cos(math.pi * position / warmup_share))
    fall = (position - warmup_share) / max(1.0 - warmup_share, 1e-9)
    return final_lr_share + (1.0 - final_lr_share) * 0.5 * (1.0 + math.cos(math.pi * fall))


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW with weight decay on tensors of two or more axes only."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr)


class Ema(Generic[ModuleT]):
    """An exponential moving average of a model's weights and running statistics."""

    def __init__(self, model: ModuleT, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: ModuleT, step: int) -> None:
        """Move towards ``model``; early steps (``step`` counts from 0) move further."""
        keep = min(self.decay, (1.0 + step) / (10.0 + step))
        theirs = model.state_dict()
        for name, mine in self.model.state_dict().items():
            if mine.is_floating_point():
                mine.lerp_(theirs[name], 1.0 - keep)
            else:
                mine.copy_(theirs[name])


class Journal:
    """One JSON line per entry, appended to a file. Values are means since the last entry."""

    def __init__(self, path: Path, lines: list[dict[str, float]]) -> None:
        """``lines``, from before a resume, replace what the file holds."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lines = lines
        self._path = path
        self._sums: dict[str, float] = {}
        self._count = 0
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def add(self, losses: Mapping[str, float]) -> None:
        """Take the losses of one step."""
        self._count += 1
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def write(self, **facts: float) -> dict[str, float]:
        """Write and return a line: ``facts`` and the means of the losses since the last one."""
        line = dict(facts)
        line.update({name: total / self._count for name, total in self._sums.items()})
        self._sums, self._count = {}, 0
        self.lines.append(line)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return line


def to_device(batch: Any, device: str) -> Any:
    """Return a batch on ``device``: a tensor, a mapping of tensors, or what has a ``to``."""
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    return batch.to(device, non_blocking=True) if hasattr(batch, "to") else batch


def fit(
    model: ModuleT,
    batches: Iterator[BatchT],
    losses: Callable[[ModuleT, BatchT], Losses],
    config: FitConfig,
    folder: Path,
    device: str = "cpu",
) -> FitResult[ModuleT]:
    """Fit ``model`` in place and return the moving average of its weights, in eval mode.

    A fit that was cut off goes on from the last checkpoint in ``folder``; one that had ended
    returns at once. The model trains in train mode on ``device``.

    Args:
        model: what ``losses`` takes.
        batches: at least as many as there are steps left. A resumed fit starts on them anew, so
            draw them with a seed that depends on the run, not on the first step alone.
        losses: a batch to named scalars; ``"total"`` is minimised, all are journalled.
        config: how to fit.
        folder: for the checkpoint and the journal; made if need be.
        device: "cpu" or "cuda".

    Raises:
        FloatingPointError: the gradient was not finite several steps in a row.
    """
    torch.manual_seed(config.seed)
    model.to(device).train()
    optimizer = make_optimizer(model, config.lr, config.weight_decay)
    ema = Ema(model, config.ema_decay)
    folder.mkdir(parents=True, exist_ok=True)
    step, before_s, lines = _resume(folder / RESUME_FILE, model, ema, optimizer, device)
    torch.manual_seed(config.seed + step)
    journal = Journal(folder / JOURNAL_FILE, lines)
    started_s = saved_s = time.monotonic()
    bad_steps = 0

    def elapsed_s() -> float:
        return before_s + time.monotonic() - started_s

    def position() -> float:
        by_time = 0.0 if config.minutes is None else elapsed_s() / (60.0 * config.minutes)
        return max(step / config.steps, by_time)

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "ema": ema.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "seconds": elapsed_s(),
            "lines": journal.lines,
        }
        beside = folder / (RESUME_FILE + ".part")
        torch.save(state, beside)
        os.replace(beside, folder / RESUME_FILE)

    with tqdm(total=config.steps, initial=step, unit="step", mininterval=5.0) as bar:
        while position() < 1.0:
            lr_share = one_cycle(position(), config.warmup_share, config.final_lr_share)
            for group in optimizer.param_groups:
                group["lr"] = config.lr * lr_share
            batch = to_device(next(batches), device)
            optimizer.zero_grad(set_to_none=True)
            parts = losses(model, batch)
            torch.autograd.backward(parts["total"])
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            if bool(torch.isfinite(norm)):
                optimizer.step()
                ema.update(model, step)
                bad_steps = 0
                journal.add({name: float(value.detach()) for name, value in parts.items()})
            else:
                bad_steps += 1
                if bad_steps >= MAX_BAD_STEPS_IN_A_ROW:
                    raise FloatingPointError(f"the gradient is not finite at step {step}")
            step += 1
            bar.update()
            if step % config.journal_every == 0:
                line = journal.write(step=step, seconds=elapsed_s(), lr=config.lr * lr_share)
                bar.set_postfix({"total": f"{line.get('total', math.nan):.4g}"}, refresh=False)
            if time.monotonic() - saved_s >= config.checkpoint_every_s:
                save()
                saved_s = time.monotonic()
    save()
    return FitResult(ema.model, step, elapsed_s(), tuple(journal.lines))


def _resume(
    path: Path, model: nn.Module, ema: Ema[Any], optimizer: torch.optim.Optimizer, device: str
) -> tuple[int, float, list[dict[str, float]]]:
    """Load a checkpoint, if there is one; return steps done, seconds spent and journal lines."""
    if not path.is_file():
        return 0, 0.0, []
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    ema.model.load_state_dict(state["ema"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), float(state["seconds"]), list(state["lines"])
