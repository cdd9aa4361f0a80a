"""The one training loop: steps, moving average, learning rate, checkpoints, resuming, curves.

A model hands in batches and a "batch to losses" function; the loop minimises ``losses["total"]``.
Its parts (``make_optimizer``, ``one_cycle``, ``Ema``, ``Journal``) are public, since training two
networks against each other needs a loop of its own.

On one machine, with as many threads, the same seed gives the same weights, and a fit that was
interrupted ends with the weights of one that was not: bit by bit on a CPU, if steps and not
minutes end it and the batches are a function of the step.

Sources: AdamW, Loshchilov and Hutter 2019; one-cycle policy, Smith and Topin 2019, with a cosine
instead of straight lines; moving average of the weights with a warm-up of the decay, as in
Szegedy et al. 2016.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from common.errors import WeightsInvalid
from common.training_state import (
    Interrupted,
    Interruption,
    deterministic,
    load_state,
    random_states,
    restore_random_states,
    save_state,
    seed_all,
)
from common.training_watch import JOURNAL_FILE, Journal, Watch

BatchT = TypeVar("BatchT")
ModuleT = TypeVar("ModuleT", bound=nn.Module)
Losses = dict[str, Tensor]

RESUME_FILE = "resume.pt"
MAX_BAD_STEPS_IN_A_ROW = 10
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "adam": partial(
        torch.optim.Adam, fused=True
    ),  # weight decay in the gradient, as in the next two
    "rmsprop": torch.optim.RMSprop,
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}
PACE = frozenset({"steps", "minutes", "checkpoint_every_s", "journal_every", "bf16"})
"""What of a config may be another when a fit is resumed; ``bf16`` may follow the machine."""


@dataclass(frozen=True)
class FitConfig:
    """How to fit. ``minutes`` ends the schedule early, wherever the steps are by then."""

    steps: int
    lr: float  # at the peak
    optimizer: str = "adamw"  # one of OPTIMIZERS
    weight_decay: float = 0.01  # of matrices and kernels; biases and norms have none
    ema_decay: float = 0.999
    warmup_share: float = 0.15  # of the schedule, rising to the peak
    final_lr_share: float = 1e-3  # of the peak, at the end
    grad_clip: float = 5.0  # norm over all weights
    minutes: float | None = None  # of training, summed over resumes
    bf16: bool = False  # the forward pass under autocast; ``computes_bf16`` says where it pays
    checkpoint_every_s: float = 60.0
    journal_every: int = 20  # steps
    seed: int = 0


@dataclass(frozen=True)
class Validation(Generic[ModuleT]):
    """Figures on held-out data while a fit runs; with ``patience`` they may end it early.

    The data must be a part of what may be trained on, never a test fold: what ends a fit has
    chosen its weights.
    """

    measure: Callable[[ModuleT], Mapping[str, float]]  # gets the moving average, in eval mode
    every: int  # steps
    watch: str = "loss"  # the figure that decides; lower is better
    patience: int | None = None  # so many in a row no better than the best end the fit


@dataclass(frozen=True)
class FitResult(Generic[ModuleT]):
    """What a fit made. ``history`` holds the journal's lines, each with step, seconds, losses.

    ``stopped_early``: patience ended it, and ``ema_model`` is of the best figure, not the last.
    """

    ema_model: ModuleT
    steps: int
    seconds: float
    history: tuple[dict[str, float], ...]
    stopped_early: bool = False


def one_cycle(position: float, warmup_share: float, final_lr_share: float) -> float:
    """Return the learning rate as a share of its peak at ``position`` in [0, 1]."""
    position = min(max(position, 0.0), 1.0)
    if position < warmup_share:
        return 0.04 + 0.96 * 0.5 * (1.0 - math.cos(math.pi * position / warmup_share))
    fall = (position - warmup_share) / max(1.0 - warmup_share, 1e-9)
    return final_lr_share + (1.0 - final_lr_share) * 0.5 * (1.0 + math.cos(math.pi * fall))


def make_optimizer(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    lr_scale: Callable[[str], float] = lambda name: 1.0,
    optimizer: str = "adamw",
) -> torch.optim.Optimizer:
    """Return an optimizer with weight decay on tensors of two or more axes only.

    Args:
        model: its parameters that require a gradient are taken.
        lr: learning rate.
        weight_decay: of matrices and kernels.
        lr_scale: a parameter's name to what its learning rate is multiplied by.
        optimizer: one of ``OPTIMIZERS``.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            groups.setdefault((weight.ndim < 2, lr_scale(name)), []).append(weight)
    return OPTIMIZERS[optimizer](
        [
            {
                "params": groups[vector, scale],
                "weight_decay": 0.0 if vector else weight_decay,
                "lr": lr * scale,
                "lr_scale": scale,
            }
            for vector, scale in sorted(groups)
        ]
    )


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
        mine = self.model.state_dict()
        names = [name for name, tensor in mine.items() if tensor.is_floating_point()]
        # all at once: one call per tensor takes longer than the sums do
        average = get_ema_multi_avg_fn(keep)  # type: ignore[no-untyped-call]  # torch types it not
        average([mine[n] for n in names], [theirs[n] for n in names], None)
        for name in mine.keys() - set(names):
            mine[name].copy_(theirs[name])


