"""Training: ``python -m services.classifier.train --data DIR --out DIR``.

Fits the train split, then the temperature and the shift of events on the validation split, and
writes the weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from scipy.optimize import minimize_scalar
from torch import Tensor

from common import checkpoint
from common.datasets import Clip, ClipBank, exclude_leaks, load_clips, split_of
from common.soundscapes import Soundscape, evaluation_soundscapes
from common.training import JOURNAL_FILE, FitConfig, Losses, fit
from services.classifier.config import Config
from services.classifier.data import Batch, BatchMaker, MelBank
from services.classifier.events import find_events
from services.classifier.losses import PresenceLoss, ShareLoss
from services.classifier.model import Classifier, build
from services.classifier.scoring import Counts, match_events, match_seconds, truth_of

SEGMENT_WEIGHT = 0.5
BRANCH_WEIGHT = 0.3
QUICK_MINUTES = 2.5
VALIDATION_SCENES = 60
SCENE_SEED = 7
EVENT_SHIFTS = np.arange(-1.0, 4.01, 0.25)


class ClassifierLosses:
    """Batch to losses: shares and presence per clip, presence per segment, shares per branch."""

    def __init__(self, bf16: bool) -> None:
        self.share, self.presence, self.bf16 = ShareLoss(), PresenceLoss(), bf16

    def __call__(self, model: Classifier, batch: Batch) -> Losses:
        """Return named scalars; "total" is their weighted sum."""
        with torch.autocast(batch.logmel.device.type, torch.bfloat16, enabled=self.bf16):
            scores = model(batch.logmel, batch.mask)
        losses = {
            "share": self.share(scores.clip.float(), batch.share),
            "presence": self.presence(scores.clip.float(), batch.present),
            "segments": self.presence(
                scores.segments.float(), batch.segment_present, batch.segment_weight
            ),
            "branches": sum(
                (self.share(logits.float(), batch.share) for logits in scores.branches),
                torch.zeros(()),
            ),
        }
        total = losses["share"] + losses["presence"]
        total = total + SEGMENT_WEIGHT * losses["segments"] + BRANCH_WEIGHT * losses["branches"]
        return {"total": total, **losses}


@torch.inference_mode()
def clip_logits(model: Classifier, bank: ClipBank, clips: list[Clip], device: str) -> Tensor:
    """Return (N, K) logits of whole clips, without a mask."""
    return torch.cat(
        [
            model(model.features(torch.from_numpy(bank.waveform(clip))[None].to(device))).clip.cpu()
            for clip in clips
        ]
    )


def fit_temperature(logits: Tensor, truth: Tensor) -> float:
    """Return the temperature under which sigmoids fit best: least binary cross-entropy.

    Source: Guo et al. 2017, "On calibration of modern neural networks", for sigmoids. Every class
    counts the same, however many clips it has.

    Args:
        logits: (N, K).
        truth: (N,) class numbers.
    """
    present = torch.nn.functional.one_hot(truth, logits.shape[1]).float()
    weight = (1.0 / present.sum(0).clamp_min(1.0))[truth][:, None].expand_as(present)
    loss = PresenceLoss()

    def nats(log_temperature: float) -> float:
        return float(loss(logits / float(np.exp(log_temperature)), present, weight))

    found = minimize_scalar(nats, bounds=(-1.5, 1.5), method="bounded")
    return float(np.exp(found.x))


@torch.inference_mode()
def fit_event_shift(model: Classifier, config: Config, scenes: Iterable[Soundscape]) -> float:
    """Return what to add to the segments' logits so that events are found best at 0.5.

    Best is the highest mean of the F1 of events and of seconds over all soundscapes.
    """
    heard = [
        (model(model.features(torch.from_numpy(scene.mixture)[None])).segments[0], truth_of(scene))
        for scene in scenes
    ]

    def quality(shift: float) -> float:
        events, seconds = Counts(), Counts()
        for logits, truth in heard:
            scores = torch.sigmoid((logits + shift) / config.segment_temperature).numpy()
            duration_s = scores.shape[1] * config.segment_s
            found = [
                event
                for label, row in zip(config.labels, scores, strict=True)
                for event in find_events(row, label, [], 0.5, config.segment_s, duration_s)
            ]
            events += match_events(found, truth)
            seconds += match_seconds(found, truth, duration_s)
        return events.f1 + seconds.f1

    return max((float(shift) for shift in EVENT_SHIFTS), key=quality)


def _halved(model: Classifier) -> dict[str, Tensor]:
    """Return a model's state with matrices and kernels in half precision: a smaller file."""
    return {
        name: tensor.half() if tensor.ndim >= 2 else tensor
        for name, tensor in model.state_dict().items()
    }


def main(
    data: Annotated[Path, typer.Option(help="folder of the data sets")],
    out: Annotated[Path, typer.Option(help="folder for checkpoints, journal and weights")],
    minutes: Annotated[float, typer.Option(help="training time")] = 25.0,
    quick: Annotated[bool, typer.Option(help=f"{QUICK_MINUTES} minutes only")] = False,
    lr: Annotated[float, typer.Option(help="peak learning rate")] = 2e-3,
    seed: Annotated[int, typer.Option()] = 0,
    bf16: Annotated[bool, typer.Option(help="for CPUs and GPUs that compute it fast")] = False,
    device: Annotated[str, typer.Option()] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
    cache: Annotated[Path, typer.Option(help="decoded clips")] = Path("runs/cache"),
) -> None:
    """Train the classifier and write OUT/classifier.safetensors."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    config = Config()
    clips = exclude_leaks(load_clips(data))
    bank = ClipBank.open(clips, cache, config.sample_rate)
    train = [clip for clip in clips if split_of(clip) == "train"]
    mels = MelBank(bank, train, config)
    model = build(config).to(memory_format=torch.channels_last)
    fit_config = FitConfig(
        steps=1_000_000,
        lr=lr,
        weight_decay=0.03,
        minutes=QUICK_MINUTES if quick else minutes,
        seed=seed,
    )
    journal = out / JOURNAL_FILE
    resumed = journal.read_text().count("\n") if journal.is_file() else 0
    batches = iter(BatchMaker(mels, config, seed=seed + resumed))
    result = fit(model, batches, ClassifierLosses(bf16), fit_config, out, device)
    held_out = [clip for clip in clips if split_of(clip) == "validation"]
    logits = clip_logits(result.ema_model, bank, held_out, device)
    truth = torch.tensor([config.labels.index(clip.label) for clip in held_out])
    temperature = round(fit_temperature(logits, truth), 4)
    config = replace(config, temperature=temperature, segment_temperature=temperature)
    scenes = evaluation_soundscapes(bank, VALIDATION_SCENES, SCENE_SEED, split="validation")
    config = replace(config, segment_shift=fit_event_shift(result.ema_model, config, scenes))
    checkpoint.save(out / "classifier.safetensors", config.to_dict(), _halved(result.ema_model))
    summary = {
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "temperature": config.temperature,
        "segment_shift": config.segment_shift,
        "validation_accuracy": round(float((logits.argmax(1) == truth).float().mean()), 4),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    typer.echo(json.dumps(summary))


if __name__ == "__main__":
    typer.run(main)
