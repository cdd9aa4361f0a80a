"""Judges the restorer on fixed mixtures of the test split whose background is known.

``python -m services.restorer.evaluate --data DIR --json OUT``

First with oracle masks, so that ways to fill a hole are compared and nothing else; then whole
recordings with the masks and events that the segmenter and the classifier really give. Those two
run as processes of their own, since no service imports another.
"""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
import torch
import typer
from torch import Tensor

from common.datasets import ClipBank, Split, clips_of, in_split
from common.domain import ArtifactKind, Event, Stage
from common.labels import LABELS
from common.masks import EmbeddingWriter, MaskWriter
from common.params import RestoreParams
from common.soundscapes import Soundscape, soundscapes_of
from common.stage_io import StageInput
from services.restorer import infer, peers
from services.restorer.config import FRAME_S, REGION_MARGIN_S
from services.restorer.data import GRID, SoundscapePool, label_levels, oracle_mask
from services.restorer.judge import Judge
from services.restorer.listen import probabilities
from services.restorer.metrics import damage_snr_db, inside_distance, si_sdr_db
from services.restorer.regions import wanted_regions
from services.restorer.spectrum import analyse, power_of, synthesise
from services.restorer.trials import hearing_trials

SEED = 2024
MAX_EVENTS = 4
MIN_LEVEL_DB = -5.0
RATE_HZ = GRID.sample_rate
JUDGE_CROPS = 2500

UPSTREAM = """
import json, sys
from importlib import import_module
from pathlib import Path
import torch
from common.domain import ArtifactKind, Stage
from common.params import JobParams
from common.stage_io import StageInput
torch.set_num_threads(1)
service, stage, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
infer = import_module(f"services.{service}.infer")
loaded = infer.load("cpu")
for audio in sorted(folder.glob("*.wav")):
    scratch = audio.with_suffix(f".{service}")
    scratch.mkdir()
    index = audio.with_suffix(".json")
    known = json.loads(index.read_text()) if index.exists() else {}
    upstream = {ArtifactKind(kind): Path(path) for kind, path in known.items()}
    params = JobParams().of(Stage(stage))
    output = infer.process(loaded, StageInput(audio.name, audio, params, upstream, scratch))
    known.update({kind.value: str(file.path) for kind, file in output.files.items()})
    index.write_text(json.dumps(known))
"""
"""Runs one service over a folder; what it made is listed beside each recording."""


@dataclass(frozen=True)
class Case:
    """One mixture and the label to take out of it; ``rest`` is what should remain."""

    scape: Soundscape
    label: str
    rest: np.ndarray
    regions: tuple[Event, ...]

    @property
    def events(self) -> list[Event]:
        """What a classifier without fault would report."""
        return [Event(e.label, e.onset_s, e.offset_s, 1.0) for e in self.scape.events]

    @property
    def alone(self) -> bool:
        """Whether no event of another label reaches into the regions."""
        return not any(
            event.label != self.label
            and event.onset_s < region.offset_s + REGION_MARGIN_S
            and event.offset_s > region.onset_s - REGION_MARGIN_S
            for event in self.scape.events
            for region in self.regions
        )

    @property
    def inside(self) -> np.ndarray:
        """Samples (n,) that a frame in a region, or in its margins, may change."""
        result = np.zeros(len(self.rest), bool)
        for region in self.regions:
            low = max(0, int((region.onset_s - REGION_MARGIN_S - FRAME_S) * RATE_HZ))
            result[low : int((region.offset_s + REGION_MARGIN_S + FRAME_S) * RATE_HZ)] = True
        return result