def computes_bf16(device: str) -> bool:
    """Return whether "cpu" or "cuda" computes bfloat16 itself; elsewhere it is emulated, slowly."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def to_device(batch: Any, device: str) -> Any:
    """Return a batch on ``device``: a tensor, a mapping of tensors, or what has a ``to``."""
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    return batch.to(device, non_blocking=True) if hasattr(batch, "to") else batch


def fit(
    model: ModuleT,
    batches: Iterator[BatchT] | Callable[[int, float], BatchT],
    losses: Callable[[ModuleT, BatchT], Losses],
    config: FitConfig,
    folder: Path,
    device: str = "cpu",
    *,
    validation: Validation[ModuleT] | None = None,
    lr_scale: Callable[[str], float] = lambda name: 1.0,
    identity: str = "",
) -> FitResult[ModuleT]:
    """Fit ``model`` in place and return the moving average of its weights, in eval mode.

    A fit that was cut off goes on from the last checkpoint in ``folder``; one that had ended
    returns at once. SIGINT and SIGTERM end it after the step at hand, with a checkpoint. The model
    trains in train mode on ``device``.

    Args:
        model: what ``losses`` takes.
        batches: a function of the step (from 0) and the position in the schedule, in [0, 1), that
            answers alike whenever it is asked: then a resumed fit ends as if it had not been cut
            off. Or an iterator with at least as many as there are steps left, on which a resumed
            fit starts anew: draw them with a seed that depends on the run.
        losses: a batch to named scalars; ``"total"`` is minimised, all are journalled.
        config: how to fit.
        folder: for the checkpoint, the journal and the curves; made if need be.
        device: "cpu" or "cuda".
        validation: what to measure on the way, and whether it may end the fit.
        lr_scale: see ``make_optimizer``.
        identity: names what is fitted to what; a checkpoint of another is refused.

    Raises:
        FloatingPointError: the gradient was not finite several steps in a row.
        Interrupted: a signal came.
        WeightsInvalid: the checkpoint in ``folder`` is damaged or of another fit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with deterministic(), Interruption() as interruption:
        run = _Run(model, config, folder, device, lr_scale, identity)
        if run.ended():
            return run.result()
        with Watch(folder, run.step, run.position()) as watch:
            saved_s = time.monotonic()
            while not run.ended():
                at = run.position()
                batch = batches(run.step, at) if callable(batches) else next(batches)
                run.take_step(to_device(batch, device), losses, at)
                watch.move(run.position())
                if run.step % config.journal_every == 0:
                    watch.journalled(run.journal_line(at))
                if validation is not None and (run.step % validation.every == 0 or run.ended()):
                    watch.validated(run.step, run.validate(validation))
                if interruption.caught is not None:
                    run.save()
                    name = Signals(interruption.caught).name
                    watch.say(
                        f"stopped by {name} after step {run.step}; all is kept in "
                        f"{folder / RESUME_FILE}: run the same command again to go on"
                    )
                    raise Interrupted(interruption.caught)
                if time.monotonic() - saved_s >= config.checkpoint_every_s:
                    run.save()
                    saved_s = time.monotonic()
        run.save()
        return run.result()


