"""How faithful explanations are on real clips: deletion and insertion of each method and of chance.

Every method explains the label that the classifier is surest of, on the first clips of each class
in fold 5 of ESC-10. Lower deletion and higher insertion are better.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import torch
import typer

from common.audio import read_clip
from common.checkpoint import written_beside
from common.datasets import Clip, load_layout
from services.classifier.admission import device_named
from services.classifier.config import WINDOW_SEGMENTS
from services.classifier.explain.answers import MAPS, question_of
from services.classifier.explain.faithfulness import at_random, by_relevance, faithfulness, fills
from services.classifier.explain.methods import possible
from services.classifier.explain.question import Question, Relevance
from services.classifier.explain.windows import Extract
from services.classifier.infer import load
from services.classifier.listening import LoadedClassifier
from services.classifier.selection import plain_errors

FOLD = 5
CHANCES = 3
"""Random orders per clip, of which the mean is taken."""


def main(
    data: Annotated[Path, typer.Option(help="folder of ESC-10, or ESC-50")],
    json_path: Annotated[Path | None, typer.Option("--json", help="where the table goes")] = None,
    weights: Annotated[Path | None, typer.Option(help="by default those that are shipped")] = None,
    per_class: Annotated[int, typer.Option(min=1, help="clips per class")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads")] = 1,
) -> None:
    """Measure deletion and insertion against chance, and print a table."""
    torch.set_num_threads(threads)
    with plain_errors():
        loaded = load(device_named(device), weights)
        clips = _first_of_each([c for c in load_layout(data, "esc10") if c.fold == FOLD], per_class)
        rows: list[dict[str, Any]] = []
        for clip in clips:
            question = _question(loaded, clip)
            for method in possible(loaded.config):
                if method in MAPS:
                    rows += _measured(question, clip, method, MAPS[method])
            rows += _chance(question, clip)
        table = _table(rows)
        for line in table:
            typer.echo(
                f"{line['fill']:<12}{line['method']:<22}deletion {line['deletion']:.3f}   "
                f"insertion {line['insertion']:.3f}   better than chance: "
                f"{line['deletion_wins']}, {line['insertion_wins']} of {len(clips)}   "
                f"{line['processor_s']:.2f} s"
            )
        if json_path is not None:
            document = {"weights": loaded.digest, "clips": len(clips), "table": table, "rows": rows}
            with written_beside(json_path) as beside:
                beside.write_text(json.dumps(document, indent=1) + "\n")


def _first_of_each(clips: list[Clip], count: int) -> list[Clip]:
    found: dict[str, list[Clip]] = {}
    for clip in clips:
        found.setdefault(clip.label, []).append(clip)
    return [clip for label in sorted(found) for clip in found[label][:count]]


def _question(loaded: LoadedClassifier, clip: Clip) -> Question:
    """Return why the best label of a clip's first window was heard."""
    config = loaded.config
    window = WINDOW_SEGMENTS * config.segment_samples
    heard = read_clip(clip.path, config.sample_rate)[:window]
    extract = Extract(0.0, len(heard) / config.sample_rate, heard, heard, config.sample_rate, None)
    first = question_of(loaded, extract, config.labels[0])
    with torch.no_grad():
        best = int(loaded.model(first.logmel).clip.argmax())
    return question_of(loaded, extract, config.labels[best])


def _measured(
    question: Question, clip: Clip, method: str, explain: Callable[[Question], Relevance]
) -> list[dict[str, Any]]:
    began_s = time.process_time()
    relevance = explain(question)
    took_s = time.process_time() - began_s
    order = by_relevance(relevance.values)
    return [
        {
            "clip": clip.path.name,
            "method": method,
            "fill": name,
            "processor_s": took_s,
            "conservation_error": relevance.conservation_error,
            "deletion": (found := faithfulness(question, order, fill)).deletion,
            "insertion": found.insertion,
        }
        for name, fill in fills(question).items()
    ]


def _chance(question: Question, clip: Clip) -> list[dict[str, Any]]:
    rows = []
    for name, fill in fills(question).items():
        found = [faithfulness(question, at_random(question, seed), fill) for seed in range(CHANCES)]
        rows.append(
            {
                "clip": clip.path.name,
                "method": "chance",
                "fill": name,
                "processor_s": 0.0,
                "conservation_error": None,
                "deletion": mean(one.deletion for one in found),
                "insertion": mean(one.insertion for one in found),
            }
        )
    return rows


def _table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean of every method and fill, and on how many clips it beats chance."""
    chance = {(row["clip"], row["fill"]): row for row in rows if row["method"] == "chance"}
    table = []
    for fill in dict.fromkeys(row["fill"] for row in rows):
        for method in dict.fromkeys(row["method"] for row in rows):
            own = [row for row in rows if (row["method"], row["fill"]) == (method, fill)]
            beside = [chance[row["clip"], fill] for row in own]
            pairs = list(zip(own, beside, strict=True))
            errors = [row["conservation_error"] for row in own]
            table.append(
                {
                    "method": method,
                    "fill": fill,
                    "deletion": mean(row["deletion"] for row in own),
                    "insertion": mean(row["insertion"] for row in own),
                    "deletion_wins": sum(a["deletion"] < b["deletion"] for a, b in pairs),
                    "insertion_wins": sum(a["insertion"] > b["insertion"] for a, b in pairs),
                    "processor_s": mean(row["processor_s"] for row in own),
                    "largest_conservation_error": max(
                        (error for error in errors if error is not None), default=None
                    ),
                }
            )
    return table


if __name__ == "__main__":
    typer.run(main)