def cases(bank: ClipBank, n: int, split: Split = "test") -> Iterator[Case]:
    """Yield ``n`` fixed cases; events that are hardly there are not chosen."""
    rng = np.random.default_rng(SEED)
    clips = in_split(bank.clips, split)
    scapes = soundscapes_of(bank, clips, 2 * n, SEED, max_events=MAX_EVENTS)
    made = 0
    for scape in scapes:
        levels = label_levels(scape.events, scape.mixture, slice(None))
        loud = [label for index, label in enumerate(LABELS) if levels[index] > MIN_LEVEL_DB]
        if not loud:
            continue
        label = loud[rng.integers(len(loud))]
        removed = np.sum([e.stem for e in scape.events if e.label == label], axis=0)
        scape = replace(scape, mixture=_in_24_bits(scape.mixture))
        rest = np.asarray(scape.mixture - removed, np.float32)
        case = Case(scape, label, rest, ())
        yield replace(case, regions=tuple(wanted_regions(case.events, [label])))
        made += 1
        if made == n:
            return


def _in_24_bits(waveform: np.ndarray) -> np.ndarray:
    """Return a waveform as a 24-bit file holds it, so that a copy of it is exact."""
    return (np.rint(waveform * 2.0**23) / 2.0**23).astype(np.float32)


class Scores:
    """Sums up one method over cases."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def add(self, case: Case, output: np.ndarray, mask: Tensor, ears: Ears) -> None:
        """Score an output (n,); ``mask`` (T, F) bool tells where to compare spectra."""
        inside, mixture = case.inside, case.scape.mixture
        gained = si_sdr_db(output[inside], case.rest[inside]) - si_sdr_db(
            mixture[inside], case.rest[inside]
        )
        distance = inside_distance(
            power_of(_spectrum(output)), power_of(_spectrum(case.rest)), mask
        )
        self.rows.append(
            {
                "alone": float(case.alone),
                "si_sdr_gain_db": gained,
                "damage_snr_db": damage_snr_db(output, mixture, ~inside),
                **asdict(distance),
                **ears.hear(case, output),
            }
        )

    def summary(self) -> dict[str, float]:
        """Return means; of the damage the least SNR, of what was heard the share."""
        result = {}
        for name in self.rows[0]:
            values = np.array([row[name] for row in self.rows])
            if name == "damage_snr_db":
                result["damage_snr_min_db"] = float(values.min())
            else:
                result[name] = float(np.nanmean(values))
        alone = [row["si_sdr_gain_db"] for row in self.rows if row["alone"]]
        gains = [row["si_sdr_gain_db"] for row in self.rows]
        result["si_sdr_gain_median_db"] = float(np.median(gains))
        result["si_sdr_gain_alone_db"] = float(np.mean(alone)) if alone else float("nan")
        return result


class Ears:
    """Who listens to the result: an independent judge, and the recogniser itself."""

    def __init__(self, judge: Judge, loaded: infer.LoadedRestorer) -> None:
        self.judge = judge
        self.recogniser = loaded.recogniser

    def hear(self, case: Case, output: np.ndarray) -> dict[str, float]:
        """Return whether each still hears the label in the longest region (1 or 0)."""
        region = max(case.regions, key=lambda r: r.offset_s - r.onset_s)
        low = max(0, int((region.onset_s - REGION_MARGIN_S) * RATE_HZ))
        part = output[low : int((region.offset_s + REGION_MARGIN_S) * RATE_HZ)]
        sure = probabilities(self.recogniser, part)[LABELS.index(case.label)]
        return {
            "judge_hears": float(self.judge.names(part) == case.label),
            "judge_probability": self.judge.probability(part, case.label),
            "recogniser_hears": float(sure >= self.recogniser.config.threshold),
        }


def _spectrum(waveform: np.ndarray) -> Tensor:
    padded = np.pad(waveform, GRID.n_fft // 2)
    return analyse(torch.from_numpy(np.asarray(padded, np.float32)), GRID)


def _case_mask(case: Case) -> Tensor:
    """Return the oracle mask (T, F) inside the regions."""
    mask = oracle_mask(_spectrum(case.scape.mixture - case.rest), _spectrum(case.rest)).T.copy()
    allowed = np.zeros(len(mask), bool)
    for region in case.regions:
        first = max(0, GRID.frame_at(region.onset_s - REGION_MARGIN_S))
        allowed[first : GRID.frame_at(region.offset_s + REGION_MARGIN_S) + 1] = True
    mask[~allowed] = 0.0
    return torch.from_numpy(mask)


def with_oracle_masks(
    chosen: list[Case], loaded: infer.LoadedRestorer, ears: Ears
) -> dict[str, dict[str, float]]:
    """Return the summary of each way to fill."""
    fillers: dict[str, peers.Filler] = {
        "mixture": peers.nothing,
        "zero fill": peers.zero,
        "gain only": peers.gain_only,
        "interpolation in time": peers.interpolation,
        "noise from interpolation": peers.learned(None, GRID),
        "inpainter, mean": peers.learned(loaded.inpainter, GRID, draw=False),
        "inpainter, drawn (shipped)": peers.learned(loaded.inpainter, GRID),
        "true magnitude (ceiling)": peers.true_magnitude(GRID),
    }
    if peers.has_fast_marching():
        fillers["fast marching (OpenCV)"] = peers.fast_marching
    scores = {name: Scores() for name in fillers}
    for case in chosen:
        mixture = case.scape.mixture
        spectrum, rest, mask = _spectrum(mixture), _spectrum(case.rest), _case_mask(case)
        for name, fill in fillers.items():
            change = fill(spectrum, mask, rest, 0) - spectrum
            samples = synthesise(change, GRID).numpy()[GRID.n_fft // 2 :][: len(mixture)]
            output = mixture.copy()
            output[: len(samples)] += samples
            scores[name].add(case, output, mask > 0.3, ears)
    return {name: score.summary() for name, score in scores.items()}


def end_to_end(
    chosen: list[Case], loaded: infer.LoadedRestorer, ears: Ears
) -> dict[str, dict[str, float]]:
    """Return the summary of whole recordings with real masks, by given and by real events."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, case in enumerate(chosen):
            path = folder / f"{index:04d}.wav"
            soundfile.write(path, case.scape.mixture, RATE_HZ, subtype="PCM_24")
        for service, stage in (("segmenter", Stage.SEGMENT), ("classifier", Stage.CLASSIFY)):
            subprocess.run(
                [sys.executable, "-c", UPSTREAM, service, stage.value, str(folder)], check=True
            )
        results = {}
        for title, real in (("real masks, true events", False), ("real masks and events", True)):
            scores, confirmed, known = Scores(), 0, 0
            for index, case in enumerate(chosen):
                output, removals = _restored(loaded, case, folder / f"{index:04d}.wav", real)
                scores.add(case, output, _case_mask(case) > 0.3, ears)
                known += bool(removals)
                confirmed += any(removal["action"] != "kept" for removal in removals)
            results[title] = scores.summary() | {
                "located": known / len(chosen),
                "removed": confirmed / len(chosen),
            }
    return results


