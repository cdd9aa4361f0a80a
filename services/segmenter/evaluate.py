"""Judge the segmenter: ``python -m services.segmenter.evaluate --data DIR --json OUT``.

Fixed soundscapes of the test split, thresholds chosen on those of the validation split, beside
methods without learning, trivial answers and the oracle mask. Pixels count as foreground where the
foreground is louder than the background.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import soundfile
import torch
import typer
from sklearn.metrics import average_precision_score

from common.datasets import ClipBank, exclude_leaks, in_split, load_clips
from common.features import ANALYSIS_RATE_HZ
from common.masks import MASK_CENTRES_HZ, MASK_HOP_S, interpolate_bands
from common.params import SegmentParams
from common.soundscapes import (
    Soundscape,
    active_spans,
    cast_of,
    make_soundscape,
    soundscapes_of,
)
from common.stage_io import StageInput
from services.segmenter.config import HOP_SAMPLES, N_FFT
from services.segmenter.data import Spectra, Targets, targets_of
from services.segmenter.infer import (
    DEFAULT_WEIGHTS,
    LoadedSegmenter,
    load,
    process,
    segment,
    windows_of,
)
from services.segmenter.peers import PEERS
from services.segmenter.regions import ACTIVE_BANDS, RegionFinder

Array = npt.NDArray[Any]

DOMINANT = math.sqrt(0.5)
"""The amplitude ratio at which the foreground is as loud as the background."""
SHORT_EVENT_S = 0.2
FOUND_SHARE = 0.5
"""An event is found if at least so much of where it dominates is marked as foreground."""
SEGMENT_S = 1.0
N_THRESHOLDS = 101
SEED = 2026
MODEL = "segmenter"


@dataclass(frozen=True)
class Case:
    """One soundscape, its oracle masks and everybody's scores. Maps are (F, T)."""

    scape: Soundscape
    truth: Targets
    scores: dict[str, Array]  # by method
    class_masks: Array  # (K, f, t) of the segmenter


@dataclass(frozen=True)
class Counts:
    """True positives, false positives, false negatives; numbers or arrays of them."""

    tp: Array
    fp: Array
    fn: Array

    def f1(self) -> Array:
        return np.asarray(2 * self.tp / np.maximum(1, 2 * self.tp + self.fp + self.fn))


def counts_over(scores: Array, truth: Array, thresholds: Array) -> Counts:
    """Return the counts of ``scores >= threshold`` for every threshold (rising)."""
    edges = np.concatenate([thresholds, [np.inf]])
    positive = np.histogram(scores[truth], edges)[0][::-1].cumsum()[::-1]
    negative = np.histogram(scores[~truth], edges)[0][::-1].cumsum()[::-1]
    return Counts(positive, negative, truth.sum() - positive)


def best_threshold(pairs: Sequence[tuple[Array, Array]]) -> float:
    """Return the threshold with the best F1 over pairs of scores and truth."""
    values = np.concatenate([scores.ravel()[::37] for scores, _ in pairs])
    thresholds = np.unique(np.quantile(values, np.linspace(0.0, 1.0, N_THRESHOLDS)))
    counts = [counts_over(scores, truth, thresholds) for scores, truth in pairs]
    total = Counts(*(sum(getattr(c, part) for c in counts) for part in ("tp", "fp", "fn")))
    return float(thresholds[total.f1().argmax()])


def f1_of(pairs: Iterator[tuple[Array, Array]]) -> float:
    """Return the F1 of pairs of decisions and truth, both boolean."""
    tp = fp = fn = 0
    for found, truth in pairs:
        tp += int((found & truth).sum())
        fp += int((found & ~truth).sum())
        fn += int((~found & truth).sum())
    return 2 * tp / max(1, 2 * tp + fp + fn)


def short_soundscapes(bank: ClipBank, n: int, seed: int) -> Iterator[Soundscape]:
    """Yield fixed soundscapes of the test split whose events are all short, without rooms.

    The general ones hold few such events. Their SNR goes from 0 to 30 dB.
    """
    cast = cast_of(in_split(bank.clips, "test"))
    rate = bank.sample_rate
    short = []
    for clip in cast.foreground:
        spans = active_spans(bank.waveform(clip), rate)
        if spans and max(span.stop - span.start for span in spans) < SHORT_EVENT_S * rate:
            short.append(clip)
    for index in range(n):
        rng = np.random.default_rng([seed, 1, index])
        yield make_soundscape(bank, short, cast.background, rng, snr_db=(0.0, 30.0), reverb=False)


