"""What one sees of a fit: a journal of JSON lines, TensorBoard's curves and a progress bar."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter
from tqdm import tqdm

JOURNAL_FILE = "journal.jsonl"
CURVES_FOLDER = "tensorboard"


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
        self.note(line)
        return line

    def note(self, line: dict[str, float]) -> None:
        """Write a line as it is."""
        self.lines.append(line)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def state(self) -> dict[str, Any]:
        """Return what ``restore`` takes: all lines and the sums of the one to come."""
        return {"lines": list(self.lines), "sums": dict(self._sums), "count": self._count}

    @classmethod
    def restore(cls, path: Path, state: Mapping[str, Any]) -> Journal:
        """Return the journal that ``state`` was taken from."""
        journal = cls(path, list(state["lines"]))
        journal._sums, journal._count = dict(state["sums"]), int(state["count"])
        return journal


class Watch:
    """Shows a fit while it runs. Curves are in ``folder/tensorboard``, by step."""

    def __init__(self, folder: Path, step: int, position: float) -> None:
        """``step`` and ``position`` in [0, 1]: where the fit begins or goes on."""
        self._step, self._at_s = step, time.monotonic()
        # purge_step: what a fit that was cut off wrote after its last checkpoint is drawn anew
        self._curves = SummaryWriter(str(folder / CURVES_FOLDER), purge_step=step)
        self._bar = tqdm(
            total=100.0,
            initial=100.0 * position,
            bar_format="{percentage:5.1f} %|{bar}| {elapsed}<{remaining}{postfix}",
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
        )

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()
        self._curves.close()

    def move(self, position: float) -> None:
        """Show how far the schedule is."""
        self._bar.update(max(0.0, 100.0 * min(position, 1.0) - self._bar.n))

    def journalled(self, line: Mapping[str, float]) -> None:
        """Show a line of the journal: losses, learning rate, gradient norm, steps per second."""
        step, now_s = int(line["step"]), time.monotonic()
        speed = (step - self._step) / max(now_s - self._at_s, 1e-9)
        self._step, self._at_s = step, now_s
        losses = {k: v for k, v in line.items() if k not in ("step", "seconds", "lr")}
        norm = losses.pop("gradient_norm", None)
        for name, value in losses.items():
            self._curves.add_scalar(f"loss/{name}", value, step)
        self._curves.add_scalar("optimizer/lr", line["lr"], step)
        if norm is not None:
            self._curves.add_scalar("optimizer/gradient_norm", norm, step)
        self._curves.add_scalar("speed/steps_per_s", speed, step)
        shown = {name: f"{value:.4g}" for name, value in losses.items()}
        facts = {"step": step, **shown, "lr": f"{line['lr']:.2g}", "steps/s": f"{speed:.2g}"}
        self._bar.set_postfix(facts, refresh=False)

    def validated(self, step: int, figures: Mapping[str, float]) -> None:
        """Show figures on clips that are held out."""
        for name, value in figures.items():
            self._curves.add_scalar(f"validation/{name}", value, step)

    def say(self, sentence: str) -> None:
        """Print a line to the standard error, above the bar."""
        tqdm.write(sentence, file=sys.stderr)
