"""Training: ``python -m services.classifier.train --config RECIPE --data DIR --out DIR``.

``train`` is what the command, the protocols and fine-tuning share: clips and a recipe in, weights
out. Batches are a function of the step, so that a training that was cut off ends as one that was
not.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from common import checkpoint
from common.datasets import LAYOUTS, Clip, ClipBank, check_no_leaks, load_layout
from common.soundscapes import cast_of, soundscapes_of
from common.training import FitConfig, Losses, Validation, computes_bf16, fit
from services.classifier.admission import (
    check_fits,
    check_long_enough,
    device_named,
    tell_short,
)
from services.classifier.calibration import (
    SCENE_SEED,
    OneSided,
    fit_clips,
    hear_scenes,
    with_segments_fitted,
)
from services.classifier.config import WINDOW_SEGMENTS, Config
from services.classifier.data import CROP_SEGMENTS, MAX_BATCH, Batch, BatchMaker, MelBank
from services.classifier.evaluation.predictions import clip_facts, predict, predictions_of
from services.classifier.losses import FocalLoss, PresenceLoss, ShareLoss
from services.classifier.model import Classifier, build
from services.classifier.provenance import provenance_of, tell_seen, training_notes
from services.classifier.recipe import RECIPES, Recipe, lasting, read_plan
from services.classifier.selection import (
    choose,
    choose_merged,
    folds_in,
    open_bank,
    plain_errors,
    without_copies,
    without_skipped,
)
from services.classifier.textures import teach_texture
from services.classifier.transfer import begin_from, head_axes

WEIGHTS_FILE = "classifier.safetensors"
MANY_STEPS = 100_000_000
"""Where minutes end the schedule."""
MIN_TO_CALIBRATE = 40
"""Fewer held-out clips say too little about confidence; the calibration stays as it is."""
VALIDATION_SCENES = 60


@dataclass(frozen=True)
class Trained:
    """What a training made. ``model``: the moving average of the last step, in eval mode.

    ``figures`` are of the clips that were held out, if any. ``uncalibrated``: a sentence on each
    calibration that there were clips for and that stayed as it was, since they all say the same.
    """

    model: Classifier
    config: Config
    steps: int
    seconds: float
    weights: Path
    figures: Mapping[str, float]
    uncalibrated: tuple[str, ...] = ()


class ClassifierLosses:
    """Batch to losses: shares and presence per clip, presence per segment, shares per branch.

    Where exactly one label is asked (softmax), presence per clip is left out. With segment targets
    "clip" every segment is taught its clip's labels, which assumes that they sound throughout (the
    strong-label assumption of Kumar et al. 2018, "Knowledge transfer from weakly labeled audio").
    """

    def __init__(self, recipe: Recipe, multi_label: bool) -> None:
        self.recipe, self.multi_label = recipe, multi_label
        self.share = ShareLoss()
        self.presence = FocalLoss(recipe.focal_gamma) if recipe.loss == "focal" else PresenceLoss()

    def __call__(self, model: Classifier, batch: Batch) -> Losses:
        """Return named scalars; "total" is their weighted sum."""
        recipe = self.recipe
        scores = model(batch.logmel, batch.mask)
        clip, segments = scores.clip.float(), scores.segments.float()
        losses = {"share": recipe.share_weight * self.share(clip, batch.share)}
        if self.multi_label:
            losses["presence"] = recipe.presence_weight * self.presence(clip, batch.present)
        losses["segments"] = recipe.segment_weight * self._of_segments(segments, batch)
        branches = [self.share(logits.float(), batch.share) for logits in scores.branches]
        if branches:
            losses["branches"] = recipe.branch_weight * torch.stack(branches).sum()
        return {"total": torch.stack(list(losses.values())).sum(), **losses}

    def _of_segments(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss of logits (B, K, t)."""
        if self.recipe.segment_targets == "activity":
            targets, weight = batch.segment_present, batch.segment_weight
            active: Tensor = self.presence(logits, targets, weight)
            return active
        B, K, t = logits.shape
        if self.multi_label:
            present: Tensor = self.presence(logits, batch.present[..., None].expand(B, K, t))
            return present
        rows = logits.transpose(1, 2).reshape(B * t, K)
        share: Tensor = self.share(rows, batch.share.repeat_interleave(t, dim=0))
        return share