def _restored(
    loaded: infer.LoadedRestorer, case: Case, audio: Path, real_events: bool
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    upstream = {
        ArtifactKind(kind): Path(path)
        for kind, path in json.loads(audio.with_suffix(".json").read_text()).items()
    }
    scratch = audio.with_suffix(".real" if real_events else ".given")
    scratch.mkdir()
    if not real_events:
        given = scratch / "events.json"
        given.write_text(json.dumps({"events": [asdict(event) for event in case.events]}))
        upstream[ArtifactKind.EVENTS] = given
    params = RestoreParams(remove=(case.label,))
    output = infer.process(loaded, StageInput(audio.name, audio, params, upstream, scratch))
    samples, _ = soundfile.read(output.files[ArtifactKind.RESTORED].path, dtype="float32")
    removals = json.loads(output.files[ArtifactKind.REMOVALS].path.read_text())["removals"]
    return samples, removals


def _always_confirming(loaded: infer.LoadedRestorer) -> infer.LoadedRestorer:
    """Return the same with a recogniser that never abstains and always hears a rest.

    Every region is removed, in the most passes there are: the slowest case.
    """
    recogniser = copy.deepcopy(loaded.recogniser)
    recogniser.config = replace(recogniser.config, threshold=0.0)
    return replace(loaded, recogniser=recogniser)


def speed(loaded: infer.LoadedRestorer, rate: int, channels: int, share: float) -> float:
    """Return CPU seconds per second of audio for a minute of which ``share`` is removed."""
    duration_s = 60.0
    rng = np.random.default_rng(0)
    samples = rng.uniform(-0.1, 0.1, (round(duration_s * rate), channels)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        audio = folder / "in.wav"
        soundfile.write(audio, samples, rate, subtype="PCM_24")
        mask = np.ones((128, round(duration_s / 0.02)), np.float32)
        embedding = np.ones((8, 64, round(duration_s / 0.04)), np.float32)
        with MaskWriter(folder / "mask.npz") as mask_writer:
            mask_writer.append(mask)
        vectors, biases = np.ones((len(LABELS), 8), np.float32), np.zeros(len(LABELS), np.float32)
        with EmbeddingWriter(folder / "embedding.npz", LABELS, vectors, biases) as writer:
            writer.append(embedding)
        step_s = 6.0
        events = [
            asdict(Event("siren", start, start + share * step_s, 1.0))
            for start in np.arange(0.0, duration_s, step_s).tolist()
        ]
        (folder / "events.json").write_text(json.dumps({"events": events}))
        upstream = {
            ArtifactKind.MASK: folder / "mask.npz",
            ArtifactKind.EMBEDDING: folder / "embedding.npz",
            ArtifactKind.EVENTS: folder / "events.json",
        }
        item = StageInput("in.wav", audio, RestoreParams(remove=("siren",)), upstream, folder)
        started = time.process_time()
        infer.process(_always_confirming(loaded), item)
        return (time.process_time() - started) / duration_s


def main(
    data: Annotated[Path, typer.Option(help="Folder of the data sets.")],
    json_out: Annotated[Path, typer.Option("--json", help="Where the numbers go.")],
    n: Annotated[int, typer.Option(help="Mixtures.")] = 60,
    weights: Annotated[Path, typer.Option(help="Folder of the weights.")] = infer.DEFAULT_WEIGHTS,
    cache: Annotated[Path, typer.Option(help="Decoded clips.")] = Path("runs/cache"),
    whole: Annotated[bool, typer.Option(help="Also run the services before this one.")] = True,
) -> None:
    """Evaluate the restorer."""
    torch.set_num_threads(1)
    loaded = infer.load("cpu", weights)
    test = ClipBank.open(clips_of(data, "test"), cache)
    train = clips_of(data, "train")
    judge = Judge(SoundscapePool(ClipBank.open(train, cache), train, SEED), JUDGE_CROPS)
    ears = Ears(judge, loaded)
    chosen = list(cases(test, n))
    trials = hearing_trials(loaded.recogniser, test, n, SEED + 1, "test")
    threshold = loaded.recogniser.config.threshold
    results: dict[str, Any] = {
        "mixtures": len(chosen),
        "weights": loaded.digest,
        "recogniser": {
            "threshold": threshold,
            "events": len(trials.present),
            "missed": trials.missed(threshold),
            "heard_after_true_removal": float((trials.removed >= threshold).mean()),
            "heard_wrong_label": float((trials.stranger >= threshold).mean()),
        },
        "oracle_masks": with_oracle_masks(chosen, loaded, ears),
    }
    if whole:
        results["end_to_end"] = end_to_end(chosen, loaded, ears)
    results["cpu_seconds_per_second"] = {
        f"{rate} Hz, {channels} ch, {share:.0%} removed": speed(loaded, rate, channels, share)
        for rate, channels, share in (
            (44_100, 1, 0.0),
            (44_100, 1, 0.25),
            (44_100, 1, 1.0),
            (48_000, 2, 0.25),
        )
    }
    json_out.parent.mkdir(parents=True, exist_ok=True)
    json_out.write_text(json.dumps(_plain(results), indent=1))
    typer.echo(json.dumps(_plain(results), indent=1))


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: rounded, infinities as text."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else str(value)
    return value


if __name__ == "__main__":
    typer.run(main)