def cases_of(loaded: LoadedSegmenter, scapes: Iterable[Soundscape]) -> Iterator[Case]:
    """Yield soundscapes with their oracle masks and everybody's scores."""
    spectra = Spectra()
    for scape in scapes:
        powers = spectra(scape)
        pieces = list(segment(loaded, windows_of([scape.mixture[None]])))
        embedding = torch.from_numpy(np.concatenate([p.embedding for p in pieces], axis=-1))
        with torch.inference_mode():
            logits = loaded.model.class_logits(embedding[None])[0]
        power = powers.mixture.numpy().astype(np.float64)
        scores = {peer.name: peer.scores(power).astype(np.float32) for peer in PEERS}
        scores[MODEL] = np.concatenate([p.mask for p in pieces], axis=-1)
        truth = targets_of(scape, powers, loaded.config.labels)
        yield Case(scape, truth, scores, torch.sigmoid(logits).numpy())


def segment_activity(mask: Array) -> Array:
    """Return per second (the last part counts) the highest activity of its frames."""
    per_segment = round(SEGMENT_S / MASK_HOP_S)
    activity = np.partition(mask, -ACTIVE_BANDS, axis=0)[-ACTIVE_BANDS:].mean(axis=0)
    starts = np.arange(0, len(activity) - 1, per_segment)
    return np.asarray(np.maximum.reduceat(activity, starts))


def true_segments(scape: Soundscape, label: str | None = None) -> Array:
    """Return per second whether an event (of a label) sounds."""
    n = math.ceil(len(scape.mixture) / scape.sample_rate / SEGMENT_S)
    active = np.zeros(n, bool)
    for event in scape.events:
        if label in (None, event.label):
            active[int(event.onset_s) : math.ceil(event.offset_s)] = True
    return active


def region_segments(mask: Array, n: int) -> Array:
    """Return per second whether a region with the default parameters reaches into it."""
    finder = RegionFinder(SegmentParams(margin_s=0.0))
    finder.add(mask)
    active = np.zeros(n, bool)
    for region in finder.finish(n * SEGMENT_S):
        active[int(region.onset_s) : math.ceil(region.offset_s)] = True
    return active