class StepBatches:
    """Batches as a function of the step: the same whether a training was cut off or not."""

    def __init__(self, maker: BatchMaker, recipe: Recipe, seed: int) -> None:
        self.maker, self.recipe, self.seed = maker, recipe, seed

    def __call__(self, step: int, position: float) -> Batch:
        """Return the batch of a step at a position in the schedule, in [0, 1)."""
        self.maker.rng = np.random.default_rng((self.seed, step))
        lengths, shares = zip(*CROP_SEGMENTS, strict=True)
        segments = int(self.maker.rng.choice(lengths, p=shares))
        if position >= 1.0 - self.recipe.final_full_share:
            segments = WINDOW_SEGMENTS
        n_items = max(1, min(self.recipe.batch_segments // segments, MAX_BATCH))
        return self.maker.batch(n_items, segments)


def train(
    clips: Sequence[Clip],
    bank: ClipBank,
    config: Config,
    recipe: Recipe,
    out: Path,
    *,
    seed: int,
    device: str = "cpu",
    threads: int = 1,
    validation: Sequence[Clip] = (),
    start_from: Path | None = None,
) -> Trained:
    """Train a classifier; one that was cut off goes on from ``out``, one that ended is returned.

    Args:
        clips: to train on; their labels are among those of ``config``.
        bank: holds ``clips`` and ``validation`` at the config's rate.
        config: the classifier.
        recipe: how to train.
        out: gets the weights (classifier.safetensors, matrices in half precision), the journal,
            TensorBoard's curves and the checkpoint to resume from.
        seed: of weights and batches.
        device: "cpu" or "cuda"; "auto" takes a GPU if there is one.
        threads: of the CPU.
        validation: clips held out of the training side, never of a test fold. They are reported,
            may end the training early if the recipe says so, and if there are MIN_TO_CALIBRATE or
            more, the calibration is fitted on them; else, or where they all say the same, it stays
            that of ``config``. What they were used for is noted in the weights.
        start_from: a weights file of the same network and front end to start from.

    Raises:
        LeakFound: ``clips`` and ``validation`` share a recording, or samples.
        ClassMissing: every clip of a class is too short to train on.
        DatasetInvalid: a clip has a label that the config has not, or several where it allows one.
        RecipeInvalid: as ``check_fits`` says.
        WeightsInvalid: ``start_from`` does not fit, or ``out`` holds another training.
        FloatingPointError: the training diverged.
    """
    check_fits(clips, validation, config, recipe)
    check_long_enough(clips, bank, config)
    check_no_leaks(clips, validation, bank=bank)
    torch.set_num_threads(threads)
    device = device_named(device)
    torch.manual_seed(seed)
    model = build(config)
    identity = _identity(clips, validation, config, recipe)
    if start_from is not None:
        start = checkpoint.load(start_from)
        begin_from(model, start)
        identity += start.digest
    heads = head_axes(config)
    maker = BatchMaker(MelBank(bank, clips, config), config, seed, recipe.augmentation)
    measure = _measure(bank, validation, config, device) if validation else None
    result = fit(
        model.to(memory_format=torch.channels_last),
        StepBatches(maker, recipe, seed),
        ClassifierLosses(recipe, config.multi_label),
        fit_config_of(recipe, seconds_of(clips, bank), config.segment_s, seed, device),
        out,
        device,
        validation=None
        if measure is None
        else Validation(measure, recipe.validate_every, patience=recipe.patience),
        lr_scale=lambda name: 1.0 if name in heads else recipe.body_lr_share,
        identity=identity,
    )
    made = result.ema_model
    teach_texture(made, maker, recipe.texture_steps, seed)
    weights = out / WEIGHTS_FILE
    before = None if start_from is None else provenance_of(start_from)
    more = {"recipe": asdict(recipe), "seed": seed}
    ended_by = validation if recipe.patience is not None else ()
    # before they are judged and calibrated: whatever happens there costs no training
    _write_weights(made, weights, training_notes(clips, ended_by, before) | more)
    figures = {} if measure is None else measure(made)
    uncalibrated: tuple[str, ...] = ()
    if len(validation) >= MIN_TO_CALIBRATE:
        calibrated = _calibrated(made, bank, validation, device)
        chosen_by = ended_by if calibrated.config == made.config else validation
        made.config, uncalibrated = calibrated.config, calibrated.kept
        _write_weights(made, weights, training_notes(clips, chosen_by, before) | more)
    return Trained(made, made.config, result.steps, result.seconds, weights, figures, uncalibrated)


@dataclass(frozen=True)
class _Calibrated:
    """A config, and what in it could not be fitted and stayed as it was: a sentence for each."""

    config: Config
    kept: tuple[str, ...]


def _calibrated(
    model: Classifier, bank: ClipBank, validation: Sequence[Clip], device: str
) -> _Calibrated:
    """Return the config with what is fitted on held-out clips and on soundscapes made of them."""
    config, kept = model.config, []
    made = predictions_of(
        validation, predict(model, bank, validation, device), config.labels, config.multi_label
    )
    if cast_of(validation).foreground:
        scenes = soundscapes_of(bank, validation, VALIDATION_SCENES, SCENE_SEED)
        try:
            config = with_segments_fitted(config, hear_scenes(model, scenes, device))
        except OneSided:
            kept.append(
                "the confidence of events is not calibrated: nothing is heard in the clips that "
                "were held out, or nothing else"
            )
    try:
        fitted = fit_clips(made.logits, made.present, made.multi_label)
        config = replace(
            config, temperature=round(fitted.temperature, 4), shift=round(fitted.shift, 4)
        )
    except OneSided:
        kept.append(
            "the confidence of clips is not calibrated, and their accuracy says nothing: every "
            "clip that was held out has every label; add clips of other sounds"
        )
    return _Calibrated(config, tuple(kept))


def _write_weights(model: Classifier, path: Path, notes: Mapping[str, Any]) -> None:
    """Write a weights file, matrices and kernels in half precision: it is read back as float32."""
    state = {
        name: tensor.half() if tensor.ndim >= 2 else tensor
        for name, tensor in model.state_dict().items()
    }
    checkpoint.save(path, model.config.to_dict(), state, dict(notes))


def seconds_of(clips: Sequence[Clip], bank: ClipBank) -> float:
    """Return how long clips last together."""
    return sum(bank.n_samples(clip) for clip in clips) / bank.sample_rate


def fit_config_of(
    recipe: Recipe, audio_s: float, segment_s: float, seed: int, device: str
) -> FitConfig:
    """Return how the loop is to fit clips that last ``audio_s`` together on "cpu" or "cuda"."""
    steps = recipe.steps or MANY_STEPS
    if recipe.epochs is not None:
        steps = math.ceil(recipe.epochs * audio_s / (recipe.batch_segments * segment_s))
    return FitConfig(
        steps=steps,
        lr=recipe.lr,
        optimizer=recipe.optimizer,
        weight_decay=recipe.weight_decay,
        ema_decay=recipe.ema_decay,
        warmup_share=recipe.warmup_share,
        grad_clip=recipe.grad_clip,
        minutes=recipe.minutes,
        bf16=computes_bf16(device) if recipe.bf16 == "auto" else recipe.bf16,
        seed=seed,
    )


def _identity(
    clips: Sequence[Clip], validation: Sequence[Clip], config: Config, recipe: Recipe
) -> str:
    """Return a digest of what is trained on what, but for how long."""
    settings = asdict(recipe) | dict.fromkeys(("epochs", "steps", "minutes"))
    parts = [[clip_facts(clip) for clip in part] for part in (clips, validation)]
    text = json.dumps([parts, config.to_dict(), settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _measure(
    bank: ClipBank, clips: Sequence[Clip], config: Config, device: str
) -> Callable[[Classifier], dict[str, float]]:
    """Return a function of a model to its loss and accuracy on held-out clips, per clip.

    A clip is right if its highest score is of a label that it has.
    """

    def measure(model: Classifier) -> dict[str, float]:
        made = predictions_of(
            clips, predict(model, bank, clips, device), config.labels, config.multi_label
        )
        logits, present = torch.from_numpy(made.logits), torch.from_numpy(made.present).float()
        if config.multi_label:
            loss = PresenceLoss()(logits, present)
        else:
            loss = F.cross_entropy(logits, present / present.sum(1, keepdim=True))
        right = made.present[np.arange(len(clips)), made.logits.argmax(1)]
        return {"loss": float(loss), "accuracy": float(right.mean())}

    return measure


def main(
    data: Annotated[Path, typer.Option(help="folder of the data set, or of the three sets")],
    out: Annotated[Path, typer.Option(help="folder for weights, journal, curves, checkpoint")],
    config: Annotated[Path, typer.Option(help="recipe")] = RECIPES / "hybrid.toml",
    layout: Annotated[
        str, typer.Option(help=f"{', '.join(LAYOUTS)}; none: the three sets, merged")
    ] = "",
    train_folds: Annotated[str, typer.Option(help="such as 1,2,3; none: all not held out")] = "",
    validation_folds: Annotated[str, typer.Option(help="held out of training")] = "",
    everything: Annotated[
        bool, typer.Option(help="merged sets: train on test and validation clips too")
    ] = False,
    start_from: Annotated[Path | None, typer.Option(help="weights to start from")] = None,
    minutes: Annotated[float | None, typer.Option(help="instead of the recipe's length")] = None,
    steps: Annotated[int | None, typer.Option(help="instead of the recipe's length")] = None,
    seed: Annotated[int | None, typer.Option(help="instead of the recipe's")] = None,
    skip_corrupt: Annotated[bool, typer.Option(help="leave out clips without sound")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
    cache: Annotated[Path, typer.Option(help="decoded clips")] = Path("runs/cache"),
) -> None:
    """Train a classifier and write OUT/classifier.safetensors."""
    with plain_errors():
        device = device_named(device)
        plan = read_plan(config)
        recipe = plan.recipe
        if minutes is not None or steps is not None:
            recipe = lasting(recipe, minutes, steps)
        if layout:
            loaded = load_layout(data, layout)
            chosen = choose(loaded, folds_in(train_folds), folds_in(validation_folds))
        elif train_folds or validation_folds:
            raise typer.BadParameter("folds are of one data set: name its --layout")
        else:
            chosen = choose_merged(data, everything)
        bank = open_bank(chosen, cache, plan.config.sample_rate, skip_corrupt)
        chosen = without_skipped(chosen, bank)
        if not layout:  # nobody said what to hold out
            chosen = without_copies(chosen, bank)
        model_config = replace(plan.config, labels=chosen.labels)
        tell_short(chosen.train, bank, model_config)
        if start_from is not None:
            tell_seen(chosen.validation, provenance_of(start_from), "The weights to start from")
        typer.echo(
            f"{model_config.architecture}, {len(chosen.labels)} labels: "
            f"{len(chosen.train)} clips to train on, {len(chosen.validation)} held out"
        )
        trained = train(
            chosen.train,
            bank,
            model_config,
            recipe,
            out,
            seed=recipe.seed if seed is None else seed,
            device=device,
            threads=threads,
            validation=chosen.validation,
            start_from=start_from,
        )
    typer.echo(f"{trained.steps} steps in {trained.seconds:.0f} s; wrote {trained.weights}")
    if trained.figures:
        accuracy, loss = trained.figures["accuracy"], trained.figures["loss"]
        typer.echo(f"on held-out clips: accuracy {100 * accuracy:.1f} %, loss {loss:.3f}")
    if len(chosen.validation) < MIN_TO_CALIBRATE:
        typer.echo(
            f"fewer than {MIN_TO_CALIBRATE} clips were held out: the confidence is not calibrated",
            err=True,
        )
    for sentence in trained.uncalibrated:
        typer.echo(sentence, err=True)


if __name__ == "__main__":
    typer.run(main)
