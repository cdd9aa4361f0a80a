"""Look at a data set before anything is trained on it: ``python -m common.datasets --help``."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import typer

from common.checkpoint import written_beside
from common.datasets.bank import ClipBank
from common.datasets.clips import LAYOUTS, Clip, labels_of
from common.datasets.folds import folds_of
from common.datasets.layouts import load_layout
from common.datasets.leaks import duplicates_of, find_leaks
from common.errors import DatasetError


def main(
    data: Annotated[Path, typer.Option(help="folder of the data set, or a manifest")],
    layout: Annotated[str, typer.Option(help=f"one of {', '.join(LAYOUTS)}")],
    against: Annotated[
        Path | None, typer.Option(help="another set, to find what both hold")
    ] = None,
    against_layout: Annotated[str, typer.Option(help="its layout")] = "csv",
    uploaders: Annotated[bool, typer.Option(help="clips of one uploader leak too")] = False,
    cache: Annotated[
        Path | None, typer.Option(help="decode every clip into this folder, and compare samples")
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="where to write it too")] = None,
) -> None:
    """Show classes, folds, leaks between folds, duplicates, and clips that cannot be decoded."""
    try:
        report = inspect(data, layout, against, against_layout, uploaders, cache)
        text = json.dumps(report, indent=2)
        if json_path is not None:
            with written_beside(json_path) as beside:
                beside.write_text(text + "\n")
    except DatasetError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        typer.echo(f"{place}{error.strerror or error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(text)


def inspect(
    data: Path,
    layout: str,
    against: Path | None = None,
    against_layout: str = "csv",
    uploaders: bool = False,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Return what ``main`` shows. Raises DatasetError where a set cannot be loaded."""
    start = time.process_time()
    clips = load_layout(data, layout)
    load_s = time.process_time() - start
    others = [] if against is None else load_layout(against, against_layout)
    bank = None
    report: dict[str, Any] = {"layout": layout, "load_processor_s": round(load_s, 3)}
    if cache is not None:
        bank = ClipBank.open([*clips, *others], cache, skip_corrupt=True, progress=True)
        report["corrupt"] = {str(one.clip.path): one.reason for one in bank.skipped}
        gone = {one.clip.path for one in bank.skipped}
        clips = [clip for clip in clips if clip.path not in gone]
        others = [clip for clip in others if clip.path not in gone]

    def leaks(train: Sequence[Clip], test: Sequence[Clip]) -> dict[str, int]:
        found = find_leaks(train, test, bank=bank, uploaders=uploaders)
        return dict(Counter(leak.shared.kind for leak in found))

    folds = {fold: [clip for clip in clips if clip.fold == fold] for fold in folds_of(clips)}
    between = {f"{a} and {b}": leaks(folds[a], folds[b]) for a, b in combinations(folds, 2)}
    report |= {
        "clips": len(clips),
        "clips_of_each_fold": {fold: len(part) for fold, part in folds.items()},
        "sources": len({clip.source_id for clip in clips}),
        "classes": {label: _by_fold(clips, label) for label in labels_of(clips)},
        "leaks_between_folds": {pair: found for pair, found in between.items() if found},
        "duplicates": [[str(clip.path) for clip in group] for group in duplicates_of(clips)],
    }
    if against is not None:
        report["leaks_against"] = leaks(clips, others)
        report["leaked_against"] = leaks(others, clips)
    return report


def _by_fold(clips: Sequence[Clip], label: str) -> dict[int, int]:
    counts = Counter(clip.fold for clip in clips if label in clip.labels)
    return {fold: counts[fold] for fold in folds_of(clips)}


if __name__ == "__main__":
    typer.run(main)
