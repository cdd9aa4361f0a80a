"""Judging: ``python -m services.classifier.evaluate --data DIR --json OUT``.

On clips of the test split: accuracy, top-3, macro-F1 and calibration error, beside a forest on
cepstral statistics grown on the same training split. On soundscapes made of test clips: events.
On one core: the real-time factor of a whole ``process``, decoding included.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
import soxr
import torch
import typer

from common.datasets import Clip, ClipBank, exclude_leaks, load_clips, split_of
from common.domain import ArtifactKind
from common.features import LogMel
from common.masks import MASK_BANDS, MASK_F_MAX_HZ, MASK_HOP_S, MaskWriter
from common.params import ClassifyParams
from common.soundscapes import Soundscape, evaluation_soundscapes
from common.stage_io import StageInput
from services.classifier.config import DEFAULT_WEIGHTS
from services.classifier.infer import LoadedClassifier, events_in, listen, load, process
from services.classifier.peers import forest_confidence
from services.classifier.scoring import (
    ClipScores,
    Counts,
    match_events,
    match_seconds,
    score_clips,
    truth_of,
)

Array = np.ndarray[Any, Any]

BAND_LIMIT_RATE_HZ = 8_000
SCENE_SEED = 2026
MASK_N_FFT = 2048
RTF_ROUNDS = 15


@dataclass(frozen=True)
class Speed:
    """Processor time of ``process`` on one core: median, and divided by the audio's length."""

    what: str
    seconds: float
    rtf: float


@dataclass(frozen=True)
class SceneScores:
    """F1 of events (200 ms collar) and of seconds, over all soundscapes; higher is better."""

    n: int
    event_f1: float
    second_f1: float


@torch.inference_mode()
def confidence_of(
    loaded: LoadedClassifier,
    bank: ClipBank,
    clips: Sequence[Clip],
    change: Callable[[Array], Array] = lambda waveform: waveform,
) -> Array:
    """Return (N, K) calibrated confidences of whole clips, each changed first, without a mask."""
    rows = []
    for clip in clips:
        waveform = torch.from_numpy(change(bank.waveform(clip)))[None].to(loaded.device)
        logits = loaded.model(loaded.model.features(waveform)).clip
        rows.append(loaded.model.probabilities(logits)[0].cpu().numpy())
    return np.stack(rows)


def band_limited(rate_hz: int) -> Callable[[Array], Array]:
    """Return a function that takes everything above 4 kHz out of a waveform."""

    def change(waveform: Array) -> Array:
        narrow = soxr.resample(waveform, rate_hz, BAND_LIMIT_RATE_HZ)
        wide = soxr.resample(narrow, BAND_LIMIT_RATE_HZ, rate_hz)[: len(waveform)]
        result: Array = wide if len(wide) else waveform
        return result

    return change


def score_by_set(
    confidence: Array, clips: Sequence[Clip], labels: Sequence[str]
) -> dict[str, ClipScores]:
    """Return the scores of each data set and, as "all", of the clips together."""
    truth = np.array([labels.index(clip.label) for clip in clips])
    sets = np.array([clip.dataset for clip in clips])
    scores = {
        name: score_clips(confidence[sets == name], truth[sets == name], labels)
        for name in sorted(set(sets.tolist()))
    }
    return scores | {"all": score_clips(confidence, truth, labels)}


def oracle_mask(scene: Soundscape) -> Array:
    """Return the true foreground mask of a soundscape on the mask's grid, (128, T) in [0, 1]."""
    hop = round(MASK_HOP_S * scene.sample_rate)
    front_end = LogMel(scene.sample_rate, MASK_N_FFT, hop, MASK_BANDS, f_max=MASK_F_MAX_HZ)

    def power(waveform: Array) -> Array:
        result: Array = front_end.power(torch.from_numpy(waveform)[None])[0].numpy()
        return result

    front = power(scene.mixture - scene.background)
    ratio: Array = np.sqrt(front / (front + power(scene.background) + 1e-9))
    return ratio


def score_scenes(
    loaded: LoadedClassifier, scenes: Sequence[Soundscape], threshold: float, masked: bool
) -> SceneScores:
    """Return the scores of soundscapes heard with the true mask, or with none."""
    events, seconds = Counts(), Counts()
    with tempfile.TemporaryDirectory() as folder:
        audio, mask = Path(folder) / "scene.wav", Path(folder) / "mask.npz"
        for scene in scenes:
            soundfile.write(audio, scene.mixture, scene.sample_rate, subtype="FLOAT")
            with MaskWriter(mask) as writer:
                writer.append(oracle_mask(scene).astype(np.float32))
            item = StageInput("scene", audio, ClassifyParams(), {}, Path(folder))
            heard = listen(loaded, item, mask if masked else None)
            found, truth = events_in(heard, loaded.config, [], threshold), truth_of(scene)
            events += match_events(found, truth)
            seconds += match_seconds(found, truth, heard.facts.duration_s)
    return SceneScores(len(scenes), events.f1, seconds.f1)


