"""Measures the enhancer on the test split: ``python -m services.enhancer.evaluate --data DIR``.

Noise suppression: urban events over air conditioning and idling engines at 0, 5 and 10 dB, from a
fold no model has seen, and soundscapes of unseen clips; SI-SDR improvement. Widening: clips of an
unseen fold from 16 and 8 kHz to 44.1 kHz; log-spectral distance and SNR. Speed: seconds of one core
per second of audio.

With ``--export`` the mixtures are written as files instead; masks that the real segmenter makes of
them are then read with ``--masks``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soxr
import torch
import typer

from common.audio import AudioWriter
from common.datasets import Clip, ClipBank, clips_of, load_clips
from common.errors import ArtifactInvalid
from common.masks import MaskReader
from common.soundscapes import cast_of, make_soundscape
from services.enhancer import peers
from services.enhancer.config import ANALYSIS_RATE_HZ, CD_RATE_HZ, GAIN_HOP_S, WEIGHTS
from services.enhancer.data import degraded, log_mel, oracle_mask, wide_clips
from services.enhancer.infer import LoadedEnhancer, load
from services.enhancer.suppress import Suppressor
from services.enhancer.widen import Widener

Waveform = np.ndarray[Any, np.dtype[np.float32]]
Table = dict[str, dict[str, float]]

SNRS_DB = (0, 5, 10)
NOISES = frozenset({"air_conditioner", "engine_idling"})
EVENTS = frozenset(
    {"car_horn", "children_playing", "dog", "drilling", "gun_shot", "jackhammer", "siren"}
)
MIXTURE_S = 4.0
GAIN_FLOOR_DB = -20.0
RATES_IN_HZ = (16_000, 8_000)


@dataclass(frozen=True)
class Mixture:
    """``mixture`` (n,) at 32 kHz is ``foreground`` (n,) plus noise. ``group``: a table's column."""

    name: str
    group: str
    mixture: Waveform
    foreground: Waveform


class GridMask:
    """A mask that lies on the gain grid already, in the place of a ``MaskReader``."""

    def __init__(self, mask: Waveform) -> None:
        self._mask = mask

    def on_grid(
        self, start_s: float, n_frames: int, hop_s: float, freqs_hz: np.ndarray[Any, Any]
    ) -> Waveform:
        """Return frames (64, n_frames) from ``start_s``; the last one holds past the end."""
        first = round(start_s / GAIN_HOP_S)
        index = np.minimum(first + np.arange(n_frames), self._mask.shape[1] - 1)
        return self._mask[:, index]


def mixtures(bank: ClipBank, clips: list[Clip], n: int) -> Iterator[Mixture]:
    """Yield ``n`` fixed mixtures at each of ``SNRS_DB``: powers over the whole 4 s."""
    rng = np.random.default_rng(20)
    urban = [clip for clip in clips if clip.dataset == "us8k"]
    events = [clip for clip in urban if clip.label in EVENTS]
    noises = [clip for clip in urban if clip.label in NOISES]
    samples = round(MIXTURE_S * bank.sample_rate)
    for index in range(n):
        event = _fitted(bank.waveform(events[rng.integers(len(events))]), samples, repeat=False)
        noise = _fitted(bank.waveform(noises[rng.integers(len(noises))]), samples, repeat=True)
        for snr_db in SNRS_DB:
            ratio = np.sqrt((event @ event) / (noise @ noise + 1e-9)) * 10 ** (-snr_db / 20)
            mixture = event + noise * np.float32(ratio)
            scale = np.float32(0.5 / np.abs(mixture).max())
            name = f"mix{index:03d}_{snr_db:02d}db"
            yield Mixture(name, f"{snr_db} dB", mixture * scale, event * scale)


def soundscapes(bank: ClipBank, clips: list[Clip], n: int) -> Iterator[Mixture]:
    """Yield ``n`` fixed soundscapes of the test split, 1 to 4 events at -5 to 15 dB each."""
    cast = cast_of(clips)
    for index in range(n):
        rng = np.random.default_rng([23, index])
        scape = make_soundscape(
            bank, cast.foreground, cast.background, rng, 5.0, max_events=4, snr_db=(-5.0, 15.0)
        )
        foreground = scape.mixture - scape.background
        yield Mixture(f"scape{index:03d}", "soundscapes", scape.mixture, foreground)


