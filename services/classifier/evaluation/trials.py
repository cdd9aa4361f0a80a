"""Trainings whose test predictions are kept: each is done once, several side by side.

A trial is one training and the predictions of its test clips. What a trial is made of is written
beside what it makes; one that is finished is not done again, one that was cut off goes on, and
one made of something else is refused.
"""

from __future__ import annotations

import json
import multiprocessing
import traceback
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.checkpoint import written_beside
from common.datasets import Clip, ClipBank, check_no_leaks
from common.errors import PermanentError
from common.training_watch import JOURNAL_FILE
from services.classifier.admission import check_fits, check_long_enough
from services.classifier.config import Config
from services.classifier.evaluation.predictions import (
    Predictions,
    clip_facts,
    predict,
    predictions_of,
)
from services.classifier.infer import load
from services.classifier.recipe import Recipe
from services.classifier.train import WEIGHTS_FILE, train

TRIAL_FILE = "trial.json"
PREDICTIONS_FILE = "predictions.npz"
LOG_FILE = "log.txt"
NEWS_S = 30.0


@dataclass(frozen=True)
class Trial:
    """One training and its test. ``leaky``: recordings may be on both sides, to show what it does.

    The clips of ``test`` have labels of ``config``; those of ``train`` too. ``start`` is the trial
    whose weights it goes on from; it must be finished before.
    """

    name: str
    folder: Path
    train: tuple[Clip, ...]
    test: tuple[Clip, ...]
    config: Config
    recipe: Recipe
    seed: int
    leaky: bool = False
    start: Trial | None = None

    @property
    def weights(self) -> Path:
        """Where the weights go."""
        return self.folder / WEIGHTS_FILE

    @property
    def made_of(self) -> dict[str, Any]:
        """What decides the outcome, fit for JSON: settings, and digests of the clips."""
        raw: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "config": self.config.to_dict(),
                    "recipe": asdict(self.recipe),
                    "seed": self.seed,
                    "training_clips": digest_of(self.train),
                    "test_clips": digest_of(self.test),
                    "start": None if self.start is None else self.start.made_of,
                }
            )
        )
        return raw


@dataclass(frozen=True)
class Machine:
    """What trials run on. ``jobs`` processes of ``threads`` threads each."""

    cache: Path
    device: str = "cpu"
    threads: int = 1
    jobs: int = 1


class OtherTrial(PermanentError):
    """A folder holds a trial made of something else."""

    code = "other_trial"


class TrialFailed(PermanentError):
    """A trial failed in a process of its own; names it and its log."""

    code = "trial_failed"


def run_trials(
    trials: Sequence[Trial], machine: Machine, bank: ClipBank | None = None
) -> list[Predictions]:
    """Do the trials that are not finished yet and return the predictions of all, in their order.

    Args:
        trials: of one sample rate.
        machine: what they run on.
        bank: holds the clips of all, if there is one already; what it has digested is not read
            again to find equal samples.

    Raises:
        OtherTrial: a folder holds a trial of other settings, clips or seed.
        LeakFound: a recording, or samples, are on both sides of a trial that is not ``leaky``.
        DatasetInvalid, RecipeInvalid: clips or recipe do not fit, as ``check_fits`` says.
        ClassMissing: every clip of a class is too short to train on.
        ClipsCorrupt: clips cannot be decoded.
        TrialFailed: one did, in a process of its own.
    """
    todo = [trial for trial in trials if not (trial.folder / PREDICTIONS_FILE).is_file()]
    _check(trials, todo, machine, bank)
    for trial in trials:
        claim(trial.folder, trial.made_of)
    done = len(trials) - len(todo)
    with tqdm(total=len(trials), initial=done, desc="trainings", unit="training") as bar:
        if machine.jobs == 1:
            for trial in todo:
                bar.write(f"{trial.name}: {len(trial.train)} clips, tested on {len(trial.test)}")
                run_trial(trial, machine)
                bar.update()
        else:
            side_by_side(todo, machine, bar)
    return [Predictions.load(trial.folder / PREDICTIONS_FILE) for trial in trials]


def _check(
    trials: Sequence[Trial], todo: Sequence[Trial], machine: Machine, bank: ClipBank | None
) -> None:
    """Refuse trials that cannot be or that would flatter; of those to do, decode all clips."""
    for trial in trials:
        check_fits(trial.train, (), trial.config, trial.recipe)
        if not trial.leaky:
            check_no_leaks(trial.train, trial.test)
    if not todo:
        return
    if bank is None:  # decoded here, so that no two processes wait for each other
        bank = ClipBank.open(
            list({c.path: c for t in todo for c in (*t.train, *t.test)}.values()),
            machine.cache,
            todo[0].config.sample_rate,
            progress=True,
        )
    for trial in todo:
        check_long_enough(trial.train, bank, trial.config)
        if not trial.leaky:
            check_no_leaks(trial.train, trial.test, bank=bank)


