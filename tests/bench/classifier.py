"""Speed of the classifier on one core, decoding and features included, as JSON.

    python -m tests.bench.classifier [--audio FOLDER] [--rounds N]

All times are processor time, so that what else the machine does counts little; of the cold start,
both that (``cpu_s``) and the clock's are told. Measured are a 5 s clip alone, a shard of 64 of them
as the worker computes it, the same 64 by a plain loop over ``process``, and by a plain loop over a
small ResNet, which a careful script would be: read, resample, spectrogram, network. They take turns
in each round; medians are told.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import soundfile
import typer

from common.domain import ArtifactKind
from common.masks import MASK_BANDS, MASK_HOP_S, MaskWriter
from common.params import ClassifyParams
from common.stage_io import Done, StageInput

CLIP_S = 5.0
RATE_HZ = 44_100
SHARD = 64
COLD_START = """
import json, sys, time
from pathlib import Path
clocks = {"s": time.perf_counter, "cpu_s": time.process_time}
marks = {unit: [clock()] for unit, clock in clocks.items()}
def mark():
    for unit, clock in clocks.items():
        marks[unit].append(clock())
from services.classifier import tasks
mark()
import torch
mark()
model = tasks.model()
mark()
from common.params import ClassifyParams
from common.stage_io import StageInput
from services.classifier.infer import process
process(model, StageInput("first", Path(sys.argv[1]), ClassifyParams(), {}, Path(sys.argv[2])))
mark()
report = {}
for unit, (began, worker, torch, loaded, first) in marks.items():
    report[f"worker_{unit}"] = worker - began
    report[f"torch_{unit}"] = torch - worker
    report[f"load_{unit}"] = loaded - torch
    report[f"first_result_{unit}"] = first - loaded
    report[f"beyond_torch_{unit}"] = first - began - (torch - worker)
print(json.dumps({name: round(value, 2) for name, value in report.items()}))
"""


@dataclass(frozen=True)
class Clips:
    """The clips of a shard, a mask that fits any of them, and where results go."""

    paths: tuple[Path, ...]
    mask: Path
    out: Path

    @property
    def audio_s(self) -> float:
        """Seconds of audio in all."""
        return sum(soundfile.info(path).duration for path in self.paths)

    def items(self) -> list[StageInput]:
        """Return the clips as a worker gets them."""
        items = []
        for number, path in enumerate(self.paths):
            scratch = self.out / str(number)
            scratch.mkdir(exist_ok=True)
            upstream = {ArtifactKind.MASK: self.mask}
            items.append(StageInput(path.name, path, ClassifyParams(), upstream, scratch))
        return items


def make_clips(folder: Path, suffix: str) -> tuple[Path, ...]:
    """Write clips of rattling, falling tones over noise: nothing in them repeats or is silent."""
    time_s = np.arange(round(CLIP_S * RATE_HZ)) / RATE_HZ
    paths = []
    for number in range(SHARD):
        rng = np.random.default_rng(number)
        noise = np.cumsum(rng.standard_normal(len(time_s))) % 1.0 - 0.5
        pitch_hz = 200.0 + 60.0 * number
        tone = np.sin(2 * np.pi * pitch_hz * time_s) * np.exp(
            -3.0 * (time_s * (1 + number % 5) % 1)
        )
        path = folder / f"{number}{suffix}"
        soundfile.write(path, 0.3 * tone + 0.05 * noise, RATE_HZ)
        paths.append(path)
    return tuple(paths)


def take_clips(folder: Path) -> tuple[Path, ...]:
    """Return as many recordings of about 5 s as a shard has, over and over where there are few."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            if abs(soundfile.info(path).duration - CLIP_S) < 0.1:
                found.append(path)
        except soundfile.LibsndfileError:
            continue
        if len(found) == SHARD:
            break
    if not found:
        raise typer.BadParameter(f"{folder} holds no recording of {CLIP_S:g} s")
    return tuple(found[n % len(found)] for n in range(SHARD))