def _fitted(waveform: Waveform, samples: int, repeat: bool) -> Waveform:
    if repeat:
        waveform = np.tile(waveform, -(-samples // len(waveform)))
    return np.pad(waveform, (0, max(0, samples - len(waveform))))[:samples]


def suppressed(loaded: LoadedEnhancer, mixture: Waveform, mask: Any) -> Waveform:
    """Return a mixture (n,) at 32 kHz as the service would clean it."""
    suppressor = Suppressor(
        loaded.denoiser,
        loaded.front_end,
        loaded.device,
        ANALYSIS_RATE_HZ,
        1,
        GAIN_FLOOR_DB,
        mask,
    )
    return np.concatenate(list(suppressor.process([mixture[None]])), axis=1)[0]


def suppression_table(
    loaded: LoadedEnhancer, made: list[Mixture], masks: dict[str, Path]
) -> dict[str, Table]:
    """Return SI-SDR improvement in dB, mean and standard error, by method and group."""
    front_end = log_mel()
    rng = np.random.default_rng(21)
    scores: dict[str, dict[str, list[float]]] = {}
    plain: dict[str, Callable[[Waveform, Waveform], Waveform]] = {
        "Wiener": peers.wiener,
        "spectral gate": peers.spectral_gate,
        "oracle ratio mask (ceiling)": peers.oracle_ratio_mask,
    }
    if peers.has_noisereduce():
        plain["noisereduce"] = peers.noisereduce
        plain["noisereduce, stationary"] = peers.noisereduce_stationary
    for item in made:
        before = peers.si_sdr_db(item.mixture, item.foreground)
        foreground = torch.from_numpy(item.foreground)[None]
        background = torch.from_numpy(item.mixture - item.foreground)[None]
        oracle = oracle_mask(front_end, foreground, background)[0].numpy()
        results = {name: run(item.mixture, item.foreground) for name, run in plain.items()}
        results["ours, no mask"] = suppressed(loaded, item.mixture, None)
        blurred = GridMask(degraded(oracle, rng))
        results["ours, degraded oracle mask"] = suppressed(loaded, item.mixture, blurred)
        results["ours, oracle mask"] = suppressed(loaded, item.mixture, GridMask(oracle))
        if item.name in masks:
            with MaskReader(masks[item.name]) as mask:
                results["ours, the segmenter's mask"] = suppressed(loaded, item.mixture, mask)
        for name, estimate in results.items():
            gained = peers.si_sdr_db(estimate, item.foreground) - before
            scores.setdefault(name, {}).setdefault(item.group, []).append(gained)
    return {
        name: {group: _summary(values) for group, values in by_group.items()}
        for name, by_group in scores.items()
    }


def _summary(values: list[float]) -> dict[str, float]:
    error = float(np.std(values) / np.sqrt(len(values)))
    return {"mean": round(float(np.mean(values)), 3), "standard_error": round(error, 3)}


def widening_table(loaded: LoadedEnhancer, bank: ClipBank, clips: list[Clip]) -> dict[str, Table]:
    """Return LSD (full, high band) and SNR by input rate and method."""
    tables: dict[str, Table] = {}
    for rate_in in RATES_IN_HZ:
        scores: dict[str, list[tuple[float, float, float]]] = {}
        for clip in clips:
            target = bank.waveform(clip)
            narrow = soxr.resample(target, bank.sample_rate, rate_in, quality="HQ")
            n = len(target)
            results = {
                "soxr": peers.upsampled(narrow, rate_in, bank.sample_rate, n),
                "spectral band replication": peers.spectral_band_replication(
                    narrow, rate_in, bank.sample_rate, n
                ),
            }
            for name, generator in loaded.generators.items():
                widener = Widener(generator, loaded.device, rate_in, bank.sample_rate)
                wide = np.concatenate(list(widener.process([narrow[None]])), axis=1)[0]
                results[f"ours, {name}"] = np.pad(wide, (0, max(0, n - len(wide))))[:n]
            for name, estimate in results.items():
                rate = bank.sample_rate
                scores.setdefault(name, []).append(
                    (
                        peers.log_spectral_distance(estimate, target, rate),
                        peers.log_spectral_distance(estimate, target, rate, rate_in / 2),
                        peers.snr_db(estimate, target),
                    )
                )
        tables[f"{rate_in} Hz"] = {
            name: {
                "lsd": round(float(np.mean([row[0] for row in rows])), 3),
                "lsd_high": round(float(np.mean([row[1] for row in rows])), 3),
                "snr_db": round(float(np.mean([row[2] for row in rows])), 2),
            }
            for name, rows in scores.items()
        }
    return tables


def speed_table(loaded: LoadedEnhancer, seconds: float = 30.0) -> dict[str, float]:
    """Return processor seconds per second of audio: mono noise, 48 kHz and 16 kHz."""
    rng = np.random.default_rng(22)

    def blocks(rate: int) -> Iterator[Waveform]:
        for _ in range(round(seconds / 5.0)):
            yield (0.1 * rng.standard_normal((1, 5 * rate))).astype(np.float32)

    def rtf(stream: Iterator[Waveform]) -> float:
        started_s = time.process_time()
        for _ in stream:
            pass
        return round((time.process_time() - started_s) / seconds, 4)

    def suppressor(rate: int) -> Suppressor:
        return Suppressor(
            loaded.denoiser, loaded.front_end, loaded.device, rate, 1, GAIN_FLOOR_DB, None
        )

    def widener() -> Widener:
        return Widener(loaded.generators["gan"], loaded.device, 16_000, 48_000)

    for _ in suppressor(48_000).process(blocks(48_000)):  # the first run builds caches
        break
    return {
        "suppression_48k": rtf(suppressor(48_000).process(blocks(48_000))),
        "suppression_16k": rtf(suppressor(16_000).process(blocks(16_000))),
        "widening_16k_to_48k": rtf(widener().process(blocks(16_000))),
    }


def find_masks(folder: Path, made: list[Mixture]) -> dict[str, Path]:
    """Return the mask file of each mixture: an .npz with the mixture's name in its path."""
    files = sorted(folder.rglob("*.npz"))
    found = {}
    for item in made:
        for path in files:
            if item.name in str(path.relative_to(folder)) and _is_mask(path):
                found[item.name] = path
                break
    return found


def _is_mask(path: Path) -> bool:
    try:
        MaskReader(path).close()
    except ArtifactInvalid:
        return False
    return True


def main(
    data: Annotated[Path, typer.Option(help="Folder that holds the data sets.")],
    json_: Annotated[Path | None, typer.Option("--json", help="Where to write the tables.")] = None,
    weights: Annotated[Path, typer.Option(help="Folder of the weights files.")] = WEIGHTS,
    cache: Annotated[Path, typer.Option(help="Folder for decoded clips.")] = Path("runs/cache"),
    n: Annotated[int, typer.Option(help="Mixtures per column.")] = 60,
    export: Annotated[Path | None, typer.Option(help="Write the mixtures here and stop.")] = None,
    masks: Annotated[Path | None, typer.Option(help="Folder with masks of them.")] = None,
    threads: Annotated[int, typer.Option(help="Processor threads.")] = 1,
) -> None:
    """Measure the enhancer and print its tables as JSON."""
    torch.set_num_threads(threads)
    clips = clips_of(data, "test")
    # the bank of all clips, shared with training
    urban = ClipBank.open(load_clips(data), cache, ANALYSIS_RATE_HZ)
    made = [*mixtures(urban, clips, n), *soundscapes(urban, clips, n)]
    if export is not None:
        export.mkdir(parents=True, exist_ok=True)
        for item in made:
            with AudioWriter(export, item.name, ANALYSIS_RATE_HZ, 1) as writer:
                writer.write(item.mixture[None])
        typer.echo(f"wrote {len(made)} mixtures to {export}")
        return
    loaded = load("cpu", weights)
    esc = [clip for clip in load_clips(data) if clip.dataset == "esc10"]
    wide = ClipBank.open(esc, cache, CD_RATE_HZ)
    targets = wide_clips(wide, [clip for clip in clips if clip.dataset == "esc10"])
    report = {
        "weights_digest": loaded.digest,
        "mixtures_per_column": n,
        "si_sdr_improvement_db": suppression_table(
            loaded, made, find_masks(masks, made) if masks else {}
        ),
        "widening_clips": len(targets),
        "widening": widening_table(loaded, wide, targets),
        "real_time_factor": speed_table(loaded),
    }
    text = json.dumps(report, indent=2)
    if json_ is not None:
        json_.write_text(text + "\n")
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
