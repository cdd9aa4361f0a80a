"""One method by one protocol from end to end: trained, tested, judged, and its report written.

A protocol's folder holds a folder per method, and in it a folder per fold and seed; what has
been finished there stays in the report, so that the table grows with every method.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.datasets import Clip, ClipBank, labels_of, load_clips, load_layout, renamed
from common.datasets.splits import FOLDERS
from services.classifier.config import Config
from services.classifier.evaluation.peers import PEER_NAMES, CepstralBank, Peer, peer_logits
from services.classifier.evaluation.pictures import evaluation_picture
from services.classifier.evaluation.predictions import Predictions, pooled, predictions_of
from services.classifier.evaluation.protocols import (
    RANDOM_SPLIT,
    Learning,
    Protocol,
    clips_for_every_fold,
    own_classes,
    parts_of,
)
from services.classifier.evaluation.reports import (
    markdown,
    percent,
    summaries_table,
    write_json,
    write_text,
)
from services.classifier.evaluation.results import Result, Summary, calibrated, judged, scales
from services.classifier.evaluation.scoring import calibration_of, closed_choice, confusion_of
from services.classifier.evaluation.trials import (
    PREDICTIONS_FILE,
    Machine,
    Trial,
    claim,
    digest_of,
    run_trials,
)
from services.classifier.recipe import Recipe

RESULT_FILE = "result.json"
PICTURE_FILE = "result.png"
REPORT_FILE = "report.json"
TABLE_FILE = "report.md"

ByTrial = dict[tuple[int, int], Predictions]
"""Predictions by (seed, fold)."""


@dataclass(frozen=True)
class Benchmark:
    """What is asked for. The protocol's folder lies in ``out`` and is named for it."""

    protocol: Protocol
    learning: Learning
    seeds: Sequence[int]
    out: Path

    @property
    def name(self) -> str:
        """The protocol's name, and what its folds learn from unless that is everything at once."""
        together = self.learning is Learning.TOGETHER
        return self.protocol.name + ("" if together else f"-{self.learning}")

    @property
    def parts_own(self) -> bool:
        """Whether a fold's own training is on its own data set alone."""
        return self.learning is not Learning.TOGETHER

    @property
    def only_own(self) -> bool:
        """Whether other data sets are left out altogether."""
        return self.learning is Learning.OWN

    def trial_folder(self, method: str, fold: int, seed: int) -> Path:
        """Where one training goes."""
        return self.out / self.name / method / f"fold{fold}-seed{seed}"


@dataclass(frozen=True)
class Report:
    """On every method finished by a protocol so far: as Markdown, and fit for JSON."""

    text: str
    raw: dict[str, Any]


def clips_in_hand(benchmark: Benchmark, data: Path) -> list[Clip]:
    """Return the clips under ``data`` that a protocol may use.

    Those of all three data sets, or of the protocol's own alone, which then ``data`` may also be.
    """
    if not benchmark.only_own:
        return load_clips(data)
    dataset = benchmark.protocol.dataset
    folders = [data / name for name in FOLDERS[dataset] if (data / name).is_dir()]
    return renamed(load_layout(folders[0] if folders else data, dataset))


def network_predictions(
    benchmark: Benchmark,
    method: str,
    bank: ClipBank,
    config: Config,
    recipe: Recipe,
    then: Recipe,
    machine: Machine,
) -> ByTrial:
    """Train and test a network on every fold under every seed.

    Args:
        benchmark: what is asked for.
        method: names the folder.
        bank: holds the clips in hand.
        config: of the network.
        recipe: of its training.
        then: where the other data sets come first, the recipe of what follows on each fold.
        machine: what it runs on.

    Raises:
        ValueError: the folds do not fit; a folder holds another training.
        LeakFound: a recording is on both sides.
    """
    parts = parts_of(benchmark.protocol, bank.clips, benchmark.parts_own, bank)
    starts: dict[int, Trial] = {}
    if benchmark.learning is Learning.OTHERS_FIRST:
        others = clips_for_every_fold(benchmark.protocol, bank.clips, bank)
        starts = {
            seed: Trial(
                name=f"{method}, other data sets, seed {seed}",
                folder=benchmark.out / benchmark.name / method / f"others-seed{seed}",
                train=others,
                test=(),
                config=config,
                recipe=recipe,
                seed=seed,
            )
            for seed in benchmark.seeds
        }
        run_trials(list(starts.values()), machine, bank)
    trials = {
        (seed, part.fold): Trial(
            name=f"{method}, fold {part.fold}, seed {seed}",
            folder=benchmark.trial_folder(method, part.fold, seed),
            train=part.train,
            test=part.test,
            config=config,
            recipe=then if starts else recipe,
            seed=seed,
            leaky=benchmark.protocol.at_random,
            start=starts.get(seed),
        )
        for seed in benchmark.seeds
        for part in parts
    }
    made = run_trials(list(trials.values()), machine, bank)
    return dict(zip(trials, made, strict=True))