def foreground_gain_db(scape: Soundscape, mask: Array) -> float:
    """Return how much applying a soft mask improves the foreground's SI-SDR."""
    foreground = torch.from_numpy(scape.mixture - scape.background)
    mixture = torch.from_numpy(scape.mixture)
    window = torch.hann_window(N_FFT)
    spectrum = torch.stft(
        mixture, N_FFT, HOP_SAMPLES, window=window, return_complex=True, pad_mode="constant"
    )
    freqs_hz = np.arange(N_FFT // 2 + 1) * ANALYSIS_RATE_HZ / N_FFT
    gain = torch.from_numpy(interpolate_bands(mask, MASK_CENTRES_HZ(), freqs_hz))
    masked = torch.istft(spectrum * gain, N_FFT, HOP_SAMPLES, window=window, length=len(mixture))
    return si_sdr_db(masked, foreground) - si_sdr_db(mixture, foreground)


def si_sdr_db(estimate: torch.Tensor, target: torch.Tensor) -> float:
    """Return the scale-invariant signal-to-distortion ratio; higher is better."""
    kept = (estimate @ target) / (target @ target + 1e-9) * target
    rest = estimate - kept
    return 10.0 * math.log10(float(kept @ kept + 1e-9) / float(rest @ rest + 1e-9))


def judge(
    method: str, soft: bool, dev: Sequence[Case], test: Sequence[Case], short: Sequence[Case]
) -> dict[str, Any]:
    """Return the figures of one method; its thresholds come from ``dev`` alone."""
    threshold = best_threshold([(c.scores[method], dominant(c)) for c in dev])
    activity = best_threshold(
        [(segment_activity(c.scores[method]), true_segments(c.scape)) for c in dev]
    )
    every = [hit for c in test for _, hit in event_found(c, c.scores[method] >= threshold)]
    brief = [
        hit
        for c in [*test, *short]
        for length_s, hit in event_found(c, c.scores[method] >= threshold)
        if length_s < SHORT_EVENT_S
    ]
    quiet = [c.scores[method][~dominant(c)] >= threshold for c in test]
    figures: dict[str, Any] = {
        "threshold": threshold,
        "pixel_f1": f1_of((c.scores[method] >= threshold, dominant(c)) for c in test),
        "segment_f1": f1_of(
            (segment_activity(c.scores[method]) >= activity, true_segments(c.scape)) for c in test
        ),
        "pixel_f1_short": f1_of((c.scores[method] >= threshold, dominant(c)) for c in short),
        "false_alarm_share": float(np.concatenate(quiet).mean()),
        "short_event_recall": float(np.mean(brief)),
        "event_recall": float(np.mean(every)),
        "short_events": len(brief),
        "events": len(every),
    }
    if soft:
        errors = [np.abs(c.scores[method] - c.truth.mask.numpy()).mean() for c in test]
        figures["mae"] = float(np.mean(errors))
        gains = [foreground_gain_db(c.scape, c.scores[method]) for c in test if c.scape.events]
        figures["foreground_si_sdr_gain_db"] = float(np.mean(gains))
    return figures


def dominant(case: Case) -> Array:
    """Return where the foreground is louder than the background, (F, T) boolean."""
    return np.asarray(case.truth.mask.numpy() > DOMINANT)


def event_found(case: Case, foreground: Array) -> list[tuple[float, bool]]:
    """Return length and whether it was found, of each event that dominates anywhere."""
    answers = []
    for event, ratio in zip(case.scape.events, case.truth.events, strict=True):
        own = ratio.numpy() > DOMINANT
        if own.any():
            hit = bool(foreground[own].mean() >= FOUND_SHARE)
            answers.append((event.offset_s - event.onset_s, hit))
    return answers


def trivial(dev: Sequence[Case], test: Sequence[Case], short: Sequence[Case]) -> dict[str, Any]:
    """Return what answering always the same would score, and the oracle's ceiling."""
    mean = float(np.mean([c.truth.mask.mean() for c in dev]))
    masks = [c.truth.mask.numpy() for c in test]
    everything = np.ones_like(masks[0], dtype=bool)
    ceiling = [foreground_gain_db(c.scape, c.truth.mask.numpy()) for c in test if c.scape.events]
    return {
        "event_density": float(np.mean([mask.mean() for mask in masks])),
        "mae_all_zero": float(np.mean([mask.mean() for mask in masks])),
        "mae_all_mean": float(np.mean([np.abs(mask - mean).mean() for mask in masks])),
        "event_density_short": float(np.mean([c.truth.mask.mean() for c in short])),
        "pixel_f1_all_one": f1_of((everything, dominant(c)) for c in test),
        "segment_f1_all_one": f1_of(
            (np.ones_like(true_segments(c.scape)), true_segments(c.scape)) for c in test
        ),
        "oracle_foreground_si_sdr_gain_db": float(np.mean(ceiling)),
    }


def class_figures(
    labels: tuple[str, ...], dev: Sequence[Case], test: Sequence[Case]
) -> dict[str, Any]:
    """Return how well class masks are found: by average precision, and given the classes."""

    def present(case: Case) -> Iterator[tuple[Array, Array]]:
        for k, mask in case.truth.class_masks.items():
            yield case.class_masks[k], mask.numpy() > DOMINANT

    threshold = best_threshold([pair for case in dev for pair in present(case)])
    precisions, chances = {}, {}
    for k, label in enumerate(labels):
        nothing = np.zeros(test[0].class_masks.shape[1:], bool)
        truth = np.concatenate(
            [
                (c.truth.class_masks[k].numpy() > DOMINANT if k in c.truth.class_masks else nothing)
                for c in test
            ],
            axis=1,
        )
        scores = np.concatenate([c.class_masks[k] for c in test], axis=1)
        if truth.any():
            precisions[label] = float(average_precision_score(truth.ravel(), scores.ravel()))
            chances[label] = float(truth.mean())
    return {
        "threshold": threshold,
        "pixel_f1_given_classes": f1_of(
            (scores >= threshold, truth) for case in test for scores, truth in present(case)
        ),
        "pixel_f1_given_classes_all_one": f1_of(
            (np.ones_like(truth), truth) for case in test for _, truth in present(case)
        ),
        "mean_average_precision": float(np.mean(list(precisions.values()))),
        "mean_average_precision_by_chance": float(np.mean(list(chances.values()))),
        "average_precision": precisions,
    }


def chunking_difference(loaded: LoadedSegmenter, bank: ClipBank) -> dict[str, float]:
    """Return how a minute-long mask differs when it is computed in chunks."""
    cast = cast_of(in_split(bank.clips, "test"))
    differences = []
    for seed in range(3):
        rng = np.random.default_rng([SEED, seed])
        scape = make_soundscape(bank, cast.foreground, cast.background, rng, 60.0, 30)
        pieces = segment(loaded, windows_of([scape.mixture[None]]))
        chunked = np.concatenate([piece.mask for piece in pieces], axis=1)
        with torch.inference_mode():
            features = loaded.front_end(torch.from_numpy(scape.mixture[None]))
            whole = torch.sigmoid(loaded.model(features).mask_logits)[0].numpy()
        differences.append(np.abs(chunked - whole))
    return {
        "maximum": float(max(d.max() for d in differences)),
        "mean": float(np.mean([d.mean() for d in differences])),
        "share_above_0.01": float(np.mean([(d > 0.01).mean() for d in differences])),
    }


def real_time_factor(loaded: LoadedSegmenter, scapes: Sequence[Soundscape]) -> dict[str, float]:
    """Return processing time over audio time, decoding and writing included, of a stereo FLAC."""
    audio = np.concatenate([scape.mixture for scape in scapes])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "in.flac"
        soundfile.write(path, np.stack([audio, audio], axis=1), ANALYSIS_RATE_HZ)
        item = StageInput(path.name, path, SegmentParams(), {}, folder)
        wall, processor = time.perf_counter(), time.process_time()
        process(loaded, item)
        duration_s = len(audio) / ANALYSIS_RATE_HZ
        return {
            "audio_s": duration_s,
            "wall": (time.perf_counter() - wall) / duration_s,
            "processor": (time.process_time() - processor) / duration_s,
            **{f"wall_{k}": v / duration_s for k, v in item.phases.seconds.items()},
        }


def main(
    data: Annotated[Path, typer.Option(help="Folder of the data sets.")],
    json_out: Annotated[Path, typer.Option("--json", help="Where the figures go.")],
    weights: Annotated[Path, typer.Option(help="Weights to judge.")] = DEFAULT_WEIGHTS,
    n: Annotated[int, typer.Option(help="Soundscapes of the test split.")] = 100,
    n_validation: Annotated[int, typer.Option(help="Soundscapes for thresholds.")] = 40,
    cache: Annotated[Path, typer.Option(help="Folder for decoded clips.")] = Path("runs/cache"),
) -> None:
    """Evaluate the segmenter on one thread and write every figure as JSON."""
    torch.set_num_threads(1)
    loaded = load("cpu", weights)
    bank = ClipBank.open(exclude_leaks(load_clips(data)), cache)
    validation, held_out = in_split(bank.clips, "validation"), in_split(bank.clips, "test")
    dev = list(cases_of(loaded, soundscapes_of(bank, validation, n_validation, SEED)))
    test = list(cases_of(loaded, soundscapes_of(bank, held_out, n, SEED)))
    short = list(cases_of(loaded, short_soundscapes(bank, n // 2, SEED)))
    methods = {MODEL: judge(MODEL, True, dev, test, short)}
    methods |= {peer.name: judge(peer.name, peer.soft, dev, test, short) for peer in PEERS}
    methods[MODEL]["region_segment_f1"] = f1_of(
        (region_segments(c.scores[MODEL], len(truth)), truth)
        for c, truth in ((c, true_segments(c.scape)) for c in test)
    )
    figures = {
        "digest": loaded.digest,
        "soundscapes": n,
        "methods": methods,
        "trivial": trivial(dev, test, short),
        "classes": class_figures(loaded.config.labels, dev, test),
        "chunked_minus_whole": chunking_difference(loaded, bank),
        "real_time_factor": real_time_factor(loaded, [c.scape for c in test[:30]]),
    }
    json_out.parent.mkdir(parents=True, exist_ok=True)
    json_out.write_text(json.dumps(figures, indent=2))
    typer.echo(json.dumps(figures, indent=2))


if __name__ == "__main__":
    typer.run(main)