def run_trial(trial: Trial, machine: Machine) -> None:
    """Train, predict the test clips with the weights that were written, and keep that."""
    clips = [*trial.train, *trial.test]
    bank = ClipBank.open(clips, machine.cache, trial.config.sample_rate)
    trained = train(
        trial.train,
        bank,
        trial.config,
        trial.recipe,
        trial.folder,
        seed=trial.seed,
        device=machine.device,
        threads=machine.threads,
        start_from=None if trial.start is None else trial.start.weights,
    )
    loaded = load(machine.device, trained.weights)
    logits = predict(loaded.model, bank, trial.test, loaded.device)
    config = loaded.config
    made = predictions_of(trial.test, logits, config.labels, config.multi_label)
    made.save(trial.folder / PREDICTIONS_FILE)


def side_by_side(trials: Sequence[Trial], machine: Machine, bar: Any) -> None:
    """Run trials in processes; after a failure none is begun, and those at work are waited for.

    Args:
        trials: not finished yet.
        machine: how many at a time, and on what.
        bar: a progress bar of tqdm, a step per trial.

    Raises:
        TrialFailed: some did; names them and their logs.
    """
    context = multiprocessing.get_context("spawn")  # threads of torch do not outlive a fork
    failures: list[str] = []
    with ProcessPoolExecutor(machine.jobs, mp_context=context) as pool:
        running: dict[Future[str | None], Trial] = {
            pool.submit(_run_logged, trial, machine): trial for trial in trials
        }
        while running:
            finished, _ = wait(running, timeout=NEWS_S, return_when=FIRST_COMPLETED)
            for future in finished:
                trial = running.pop(future)
                failure = None if future.cancelled() else future.result()
                if failure is not None:
                    failures.append(
                        f"{trial.name} failed: {failure}; more in {trial.folder / LOG_FILE}"
                    )
                    bar.write(failures[-1])
                    for other in running:
                        other.cancel()
                elif not future.cancelled():
                    bar.write(f"{trial.name}: done")
                    bar.update()
            if not finished:
                for future, trial in running.items():
                    if future.running() and (news := _news_of(trial.folder)):
                        bar.write(f"{trial.name}: {news}")
    if failures:
        raise TrialFailed("; ".join(failures))


def _run_logged(trial: Trial, machine: Machine) -> str | None:
    """Run a trial with its output in a log beside it; return what went wrong, if anything."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    with (
        (trial.folder / LOG_FILE).open("a") as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        try:
            run_trial(trial, machine)
        except Exception as error:
            traceback.print_exc(file=log)
            return f"{type(error).__name__}: {error}"
    return None


def _news_of(folder: Path) -> str:
    """Return the last line of a trial's journal in words, nothing if there is none yet."""
    journal = folder / JOURNAL_FILE
    lines = journal.read_text().splitlines() if journal.is_file() else []
    if not lines:
        return ""
    last = json.loads(lines[-1])
    return f"step {last['step']:.0f}, {last['seconds']:.0f} s, loss {last.get('total', 0.0):.3f}"


def claim(folder: Path, made_of: dict[str, Any]) -> None:
    """Write down what a trial's folder is for, or compare it with what is written there.

    Raises:
        OtherTrial: the folder is for something else, or does not say for what.
    """
    path = folder / TRIAL_FILE
    if not path.is_file():
        with written_beside(path) as beside:
            beside.write_text(json.dumps(made_of, indent=1, sort_keys=True) + "\n")
        return
    try:
        theirs = json.loads(path.read_text())
    except ValueError as error:
        raise OtherTrial(f"{path} cannot be read: {error}; delete {folder}") from error
    if theirs != made_of:
        raise OtherTrial(
            f"{folder} holds another training: it differs in "
            f"{', '.join(_differing(made_of, theirs))}; choose another folder or delete that one"
        )


def _differing(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the names of the settings that two dictionaries do not share."""
    names = []
    for name in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(name), theirs.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            names += _differing(a, b, f"{prefix}{name}.")
        elif a != b:
            names.append(prefix + name)
    return names


def digest_of(clips: Sequence[Clip]) -> str:
    """Return a name for a set of clips, their folds and labels, whatever their order."""
    lines = sorted(json.dumps(clip_facts(clip)) for clip in clips)
    return sha256("\n".join(lines).encode()).hexdigest()[:16]
