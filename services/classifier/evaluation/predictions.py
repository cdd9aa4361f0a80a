"""What a network says about whole clips, beside what they are: made, kept in a file, read back."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit, softmax
from tqdm import tqdm

from common.checkpoint import written_beside
from common.datasets import Clip, ClipBank
from common.errors import PermanentError
from services.classifier.calibration import Scale
from services.classifier.model import Classifier

Array = np.ndarray[Any, Any]

BATCH_SEGMENTS = 512
"""At most so many segments are computed at once: eight clips of 5 s."""


class PredictionsInvalid(PermanentError):
    """Predictions cannot be read, or not be put together."""

    code = "predictions_invalid"


@dataclass(frozen=True)
class Predictions:
    """Logits of N clips for K labels, and which labels the clips have."""

    logits: Array  # (N, K) float32
    present: Array  # (N, K) bool
    labels: tuple[str, ...]
    multi_label: bool  # logits of sigmoids, not of a softmax
    clips: tuple[str, ...]  # their ids
    folds: Array  # (N,) int

    @property
    def truth(self) -> Array:
        """The (N,) numbers of the first label each clip has."""
        numbers: Array = self.present.argmax(axis=1)
        return numbers

    def confidence(self, scale: Scale) -> Array:
        """Return (N, K) probabilities in [0, 1] under a calibration."""
        scaled = (self.logits.astype(np.float64) + scale.shift) / scale.temperature
        result: Array = expit(scaled) if self.multi_label else softmax(scaled, axis=1)
        return result

    def save(self, path: Path) -> None:
        """Write a file beside ``path``, then rename it there."""
        with written_beside(path) as beside, beside.open("wb") as file:
            np.savez(
                file,
                logits=self.logits,
                present=self.present,
                labels=np.array(self.labels),
                multi_label=np.array(self.multi_label),
                clips=np.array(self.clips),
                folds=self.folds,
            )

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read what ``save`` wrote.

        Raises:
            PredictionsInvalid: the file is missing, damaged, or something else.
        """
        try:
            # opened here, since NumPy leaves a file that it cannot read open
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                made = cls(
                    logits=file["logits"],
                    present=file["present"],
                    labels=tuple(file["labels"].tolist()),
                    multi_label=bool(file["multi_label"]),
                    clips=tuple(file["clips"].tolist()),
                    folds=file["folds"],
                )
        except (
            OSError,
            EOFError,
            KeyError,
            ValueError,
            TypeError,  # an array alone, or labels of no kind
            zipfile.BadZipFile,
        ) as error:
            raise PredictionsInvalid(f"{path} holds no predictions: {error}") from error
        shape = (len(made.clips), len(made.labels))
        if made.logits.shape != shape or made.present.shape != shape:
            raise PredictionsInvalid(
                f"{path} holds no predictions: its parts do not fit each other"
            )
        return made


def clip_id(clip: Clip) -> str:
    """Return a name of a clip that no other has and that is the same on every machine.

    The published data sets give no two files of one folder's name the same name.
    """
    return f"{clip.dataset}/{clip.place or f'{clip.path.parent.name}/{clip.path.name}'}"


def clip_facts(clip: Clip) -> list[Any]:
    """Return what a training knows its clips by, fit for JSON: name, fold, bytes, labels.

    Where the data set lies is not among them: it may be moved.
    """
    return [clip_id(clip), clip.fold, clip.path.stat().st_size, list(clip.labels)]


def predictions_of(
    clips: Sequence[Clip], logits: Array, labels: Sequence[str], multi_label: bool
) -> Predictions:
    """Return logits (N, K) with what is known of their clips; ``labels`` has all of theirs."""
    number = {label: k for k, label in enumerate(labels)}
    present = np.zeros(logits.shape, np.bool_)
    for n, clip in enumerate(clips):
        present[n, [number[label] for label in clip.labels]] = True
    return Predictions(
        logits=np.asarray(logits, np.float32),
        present=present,
        labels=tuple(labels),
        multi_label=multi_label,
        clips=tuple(clip_id(clip) for clip in clips),
        folds=np.array([clip.fold for clip in clips], np.int64),
    )


def pooled(parts: Sequence[Predictions]) -> Predictions:
    """Return predictions of one kind, over the same labels, as one.

    Raises:
        PredictionsInvalid: they are none, or their labels or kinds differ.
    """
    if not parts:
        raise PredictionsInvalid("there are no predictions")
    first = parts[0]
    if any((p.labels, p.multi_label) != (first.labels, first.multi_label) for p in parts):
        raise PredictionsInvalid("predictions over different labels cannot be pooled")
    return Predictions(
        logits=np.concatenate([p.logits for p in parts]),
        present=np.concatenate([p.present for p in parts]),
        labels=first.labels,
        multi_label=first.multi_label,
        clips=tuple(clip for p in parts for clip in p.clips),
        folds=np.concatenate([p.folds for p in parts]),
    )


@torch.inference_mode()
def predict(
    model: Classifier,
    bank: ClipBank,
    clips: Sequence[Clip],
    device: str = "cpu",
    change: Callable[[Array], Array] = lambda waveform: waveform,
) -> Array:
    """Return (N, K) logits of whole clips without a mask, in batches of clips of one length.

    Args:
        model: in eval mode, on ``device``.
        bank: holds the clips.
        clips: in any order; the rows follow it.
        device: "cpu" or "cuda".
        change: done to each waveform (n,) first; keeps its length.
    """
    segment = model.config.segment_samples
    by_length: dict[int, list[int]] = {}
    for number, clip in enumerate(clips):
        by_length.setdefault(-(-bank.n_samples(clip) // segment), []).append(number)
    logits = np.zeros((len(clips), len(model.config.labels)), np.float32)
    with tqdm(total=len(clips), desc="clips", unit="clip", mininterval=2.0, leave=False) as bar:
        for n_segments, numbers in sorted(by_length.items()):
            size = max(1, BATCH_SEGMENTS // n_segments)
            for start in range(0, len(numbers), size):
                chosen = numbers[start : start + size]
                batch = np.zeros((len(chosen), n_segments * segment), np.float32)
                for row, number in zip(batch, chosen, strict=True):
                    waveform = change(bank.waveform(clips[number]))
                    row[: len(waveform)] = waveform
                features = model.features(torch.from_numpy(batch).to(device))
                logits[chosen] = model(features).clip.float().cpu().numpy()
                bar.update(len(chosen))
    return logits
