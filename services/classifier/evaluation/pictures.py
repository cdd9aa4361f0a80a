"""Pictures of an evaluation: confusion, reliability, folds. Drawn without a display.

matplotlib is imported where a picture is drawn, and its global state is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.checkpoint import written_beside
from services.classifier.evaluation.scoring import Calibration, Confusion, TagCounts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]

DPI = 110
NUMBERED_CLASSES = 25
"""With more classes than this, a confusion matrix shows colours only."""
SIDE_IN = 5.2
"""Width of the diagrams beside the matrix, in inches."""
RELIABILITY_IN = 3.8
CELL_IN = 0.24
BAR_IN = 0.2
PANELS_PER_ROW = 4
DARK = 0.5
"""From this share of a row on, numbers are white."""


def evaluation_picture(
    path: Path,
    title: str,
    confusion: Confusion,
    calibration: Calibration,
    bars: Mapping[str, Sequence[float]],
    bars_title: str,
) -> None:
    """Draw a confusion matrix, a reliability diagram and a strip of bars into a PNG.

    Args:
        path: where it goes; written beside, then renamed.
        title: of the whole.
        confusion: which class was taken for which.
        calibration: of the confidence that belongs to the choices.
        bars: by name, the values in [0, 1] whose mean is the bar and which are dots on it.
        bars_title: what the bars are.
    """
    from matplotlib.figure import Figure

    matrix_in = 2.4 + max(4.2, CELL_IN * len(confusion.labels))
    bars_in = 0.9 + BAR_IN * len(bars)
    height_in = max(matrix_in - 0.6, RELIABILITY_IN + bars_in + 0.4)
    figure = Figure(figsize=(matrix_in + SIDE_IN, height_in), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(
        2,
        2,
        width_ratios=(matrix_in, SIDE_IN),
        height_ratios=(RELIABILITY_IN, height_in - 0.4 - RELIABILITY_IN),
    )
    figure.suptitle(title)
    _draw_confusion(figure, figure.add_subplot(grid[:, 0]), confusion)
    _draw_reliability(figure.add_subplot(grid[0, 1]), calibration)
    _draw_bars(figure.add_subplot(grid[1, 1]), bars, bars_title)
    _save(figure, path)


def tags_picture(
    path: Path,
    title: str,
    counts: Sequence[TagCounts],
    calibration: Calibration,
    bars: Mapping[str, Sequence[float]],
    bars_title: str,
) -> None:
    """Draw what there is to see where clips have several labels: a two by two for each label.

    Args:
        path: where it goes; written beside, then renamed.
        title: of the whole.
        counts: of each label, hits and misses, false alarms and what was rightly not found.
        calibration: of all pairs of clip and label.
        bars: as for ``evaluation_picture``.
        bars_title: what the bars are.
    """
    from matplotlib.figure import Figure

    height_in = max(4.6, 1.2 + BAR_IN * max(len(bars), len(counts)))
    figure = Figure(figsize=(3 * SIDE_IN, height_in), dpi=DPI, layout="constrained")
    figure.suptitle(title)
    left, middle, right = figure.subplots(1, 3)
    _draw_counts(left, counts)
    _draw_reliability(middle, calibration)
    _draw_bars(right, bars, bars_title)
    _save(figure, path)


def grid_picture(
    path: Path,
    title: str,
    panels: Mapping[str, Array],
    rows: Sequence[str],
    columns: Sequence[str],
) -> None:
    """Draw tables of shares in [0, 1] as colours with their percentages; NaN is left blank.

    Args:
        path: where it goes; written beside, then renamed.
        title: of the whole.
        panels: by title, an array (rows, columns).
        rows: names down the side.
        columns: names along the bottom.
    """
    from matplotlib.figure import Figure

    across = min(PANELS_PER_ROW, len(panels))
    down = -(-len(panels) // across)
    size_in = (2.4 + across * 0.75 * len(columns), 0.8 + down * (1.1 + 0.5 * len(rows)))
    figure = Figure(figsize=size_in, dpi=DPI, layout="constrained")
    figure.suptitle(title)
    known = np.concatenate([values[np.isfinite(values)] for values in panels.values()])
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    for ax, (name, values) in zip(axes, panels.items(), strict=False):
        image = ax.imshow(
            values, cmap="viridis", vmin=low, vmax=max(high, low + 1e-6), aspect="auto"
        )
        ax.set_title(name, fontsize=9)
        ax.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=8)
        ax.set_yticks(range(len(rows)), rows, fontsize=8)
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "black" if value > (low + high) / 2 else "white"
                ax.text(
                    column,
                    row,
                    f"{100 * value:.1f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=colour,
                )
    figure.colorbar(image, ax=axes.tolist(), label="accuracy", shrink=0.8, pad=0.02)
    _save(figure, path)


def _draw_confusion(figure: Figure, ax: Axes, confusion: Confusion) -> None:
    """Colour by share of the row, number by count."""
    labels, counts = confusion.labels, np.array(confusion.counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = ax.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    size = 9 if len(labels) <= NUMBERED_CLASSES else 7
    ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size)
    ax.set_yticks(
        range(len(labels)),
        [f"{label} ({n})" for label, n in zip(labels, counts.sum(axis=1), strict=True)],
        fontsize=size,
    )
    ax.set_xlabel("heard as")
    ax.set_ylabel("is (clips)")
    if len(labels) <= NUMBERED_CLASSES:
        for (row, column), n in np.ndenumerate(counts):
            if n:
                colour = "white" if shares[row, column] >= DARK else "black"
                ax.text(column, row, str(n), ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=ax, label="share of the row", fraction=0.04, pad=0.02, shrink=0.6)


def _draw_counts(ax: Axes, counts: Sequence[TagCounts]) -> None:
    """A row per label; colour by share of the clips that have it, or that do not."""
    numbers = np.array([(c.hits, c.misses, c.false_alarms, c.rejections) for c in counts])
    halves = numbers.reshape(-1, 2, 2)
    shares = (halves / np.maximum(halves.sum(axis=2, keepdims=True), 1)).reshape(-1, 4)
    ax.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    size = 8 if len(counts) <= NUMBERED_CLASSES else 6
    ax.set_xticks(range(4), ["hits", "misses", "false alarms", "rightly not"], fontsize=8)
    ax.set_yticks(range(len(counts)), [c.label for c in counts], fontsize=size)
    ax.axvline(1.5, color="black", linewidth=0.8)
    for (row, column), n in np.ndenumerate(numbers):
        colour = "white" if shares[row, column] >= DARK else "black"
        ax.text(column, row, str(n), ha="center", va="center", fontsize=size - 1, color=colour)
    ax.set_title("clips: labels found and not", fontsize=10)


def _draw_reliability(ax: Axes, calibration: Calibration) -> None:
    """Accuracy by confidence, the diagonal being right; below, how many clips are in a bin."""
    bins = len(calibration.counts)
    edges = np.arange(bins) / bins
    counts = np.array(calibration.counts)
    filled = counts > 0
    ax.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    ax.bar(
        edges[filled],
        np.array(calibration.accuracy)[filled],
        width=1 / bins,
        align="edge",
        color="tab:blue",
        edgecolor="white",
        label="right",
    )
    ax.plot(
        edges[filled] + 0.5 / bins,
        np.array(calibration.confidence)[filled],
        "o",
        color="tab:orange",
        markersize=4,
        label="mean confidence",
    )
    share = ax.twinx()
    share.step(
        np.append(edges, 1.0),
        np.append(counts, counts[-1]) / max(1, counts.sum()),
        where="post",
        color="black",
        linewidth=0.8,
    )
    share.set_ylim(0.0, 1.0)
    share.set_ylabel("share of the clips (line)", fontsize=8)
    ax.set_xlim(0.0, 1.0)
    ax.set_ylim(0.0, 1.0)
    ax.set_xlabel("confidence")
    ax.set_title(f"calibration error {100 * calibration.error:.1f} %", fontsize=10)
    ax.legend(loc="upper left", fontsize=8)


def _draw_bars(ax: Axes, bars: Mapping[str, Sequence[float]], title: str) -> None:
    """Draw horizontal bars, the first on top."""
    names = list(bars)
    places = range(len(names))
    means = [float(np.mean(bars[name])) if len(bars[name]) else 0.0 for name in names]
    ax.barh(places, means, color="tab:blue", alpha=0.6)
    for place, name in zip(places, names, strict=True):
        if len(bars[name]) > 1:
            ax.plot(bars[name], [place] * len(bars[name]), ".", color="black", markersize=4)
        ax.text(0.01, place, f"{100 * means[place]:.1f}", va="center", fontsize=7)
    ax.set_yticks(places, names, fontsize=8 if len(names) <= NUMBERED_CLASSES else 6)
    ax.set_ylim(len(names) - 0.4, -0.6)  # the first on top
    ax.set_xlim(0.0, 1.0)
    ax.set_title(title, fontsize=10)


def _save(figure: Figure, path: Path) -> None:
    with written_beside(path) as beside:
        figure.savefig(beside, format="png")