def time_process(
    loaded: LoadedClassifier, what: str, waveform: Array, rate_hz: int, suffix: str, rounds: int
) -> Speed:
    """Return how long ``process`` takes for samples (n,) or (n, C), mask and encoding included."""
    duration_s = len(waveform) / rate_hz
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        audio, mask = scratch / f"in{suffix}", scratch / "mask.npz"
        soundfile.write(audio, waveform, rate_hz)
        noise = np.random.default_rng(0).random((MASK_BANDS, round(duration_s / MASK_HOP_S) + 1))
        with MaskWriter(mask) as writer:
            writer.append(noise.astype(np.float32))
        times_s = []
        for _ in range(rounds):
            upstream = {ArtifactKind.MASK: mask}
            item = StageInput("timing", audio, ClassifyParams(), upstream, scratch)
            started_s = time.process_time()
            process(loaded, item)
            times_s.append(time.process_time() - started_s)
    seconds = float(np.median(times_s))
    return Speed(what, seconds, seconds / duration_s)


def measure_speed(loaded: LoadedClassifier, bank: ClipBank, clips: Sequence[Clip]) -> list[Speed]:
    """Return the speed for a short mono clip and for ten minutes of stereo."""
    minute = np.concatenate([bank.waveform(clip) for clip in clips[:12]])
    short = soxr.resample(minute[: 5 * bank.sample_rate], bank.sample_rate, 44_100)
    stereo = soxr.resample(np.resize(minute, 600 * bank.sample_rate), bank.sample_rate, 48_000)
    both = np.stack([stereo, stereo[::-1]], axis=1)
    return [
        time_process(loaded, "5 s, mono, 44.1 kHz, Ogg Vorbis", short, 44_100, ".ogg", RTF_ROUNDS),
        time_process(loaded, "5 s, mono, 44.1 kHz, WAV", short, 44_100, ".wav", RTF_ROUNDS),
        time_process(loaded, "10 min, stereo, 48 kHz, FLAC", both, 48_000, ".flac", 3),
    ]


def table(scores: dict[str, dict[str, ClipScores]]) -> str:
    """Return the scores as a Markdown table, one row per method and data set."""
    rows = ["| method | clips | n | accuracy | top-3 | macro-F1 | ECE |", "|---" * 7 + "|"]
    for method, by_set in scores.items():
        for name, s in by_set.items():
            percent = [f"{100 * v:.1f}" for v in (s.accuracy, s.top3, s.macro_f1, s.ece)]
            rows.append(f"| {method} | {name} | {s.n} | {' | '.join(percent)} |")
    return "\n".join(rows)


def main(
    data: Annotated[Path, typer.Option(help="folder of the data sets")],
    json_path: Annotated[Path, typer.Option("--json", help="where the report goes")],
    weights: Annotated[Path, typer.Option(help="weights file")] = DEFAULT_WEIGHTS,
    scenes: Annotated[int, typer.Option(help="soundscapes to judge events on")] = 100,
    cache: Annotated[Path, typer.Option(help="decoded clips")] = Path("runs/cache"),
) -> None:
    """Judge the classifier on the test split, print tables and write a JSON report."""
    torch.set_num_threads(1)
    loaded = load("cpu", weights)
    labels = loaded.config.labels
    clips = exclude_leaks(load_clips(data))
    bank = ClipBank.open(clips, cache, loaded.config.sample_rate)
    train = [clip for clip in clips if split_of(clip) == "train"]
    test = [clip for clip in clips if split_of(clip) == "test"]
    narrow = confidence_of(loaded, bank, test, band_limited(bank.sample_rate))
    scores = {
        "hybrid": score_by_set(confidence_of(loaded, bank, test), test, labels),
        "hybrid, nothing above 4 kHz": score_by_set(narrow, test, labels),
        "MFCC + random forest": score_by_set(
            forest_confidence(bank, train, test, loaded.config), test, labels
        ),
    }
    report: dict[str, Any] = {
        "digest": loaded.digest,
        "temperature": loaded.config.temperature,
        "clips": {
            method: {name: asdict(s) for name, s in by_set.items()}
            for method, by_set in scores.items()
        },
    }
    typer.echo(table(scores))
    for s in scores["hybrid"]["all"].classes:
        typer.echo(
            f"{s.label:18s} n {s.n:4d}  P {s.precision:.2f}  R {s.recall:.2f}  F1 {s.f1:.2f}"
        )
    everything = list(evaluation_soundscapes(bank, scenes, SCENE_SEED))
    report["scenes"] = {}
    for name, masked in (("no mask", False), ("oracle mask", True)):
        scene_scores = score_scenes(loaded, everything, ClassifyParams().threshold, masked)
        report["scenes"][name] = asdict(scene_scores)
        typer.echo(f"soundscapes, {name}: {scene_scores}")
    report["speed"] = [asdict(s) for s in measure_speed(loaded, bank, test)]
    for speed in report["speed"]:
        typer.echo(f"{speed['what']}: {1000 * speed['seconds']:.1f} ms, RTF {speed['rtf']:.5f}")
    json_path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