def write_mask(path: Path) -> None:
    """Write a foreground mask as the segmenter makes them: a few smooth patches."""
    bands, frames = np.arange(MASK_BANDS)[:, None], np.arange(round(CLIP_S / MASK_HOP_S) + 1)
    mask = np.zeros((MASK_BANDS, len(frames)), np.float32)
    for band, frame in ((20, 60), (64, 120), (100, 200)):
        mask += np.exp(-(((bands - band) / 12.0) ** 2) - ((frames - frame) / 25.0) ** 2)
    with MaskWriter(path) as writer:
        writer.append(np.clip(mask, 0.0, 1.0))


def medians(contestants: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the processor time of each, in seconds: the median of rounds after one to warm up."""
    times_s: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            started_s = time.process_time()
            run()
            if number:
                times_s[name].append(time.process_time() - started_s)
    return {name: median(found) for name, found in times_s.items()}


def well(done: Sequence[Done]) -> None:
    """Raise the error of a recording that failed, if any."""
    for one in done:
        if isinstance(one.outcome, Exception):
            raise one.outcome


def resnet_loop(paths: Sequence[Path]) -> Callable[[], None]:
    """Return a plain loop over the 0.7 M ResNet of the same folder, with fresh weights."""
    import soxr
    import torch

    from services.classifier.config import Config
    from services.classifier.model import build

    config = Config.from_dict({"architecture": "resnet"})
    model = build(config).eval().requires_grad_(False)
    model.fuse()

    @torch.inference_mode()
    def run() -> None:
        for path in paths:
            samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
            mono = soxr.resample(samples.mean(axis=1), rate_hz, config.sample_rate)
            scores = model(model.features(torch.from_numpy(mono)[None]))
            model.probabilities(scores.clip).numpy()

    return run


def cold_start(clip: Path, out: Path) -> dict[str, float]:
    """Return what a fresh process takes from nothing to its first result, in seconds."""
    script = [sys.executable, "-c", COLD_START, str(clip), str(out)]
    found = subprocess.run(script, capture_output=True, text=True, check=True)
    times_s: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return times_s


def measure(folder: Path, audio: Path | None, rounds: int) -> dict[str, Any]:
    """Return the report."""
    import torch

    from services.classifier.infer import load, process, process_shard

    torch.set_num_threads(1)
    loaded = load("cpu")
    mask, out = folder / "mask.npz", folder / "out"
    out.mkdir()
    write_mask(mask)
    kinds = {"ogg": ".ogg", "wav": ".wav"}
    sets = {name: Clips(make_clips(folder, suffix), mask, out) for name, suffix in kinds.items()}
    if audio is not None:
        sets = {"audio": Clips(take_clips(audio), mask, out)}
    report: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "weights": loaded.digest[:12],
        "weights_parameters": sum(weight.numel() for weight in loaded.model.parameters()),
    }
    for name, clips in sets.items():
        items = clips.items()
        one_s = medians({"clip": lambda items=items: process(loaded, items[0])}, 5 * rounds)
        shard_s = medians(
            {
                "batched": lambda items=items: well(list(process_shard(loaded, items))),
                "loop": lambda items=items: [process(loaded, item) for item in items],
                "resnet": resnet_loop(clips.paths),
            },
            rounds,
        )
        rtf = {who: seconds / clips.audio_s for who, seconds in shard_s.items()}
        report[name] = {
            "clip_ms": round(1000 * one_s["clip"], 2),
            "shard_rtf": round(rtf["batched"], 5),
            "plain_loop_rtf": round(rtf["loop"], 5),
            "plain_loop_over_shard": round(rtf["loop"] / rtf["batched"], 2),
            "resnet_loop_rtf": round(rtf["resnet"], 5),
            "shard_over_resnet_loop": round(rtf["batched"] / rtf["resnet"], 2),
        }
    starts = [cold_start(next(iter(sets.values())).paths[0], out) for _ in range(3)]
    report["cold_start"] = min(starts, key=lambda start: start["beyond_torch_cpu_s"])
    return report


def main(
    audio: Annotated[Path | None, typer.Option(help="recordings of 5 s; made if not given")] = None,
    rounds: Annotated[int, typer.Option(help="of the shard, at least 1")] = 5,
) -> None:
    """Measure and print."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="soundmill-bench-") as folder:
        typer.echo(json.dumps(measure(Path(folder), audio, rounds), indent=2))


if __name__ == "__main__":
    typer.run(main)
