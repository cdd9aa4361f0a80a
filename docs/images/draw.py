"""Draws the README's picture: one recording and what Soundmill made of it.

    python docs/images/draw.py RECORDING RESULTS_FOLDER docs/images/NAME.png

Needs matplotlib besides the project's own environment.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import soundfile
import typer
from scipy.signal import stft

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

WINDOW_S = 0.03
FLOOR_DB = -90.0
TOP_HZ = 16_000
TICKS_HZ = (100, 500, 2_000, 8_000)


def draw_sound(axes: Axes, path: Path, title: str) -> None:
    """Draw the spectrogram of a file, all channels as one, in dB below its loudest bin."""
    audio, rate = soundfile.read(path, always_2d=True)
    size = round(WINDOW_S * rate)
    freqs, times, spectrum = stft(audio.mean(axis=1), rate, nperseg=size, noverlap=size * 3 // 4)
    level_db = 20 * np.log10(np.abs(spectrum) + 1e-9)
    axes.pcolormesh(
        times, freqs, level_db, vmin=FLOOR_DB, vmax=level_db.max(), cmap="magma", rasterized=True
    )
    axes.set_title(title, loc="left", fontsize=9)


def draw_mask(axes: Axes, path: Path) -> None:
    """Draw the mask: probability of foreground, white is 1."""
    with np.load(path) as archive:
        meta = json.loads(archive["meta"].tobytes())
        names = sorted(name for name in archive.files if name.startswith("frames"))
        mask = np.concatenate([archive[name] for name in names], axis=1) / 255
    times = np.arange(mask.shape[1]) * meta["hop_s"]
    axes.pcolormesh(times, meta["centres_hz"], mask, vmin=0, vmax=1, cmap="gray", rasterized=True)
    axes.set_title("mask: probability of foreground", loc="left", fontsize=9)


def draw_events(axes: Axes, path: Path) -> None:
    """Draw events as labelled lines over the mask, a height for each label."""
    events = json.loads(path.read_text())["events"]
    labels = sorted({event["label"] for event in events})
    for event in events:
        row = labels.index(event["label"])
        height_hz = TOP_HZ * 0.75 / 2**row
        span = (event["onset_s"], event["offset_s"])
        axes.plot(span, (height_hz, height_hz), color="tab:cyan", linewidth=2)
        text = f"{event['label']} {event['confidence']:.2f}"
        label = axes.text(span[0], height_hz * 0.93, text, fontsize=7, color="cyan", va="top")
        label.set_path_effects([withStroke(linewidth=2, foreground="black")])


def main(recording: Path, results: Path, picture: Path) -> None:
    """Draw RECORDING and its RESULTS into PICTURE."""
    figure, rows = plt.subplots(4, 1, figsize=(9, 7.5), sharex=True, layout="constrained")
    draw_sound(rows[0], recording, f"recording: {recording.name}")
    draw_mask(rows[1], results / "mask.npz")
    draw_events(rows[1], results / "events.json")
    for axes, kind in ((rows[2], "enhanced"), (rows[3], "restored")):
        found = next(results.glob(f"{kind}.*"))
        title = {
            "enhanced": "enhanced: cleaned and widened",
            "restored": "restored: found events reduced",
        }
        draw_sound(axes, found, title[kind])
    for axes in rows:
        axes.set_yscale("symlog", linthresh=500)
        axes.set_ylim(50, TOP_HZ)
        axes.set_yticks(TICKS_HZ, [f"{hz / 1000:g} kHz" for hz in TICKS_HZ], fontsize=7)
    rows[-1].set_xlabel("seconds", fontsize=8)
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    typer.run(main)