def peer_predictions(benchmark: Benchmark, peer: Peer, bank: ClipBank, cache: Path) -> ByTrial:
    """Fit and test a peer on the same folds; the SVM, without chance, under one seed."""
    config = Config(labels=labels_of(bank.clips))
    found: ByTrial = {}
    parts = parts_of(benchmark.protocol, bank.clips, benchmark.parts_own, bank)
    seeds = benchmark.seeds[:1] if peer == "svm" else benchmark.seeds
    cepstra: CepstralBank | None = None
    trials = [(seed, part) for seed in seeds for part in parts]
    for seed, part in tqdm(trials, desc=PEER_NAMES[peer], unit="fold"):
        folder = benchmark.trial_folder(peer, part.fold, seed)
        made_of = {
            "training_clips": digest_of(part.train),
            "test_clips": digest_of(part.test),
            "labels": list(config.labels),
            "front_end": [config.sample_rate, config.n_fft, config.hop_length, config.n_mels],
            "seed": seed,
        }
        claim(folder, made_of)
        path = folder / PREDICTIONS_FILE
        if not path.is_file():
            if cepstra is None:
                heard = ClipBank.open(bank.clips, cache, config.sample_rate, progress=True)
                cepstra = CepstralBank(heard, bank.clips, config)
            logits = peer_logits(peer, cepstra, part.train, part.test, config.labels, seed)
            predictions_of(part.test, logits, config.labels, False).save(path)
        found[seed, part.fold] = Predictions.load(path)
    return found


def keep(
    benchmark: Benchmark,
    method: str,
    folder_name: str,
    clips: Sequence[Clip],
    predictions: ByTrial,
) -> Summary:
    """Judge predictions and write what came out: JSON and a picture."""
    labels = next(iter(predictions.values())).labels
    among = own_classes(benchmark.protocol, clips, labels)
    result = judged(benchmark.name, method, predictions, among)
    folder = benchmark.out / benchmark.name / folder_name
    write_json(folder / RESULT_FILE, asdict(result))
    _draw(folder / PICTURE_FILE, result, predictions, among)
    return result.summary


def _draw(path: Path, result: Result, predictions: ByTrial, among: Sequence[int]) -> None:
    """Draw all folds under all seeds as one."""
    summary = result.summary
    confidence, truth = [], []
    for seed in summary.seeds:
        by_fold = {fold: predictions[seed, fold] for fold in summary.folds}
        confidence.append(calibrated(by_fold, scales(by_fold)))
        truth.append(pooled(list(by_fold.values())).truth)
    sure, true = np.concatenate(confidence), np.concatenate(truth)
    choice = closed_choice(sure, among)
    labels = next(iter(predictions.values())).labels
    accuracy = summary.measures["accuracy"]
    evaluation_picture(
        path,
        f"{summary.method}, {summary.protocol}: accuracy {percent(accuracy.median)} % "
        f"({len(summary.seeds)} seed{'s' if len(summary.seeds) > 1 else ''})",
        confusion_of(true, choice, labels, among),
        calibration_of(sure[np.arange(len(sure)), choice], choice == true),
        {
            f"fold {fold}": [t.scores.accuracy for t in result.trials if t.fold == fold]
            for fold in summary.folds
        },
        "accuracy by fold, a dot per seed",
    )


def report(benchmark: Benchmark, corrupt: Mapping[str, str]) -> Report:
    """Write and return the report on every method finished by this protocol so far.

    A random split is put beside the official one, where that has been run.

    Args:
        benchmark: what was asked for.
        corrupt: the clips that were left out, by id, and why.
    """
    folder = benchmark.out / benchmark.name
    summaries = _summaries(folder)
    text = f"# {benchmark.name}\n\n{summaries_table(list(summaries.values()))}\n"
    raw: dict[str, Any] = {
        "protocol": benchmark.name,
        "methods": [asdict(s) for s in summaries.values()],
        "corrupt": dict(corrupt),
    }
    if benchmark.protocol.at_random:
        official_name = benchmark.name.removeprefix(f"{RANDOM_SPLIT}-of-")
        official = _summaries(benchmark.out / official_name)
        text += f"\n{_gap_table(summaries, official, official_name)}\n"
        raw["official"] = {name: asdict(s) for name, s in official.items()}
    write_json(folder / REPORT_FILE, raw)
    write_text(folder / TABLE_FILE, text)
    return Report(text, raw)


def _summaries(folder: Path) -> dict[str, Summary]:
    """Return what is finished, by the names of the methods' folders."""
    return {
        path.parent.name: Summary.from_dict(json.loads(path.read_text())["summary"])
        for path in sorted(folder.glob(f"*/{RESULT_FILE}"))
    }


def _gap_table(
    drawn: Mapping[str, Summary], official: Mapping[str, Summary], official_name: str
) -> str:
    rows = []
    for name, summary in drawn.items():
        flattered = summary.measures["accuracy"].median
        known = official.get(name)
        honest = None if known is None else known.measures["accuracy"].median
        gap = "not run" if honest is None else f"{100 * (flattered - honest):+.1f}"
        rows.append((summary.method, percent(flattered), percent(honest), gap))
    return markdown(("method", "random split", official_name, "flattered by"), rows)