class _Run(Generic[ModuleT]):
    """The state of a fit: all that a checkpoint holds."""

    def __init__(
        self,
        model: ModuleT,
        config: FitConfig,
        folder: Path,
        device: str,
        lr_scale: Callable[[str], float],
        identity: str,
    ) -> None:
        """Begin, or go on from the checkpoint in ``folder``."""
        seed_all(config.seed)
        self.config, self.device = config, device
        self.model = model.to(device).train()
        self.optimizer = make_optimizer(
            model, config.lr, config.weight_decay, lr_scale, config.optimizer
        )
        self.ema = Ema(model, config.ema_decay)
        self.step, self.bad_steps = 0, 0
        self.best = {"figure": math.inf, "step": 0, "worse": 0}
        self.best_weights: dict[str, Tensor] | None = None
        self.stopped_early = False
        self._path = folder / RESUME_FILE
        self._of = {"identity": identity, **asdict(config)}
        self._before_s, self._started_s = 0.0, time.monotonic()
        if self._path.is_file():
            self._load(load_state(self._path))
        else:
            self.journal = Journal(folder / JOURNAL_FILE, [])

    def seconds(self) -> float:
        """Return the time spent, resumes summed."""
        return self._before_s + time.monotonic() - self._started_s

    def position(self) -> float:
        """Return how much of the schedule is over, by steps or by time; 1 and more: all."""
        minutes = self.config.minutes
        by_time = 0.0 if minutes is None else self.seconds() / (60.0 * minutes)
        return max(self.step / self.config.steps, by_time)

    def ended(self) -> bool:
        """Return whether there is nothing left to do."""
        return self.stopped_early or self.position() >= 1.0

    def result(self) -> FitResult[ModuleT]:
        """Return what was made."""
        if self.stopped_early and self.best_weights is not None:
            self.ema.model.load_state_dict(self.best_weights)
        lines = tuple(self.journal.lines)
        return FitResult(self.ema.model, self.step, self.seconds(), lines, self.stopped_early)

    def take_step(
        self, batch: BatchT, losses: Callable[[ModuleT, BatchT], Losses], at: float
    ) -> None:
        """Learn from one batch at position ``at``; one whose gradient is not finite is left out."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(at) * group["lr_scale"]
        self.optimizer.zero_grad(set_to_none=True)
        # the forward pass moves running statistics, before it is known whether the batch is good
        before = [buffer.clone() for buffer in self.model.buffers()]
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.config.bf16):
            parts = losses(self.model, batch)
        torch.autograd.backward(parts["total"])
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        # together, since each look at a number waits for the GPU
        scalars = [part.detach().to(norm).reshape(()) for part in parts.values()]
        numbers = torch.stack([norm, *scalars]).tolist()
        if math.isfinite(numbers[0]):
            self.optimizer.step()
            self.ema.update(self.model, self.step)
            self.bad_steps = 0
            names = ["gradient_norm", *parts]
            self.journal.add(dict(zip(names, numbers, strict=True)))
        else:
            for buffer, kept in zip(self.model.buffers(), before, strict=True):
                buffer.copy_(kept)
            self.bad_steps += 1
            if self.bad_steps >= MAX_BAD_STEPS_IN_A_ROW:
                raise FloatingPointError(f"the gradient is not finite at step {self.step}")
        self.step += 1

    def journal_line(self, at: float) -> dict[str, float]:
        """Write and return the journal's next line."""
        return self.journal.write(step=self.step, seconds=self.seconds(), lr=self._lr(at))

    def validate(self, validation: Validation[ModuleT]) -> Mapping[str, float]:
        """Measure the moving average; take note of the best, and of when to end."""
        figures = validation.measure(self.ema.model)
        named = {f"validation_{name}": value for name, value in figures.items()}
        self.journal.note({"step": self.step, "seconds": self.seconds(), **named})
        if validation.patience is None:
            return figures
        if figures[validation.watch] < self.best["figure"]:
            self.best = {"figure": figures[validation.watch], "step": self.step, "worse": 0}
            self.best_weights = copy.deepcopy(self.ema.model.state_dict())
        else:
            self.best["worse"] += 1
            self.stopped_early = self.best["worse"] >= validation.patience
        return figures

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        save_state(
            self._path,
            {
                "of": self._of,
                "model": self.model.state_dict(),
                "ema": self.ema.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "random": random_states(),
                "journal": self.journal.state(),
                "step": self.step,
                "bad_steps": self.bad_steps,
                "seconds": self.seconds(),
                "best": self.best,
                "best_weights": self.best_weights,
                "stopped_early": self.stopped_early,
            },
        )

    def _load(self, state: dict[str, Any]) -> None:
        of = state.get("of", {})
        other = sorted(k for k in self._of if k not in PACE and of.get(k) != self._of[k])
        if other:
            raise WeightsInvalid(
                f"the checkpoint {self._path} is of another fit ({', '.join(other)} differ): "
                "remove it to begin anew, or use another folder"
            )
        self.model.load_state_dict(state["model"])
        self.ema.model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.journal = Journal.restore(self._path.with_name(JOURNAL_FILE), state["journal"])
        self.step, self.bad_steps = state["step"], state["bad_steps"]
        self._before_s = state["seconds"]
        self.best, self.best_weights = state["best"], state["best_weights"]
        self.stopped_early = state["stopped_early"]
        restore_random_states(state["random"])

    def _lr(self, at: float) -> float:
        return self.config.lr * one_cycle(at, self.config.warmup_share, self.config.final_lr_share)
