"""How well texts are understood: ``python -m tests.text.measure`` prints it as JSON.

``paraphrases`` and ``out_of_vocabulary`` are held out: written before the aliases, and no threshold
was chosen on them. ``development`` is what thresholds and lists were worked on with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.labels import LABELS
from common.text.understanding import THRESHOLD, Guess, Judge, understand

FOLDER = Path(__file__).parent
THRESHOLDS = [n / 20 for n in range(6, 20)]


@dataclass(frozen=True)
class Case:
    """A text and the labels it asks for. ``kind``: one, several, negated, or other (none)."""

    text: str
    kind: str
    labels: frozenset[str]


def cases(name: str) -> list[Case]:
    """Return the cases of a file of this folder."""
    lines = FOLDER.joinpath(f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Case(row["text"], row.get("kind", "other"), frozenset(_labels(row))) for row in rows]


def _labels(row: dict[str, Any]) -> set[str]:
    if "all_but" in row:
        return set(LABELS) - set(row["all_but"])
    return set(row.get("labels", ()))


def share_right(
    found: Sequence[Case], threshold: float = THRESHOLD, judge: Judge | None = None
) -> float:
    """Return for which share of texts exactly the expected labels are taken."""
    taken = [understand(case.text, threshold, judge=judge).labels for case in found]
    right = [frozenset(got) == case.labels for got, case in zip(taken, found, strict=True)]
    return sum(right) / len(right)


def false_acceptance(
    found: Sequence[Case], threshold: float = THRESHOLD, judge: Judge | None = None
) -> float:
    """Return for which share of texts any label is taken."""
    taken = [understand(case.text, threshold, judge=judge).labels for case in found]
    return sum(map(bool, taken)) / len(found)


def wrong(found: Sequence[Case]) -> list[dict[str, Any]]:
    """Return the texts that are taken for something else, with what they are taken for."""
    taken = [(case, understand(case.text)) for case in found]
    return [
        {"text": case.text, "wanted": sorted(case.labels), "taken": list(got.labels)}
        for case, got in taken
        if frozenset(got.labels) != case.labels
    ]


def measure(with_wrong: bool) -> dict[str, Any]:
    """Return all figures; ``with_wrong`` adds the texts of the held-out sets that fail."""
    paraphrases, others = cases("paraphrases"), cases("out_of_vocabulary")
    development = cases("development")
    known = [case for case in development if case.kind != "other"]
    unknown = [case for case in development if case.kind == "other"]
    kinds = sorted({case.kind for case in paraphrases})
    found: dict[str, Any] = {
        "threshold": THRESHOLD,
        "paraphrases": {
            "texts": len(paraphrases),
            "right": round(share_right(paraphrases), 4),
            "right_by_kind": {
                kind: round(share_right([c for c in paraphrases if c.kind == kind]), 4)
                for kind in kinds
            },
        },
        "out_of_vocabulary": {
            "texts": len(others),
            "false_acceptance": round(false_acceptance(others), 4),
        },
        "development": {
            "texts": len(development),
            "by_threshold": {
                str(threshold): {
                    "right": round(share_right(known, threshold), 4),
                    "false_acceptance": round(false_acceptance(unknown, threshold), 4),
                }
                for threshold in THRESHOLDS
            },
        },
    }
    if with_wrong:
        found["wrong"] = wrong([*paraphrases, *others])
    return found


def measure_encoder(folder: Path) -> dict[str, Any]:
    """Return what a sentence encoder adds, by its threshold; above 1 it adds nothing."""
    from common.text.encoder import Encoder

    known = [case for name in ("paraphrases", "development") for case in cases(name)]
    others = [*cases("out_of_vocabulary"), *(case for case in known if case.kind == "other")]
    known = [case for case in known if case.kind != "other"]
    nearest = Encoder(folder, LABELS, 0.0).nearest

    def figures(threshold: float) -> dict[str, float]:
        def judge(words: str) -> Guess | None:
            guess = nearest(words)
            return guess if guess and guess.confidence >= threshold else None

        return {
            "right": round(share_right(known, judge=judge), 4),
            "false_acceptance": round(false_acceptance(others, judge=judge), 4),
        }

    return {str(threshold): figures(threshold) for threshold in (*THRESHOLDS, 1.01)}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wrong", action="store_true", help="also name the texts that fail")
    parser.add_argument("--encoder", type=Path, help="a model's folder: measure that instead")
    options = parser.parse_args()
    found = measure_encoder(options.encoder) if options.encoder else measure(options.wrong)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
