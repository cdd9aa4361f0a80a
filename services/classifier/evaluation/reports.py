"""Reports of an evaluation: Markdown tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.checkpoint import written_beside
from services.classifier.evaluation.results import Spread, Summary
from services.classifier.evaluation.scoring import ClassScore, ClipScores, TagScores


def write_text(path: Path, text: str) -> None:
    """Write a file beside ``path``, then rename it there."""
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report beside ``path``, then rename it there.

    Raises:
        ValueError: it holds a number that is not finite.
    """
    write_text(path, json.dumps(report, indent=1, allow_nan=False) + "\n")


def percent(share: float | None) -> str:
    """Return a share as a percentage with one decimal, a dash where there is none."""
    return "-" if share is None else f"{100 * share:.1f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns line up where it is read as it is."""
    widths = [max(len(row[at]) for row in (header, *rows)) for at in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def clips_table(scores: Mapping[tuple[str, str], ClipScores]) -> str:
    """Return a row per method and data set, by those names, of clips with one label. Percent."""
    header = (
        "method",
        "clips",
        "n",
        "accuracy",
        "open",
        "top-3",
        "precision",
        "recall",
        "F1",
        "mAP",
        "AUC",
        "ECE",
        "open ECE",
    )
    rows = [
        (
            *names,
            str(s.n),
            *map(
                percent,
                (
                    s.accuracy,
                    s.open_accuracy,
                    s.top3,
                    s.macro_precision,
                    s.macro_recall,
                    s.macro_f1,
                    s.mean_ap,
                    s.auc,
                    s.ece,
                    s.open_ece,
                ),
            ),
        )
        for names, s in scores.items()
    ]
    return markdown(header, rows)


def tags_table(scores: Mapping[tuple[str, str], TagScores]) -> str:
    """Return a row per method and data set, by those names, of clips with several labels."""
    header = (
        "method",
        "clips",
        "n",
        "mAP",
        "AUC",
        "lwlrap",
        "top-3",
        "threshold",
        "exact",
        "precision",
        "recall",
        "macro F1",
        "micro F1",
        "ECE",
    )
    rows = [
        (
            *names,
            str(s.n),
            percent(s.mean_ap),
            percent(s.auc),
            percent(s.lwlrap),
            percent(s.top3),
            f"{s.threshold:g}",
            percent(s.accuracy),
            percent(s.macro_precision),
            percent(s.macro_recall),
            percent(s.macro_f1),
            percent(s.micro_f1),
            percent(s.calibration.error),
        )
        for names, s in scores.items()
    ]
    return markdown(header, rows)


def classes_table(classes: Sequence[ClassScore]) -> str:
    """Return a row per class, in percent."""
    rows = [
        (c.label, str(c.n), *map(percent, (c.precision, c.recall, c.f1, c.average_precision)))
        for c in classes
    ]
    return markdown(("class", "n", "precision", "recall", "F1", "AP"), rows)


def summaries_table(summaries: Sequence[Summary]) -> str:
    """Return a row per method of one protocol, in percent: medians over the seeds."""
    folds = summaries[0].folds
    header = (
        "method",
        "seeds",
        "accuracy",
        "std",
        *(f"fold {fold}" for fold in folds),
        "open",
        "top-3",
        "macro F1",
        "mAP",
        "AUC",
        "ECE",
        "raw ECE",
        "open ECE",
        "raw open ECE",
    )
    rows = []
    for summary in summaries:
        accuracy = summary.measures["accuracy"]
        others = (
            "open_accuracy",
            "top3",
            "macro_f1",
            "mean_ap",
            "auc",
            "ece",
            "raw_ece",
            "open_ece",
            "raw_open_ece",
        )
        rows.append(
            (
                summary.method,
                str(len(summary.seeds)),
                percent(accuracy.median),
                percent(accuracy.std),
                *map(percent, accuracy.by_fold),
                *(percent(_median(summary.measures.get(name))) for name in others),
            )
        )
    return markdown(header, rows)


def _median(spread: Spread | None) -> float | None:
    return None if spread is None else spread.median
