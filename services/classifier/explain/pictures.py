"""Pictures of explanations, with seconds and hertz on their axes. Same input, same bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from common.mel import hz_to_mel, mel_centres_hz
from services.classifier.config import Config
from services.classifier.explain.answers import Answer, Reason
from services.classifier.explain.methods import ABOUT
from services.classifier.explain.question import FloatArray
from services.classifier.explain.regions import SMOOTH_BANDS, SMOOTH_FRAMES
from services.classifier.explain.stages import SHOWN_CHANNELS, StageMaps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 110
DEEPEST_DB = -70.0
TICKS_HZ = (100, 500, 1000, 2000, 4000, 8000, 16_000, 32_000)
STRONGEST_QUANTILE = 0.995
FOR, AGAINST = (0.84, 0.19, 0.10), (0.13, 0.35, 0.75)
COLUMNS = 3


def relevance_picture(answer: Answer, reason: Reason, config: Config) -> bytes:
    """Return a PNG: the log-mel spectrogram, and below it with the relevance laid over."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap

    figure = _figure(9.0, 6.0)
    figure.set_layout_engine("constrained")
    plain, overlaid = figure.subplots(2, 1, sharex=True)
    place = _placed(answer, config)
    level_db = 10.0 / np.log(10.0) * (answer.logmel - answer.logmel.max())
    shown = plain.imshow(level_db, cmap="magma", vmin=DEEPEST_DB, vmax=0.0, **place)
    figure.colorbar(shown, ax=plain, label="level (dB below the loudest)", pad=0.015)
    plain.set_title("what the classifier heard", loc="left", fontsize=9)

    values = ndimage.gaussian_filter(reason.relevance.values, (SMOOTH_BANDS, SMOOTH_FRAMES))
    strongest = float(np.quantile(np.abs(values), STRONGEST_QUANTILE)) or 1.0
    share = np.clip(values / strongest, -1.0, 1.0)
    overlaid.imshow(level_db, cmap="gray_r", vmin=DEEPEST_DB, vmax=0.0, alpha=0.55, **place)
    overlaid.imshow(_coloured(share), **place)
    if reason.chosen.any():
        F, T = reason.chosen.shape
        hop_s = config.hop_length / config.sample_rate
        overlaid.contour(
            answer.extract.start_s + hop_s * np.arange(T),
            np.arange(F),
            reason.chosen,
            levels=[0.5],
            colors="black",
            linewidths=0.7,
        )
    about = ABOUT[reason.method]
    overlaid.set_title(f"{about.title}: {about.says}", loc="left", fontsize=9)
    shades = [AGAINST, (1, 1, 1), FOR] if about.signed else [(1, 1, 1), FOR]
    scale = ScalarMappable(cmap=LinearSegmentedColormap.from_list("relevance", shades))
    scale.set_clim(-1.0 if about.signed else 0.0, 1.0)
    bar = figure.colorbar(scale, ax=overlaid, pad=0.015, ticks=[-1, 0, 1])
    bar.set_label("relevance (outlined: the most)")
    overlaid.set_xlabel("time in the recording (s)")
    for axes in (plain, overlaid):
        _in_hertz(axes, config)
    weak = "" if about.evidence == "strong" else "   ·   weak evidence"
    figure.suptitle(f"{_named(answer)}{weak}", x=0.01, ha="left", fontsize=11, weight="bold")
    return _png(figure)


def stage_picture(answer: Answer, stage: StageMaps, config: Config) -> bytes:
    """Return a PNG: the mean activity of a stage and its busiest maps, each on its own scale."""
    figure = _figure(9.0, 5.6)
    # laid out by hand: nine automatic layouts would take longer than the drawing
    place = {
        "left": 0.08,
        "right": 0.99,
        "bottom": 0.08,
        "top": 0.89,
        "hspace": 0.3,
        "wspace": 0.06,
    }
    grid = figure.subplots(
        -(-(SHOWN_CHANNELS + 1) // COLUMNS), COLUMNS, sharex=True, sharey=True, gridspec_kw=place
    )
    pictures = [
        (f"mean size of all {stage.n_channels} maps", stage.mean, "magma"),
        *(
            (f"map {channel}", values, "viridis")
            for channel, values in zip(stage.channels, stage.maps, strict=True)
        ),
    ]
    for axes in grid.flat[len(pictures) :]:
        axes.set_axis_off()
    for axes, (title, values, colours) in zip(grid.flat, pictures, strict=False):
        axes.imshow(values, cmap=colours, **_placed(answer, config))
        axes.set_title(title, fontsize=8)
    for axes in grid[:, 0]:
        _in_hertz(axes, config, every=2)
    for axes in grid[-1]:
        axes.set_xlabel("time (s)", fontsize=8)
    figure.suptitle(
        f"{_named(answer)}   ·   feature maps of {stage.stage}",
        x=0.01,
        ha="left",
        fontsize=11,
        weight="bold",
    )
    return _png(figure)


def _named(answer: Answer) -> str:
    return (
        f"{answer.label}, confidence {answer.confidence:.2f}, "
        f"{answer.extract.start_s:.2f} to {answer.extract.stop_s:.2f} s"
    )


def _figure(width_in: float, height_in: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _placed(answer: Answer, config: Config) -> dict[str, Any]:
    """Return how a map (f, t) of the whole window lies on axes of seconds and mel bands."""
    hop_s = config.hop_length / config.sample_rate
    start_s = answer.extract.start_s - hop_s / 2
    stop_s = start_s + answer.logmel.shape[1] * hop_s
    return {
        "extent": (start_s, stop_s, -0.5, config.n_mels - 0.5),
        "origin": "lower",
        "aspect": "auto",
        "interpolation": "nearest",
    }


def _coloured(share: FloatArray) -> FloatArray:
    """Return relevance in [-1, 1] as colours (F, T, 4), the clearer the stronger."""
    colours = np.where(share[..., None] > 0.0, FOR, AGAINST)
    return np.concatenate([colours, np.abs(share)[..., None] ** 0.7], axis=-1).astype(np.float32)


def _in_hertz(axes: Axes, config: Config, every: int = 1) -> None:
    centres = hz_to_mel(mel_centres_hz(config.n_mels, 0.0, config.sample_rate / 2))
    ticks_hz = [hz for hz in TICKS_HZ[::every] if hz <= config.sample_rate / 2]
    per_band = centres[1] - centres[0]
    axes.set_yticks(
        [float((hz_to_mel(hz) - centres[0]) / per_band) for hz in ticks_hz],
        [f"{hz / 1000:g}k" if hz >= 1000 else str(hz) for hz in ticks_hz],
    )
    axes.set_ylim(-0.5, config.n_mels - 0.5)
    axes.set_ylabel("frequency (Hz)")
