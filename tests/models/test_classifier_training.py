"""The classifier's training: recipes, batches, losses, resuming and repeating."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import typer

from common import checkpoint
from common.datasets import Clip, ClipBank, labels_of, load_layout
from common.errors import DatasetInvalid, LeakFound, WeightsInvalid
from common.labels import LABELS
from common.training_state import save_state
from services.classifier import train
from services.classifier.augment import Augmentation, mixed_up
from services.classifier.config import Config, HybridSettings
from services.classifier.data import TYPICAL_DB, Batch, BatchMaker, MelBank, activity, gain_to
from services.classifier.losses import FocalLoss, PresenceLoss, ShareLoss
from services.classifier.model import build
from services.classifier.recipe import RECIPES, Recipe, RecipeInvalid, read_plan
from services.classifier.selection import Chosen, choose_share, without_copies
from services.classifier.train import ClassifierLosses, StepBatches, fit_config_of
from tests.models.hums import hums

NETWORK = HybridSettings(channels=(8, 8, 16, 16), patch_width=16, patch_layers=1, fused_width=16)
SMALL = Config(network=NETWORK)
RATE = SMALL.sample_rate
QUICK = Recipe(steps=6, batch_segments=64, ema_decay=0.5)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# Recipes


@pytest.mark.parametrize("name", sorted(path.name for path in RECIPES.glob("*.toml")))
def test_the_recipes_can_be_read(name: str) -> None:
    plan = read_plan(RECIPES / name)
    if name not in ("finetune.toml", "transfer.toml"):  # there the weights bring the network
        assert plan.config.architecture == name.removesuffix(".toml")
    assert plan.config.labels == LABELS


def test_a_recipe_says_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[model]\narchitecture = "hybrid"\nn_mels = 96\nmulti_label = false\n'
        "[model.network]\nfused_width = 32\n"
        "[training]\nepochs = 2\nlr = 1\nloss = 'focal'\n"
        "[augmentation]\nnoise_share = 0\n"
    )
    plan = read_plan(path)
    assert (plan.config.n_mels, plan.config.multi_label) == (96, False)
    assert plan.config.network == HybridSettings(fused_width=32)
    how = Augmentation(noise_share=0.0)
    assert plan.recipe == Recipe(epochs=2.0, lr=1.0, loss="focal", augmentation=how)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[training", "no valid TOML"),
        ("[training]\nsteps = 3\n[augment]\n", "unknown table or key augment"),
        ("training = 3", "training must be a table"),
        ("[training]\nsteps = 3\nlearning_rate = 1", "[training] learning_rate is not known"),
        (
            "[training]\nsteps = 3\nlr = 'high'",
            "lr should be a valid number, not 'high'",
        ),
        ("[training]\nsteps = 3\nlr = 0.0", "[training] lr should be greater than 0, not 0"),
        ("[training]\nsteps = 3\nlr = nan", "[training] lr should be a finite number, not nan"),
        ("[training]\nsteps = 2.5", "[training] steps should be a valid integer, not 2.5"),
        ("[training]\nsteps = true", "[training] steps should be a valid integer, not True"),
        ("[training]\nsteps = 3\nloss = 'mse'", "[training] loss should be 'bce' or 'focal'"),
        (
            "[training]\nlr = 0.1",
            "one of epochs, steps and minutes must be given, not none",
        ),
        ("[training]\nsteps = 3\nepochs = 1", "not epochs and steps"),
        ("[training]\nsteps = 3\n[augmentation]\nnoise = 1", "[augmentation] noise is not known"),
        (
            "[training]\nsteps = 3\n[augmentation]\nnoise_share = 2.0",
            "[augmentation] noise_share should be from 0 to 1, not 2",
        ),
        (
            "[training]\nsteps = 3\n[augmentation]\nnoise_share = 'x'",
            "[augmentation] noise_share should be a valid number, not 'x'",
        ),
        ("[training]\nsteps = 3\naugmentation = 3", "augmentation is a table of its own"),
        (
            "[model]\nn_mels = 256\nn_fft = 512\n[training]\nsteps = 3",
            "[model] n_mels: 256 mel bands are too fine for n_fft 512 at 32000 Hz",
        ),
        ("[model]\nn_mels = 65\n[training]\nsteps = 3", "[model] the classifier's config"),
        ("[model]\nlabels = ['a']\n[training]\nsteps = 3", "labels has no place in a recipe"),
        ("[model]\ntemperature = 2.0", "temperature has no place in a recipe: it is fitted"),
    ],
)
def test_a_recipe_that_is_wrong_names_file_and_key(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(RecipeInvalid) as refused:
        read_plan(path)
    assert "wrong.toml" in str(refused.value)
    assert told in str(refused.value)


def test_a_recipe_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match=r"there is no recipe .*hybrid\.toml"):
        read_plan(tmp_path / "none.toml")


def test_length_of_an_epoch_by_hand() -> None:
    # 100 s of clips in batches of 10 segments of 0.08 s: 125 steps an epoch
    config = fit_config_of(Recipe(epochs=2, batch_segments=10), 100.0, 0.08, 4, "cpu")
    assert (config.steps, config.minutes, config.seed) == (250, None, 4)
    assert fit_config_of(Recipe(minutes=3.0), 100.0, 0.08, 0, "cpu").minutes == 3.0


def test_bf16_is_taken_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(recipe: Recipe) -> bool:
        return fit_config_of(recipe, 100.0, 0.08, 0, "cpu").bf16

    for able in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"amx_bf16": able})
        assert taken(Recipe(steps=1)) is able
        assert taken(Recipe(steps=1, bf16=True)) is True
        assert taken(Recipe(steps=1, bf16=False)) is False


# Batches


def test_a_click_is_no_louder_than_what_lasts() -> None:
    """Its power is 10 dB over the level that a lasting sound gets, not without end."""
    lasting, click = np.full((128, 64), 1e-3, np.float32), np.zeros((128, 64), np.float32)
    click[60:63] = 1e-3
    level = 10.0 ** (TYPICAL_DB / 10.0)
    assert gain_to(lasting, TYPICAL_DB) * lasting.sum(1).max() == pytest.approx(level, rel=1e-5)
    assert gain_to(click, TYPICAL_DB) * click.sum(1).max() == pytest.approx(10 * level, rel=1e-5)


def test_activity_by_hand() -> None:
    def power(*levels: float) -> np.ndarray:
        return np.repeat(np.array(levels, np.float32), 8)[:, None] * np.ones((1, 64), np.float32)

    layer = power(1.0, 0.5, 0.005, 0.0)  # a dog: on within 16 dB, off from 26 dB, between unknown
    on, known = activity(layer, "dog", layer)
    assert on.tolist() == [1, 1, 0, 0]
    assert known.tolist() == [1, 1, 0, 1]
    on, known = activity(layer, "dog", layer + power(0.0, 100.0, 0.0, 100.0))
    assert on.tolist() == [1, 1, 0, 0]
    assert known.tolist() == [1, 0, 0, 1]  # the second is drowned


def test_mixup_lays_items_over_their_neighbours_and_targets_alike() -> None:
    items = np.arange(6, dtype=np.float32).reshape(6, 1, 1) * np.ones((1, 2, 3), np.float32)
    targets = np.eye(6, dtype=np.float32)
    rng = np.random.default_rng(0)
    mixed, shares = mixed_up((items, targets), Augmentation(mixup_share=1.0), rng)
    assert shares.sum(1) == pytest.approx(np.ones(6))
    kept = shares.diagonal()
    assert ((kept > 0) & (kept < 1)).all()
    for n in range(6):
        neighbour = (n - 1) % 6
        assert shares[n, neighbour] == pytest.approx(1 - kept[n])
        assert mixed[n] == pytest.approx(kept[n] * n + (1 - kept[n]) * neighbour)
    draws = np.concatenate(
        [
            mixed_up((targets,), Augmentation(mixup_share=1.0), rng)[0].diagonal()
            for _ in range(2000)
        ]
    )
    assert draws.var() == pytest.approx(0.25 / 1.8, rel=0.05)  # that of Beta(0.4, 0.4)
    alone, _ = mixed_up((items, targets), Augmentation(mixup_share=0.0), rng)
    np.testing.assert_array_equal(alone, items)


@pytest.fixture
def maker(tmp_path: Path) -> BatchMaker:
    rng = np.random.default_rng(0)
    clips = []
    for n, label in enumerate(("dog", "rain", "speech", "siren", "speech")):
        path = tmp_path / f"{n}.wav"
        seconds = 0.3 if label == "speech" else 1.5
        soundfile.write(path, 0.1 * rng.standard_normal(int(seconds * RATE)), RATE)
        clips.append(Clip(path, label, "esc10", 1, "one", n))
    bank = ClipBank.open(clips, tmp_path / "cache", RATE)
    return BatchMaker(MelBank(bank, clips, SMALL), SMALL, seed=1)


def test_batches_are_well_formed(maker: BatchMaker) -> None:
    known = {LABELS.index(label) for label in ("dog", "rain", "speech", "siren")}
    for segments in (1, 6, 32):
        batch = maker.batch(24, segments)
        assert batch.logmel.shape == (24, 64, 8 * segments)
        assert batch.mask.shape == (24, 4, segments)
        assert batch.segment_present.shape == batch.segment_weight.shape == (24, 20, segments)
        for tensor in vars(batch).values():
            assert tensor.isfinite().all()
        for tensor in (batch.mask, batch.segment_present, batch.segment_weight):
            assert 0.0 <= float(tensor.min()) <= float(tensor.max()) <= 1.0
        assert set(batch.present.nonzero()[:, 1].tolist()) <= known
        sums = batch.share.sum(1)
        assert torch.isclose(sums, (batch.present.sum(1) > 0).float(), atol=1e-4).all()


def test_batches_are_a_function_of_the_step(maker: BatchMaker) -> None:
    batches = StepBatches(maker, replace(QUICK, final_full_share=0.25), seed=1)
    first, last = batches(3, 0.1), batches(4, 0.8)
    again = batches(3, 0.1)
    assert all(torch.equal(vars(first)[name], vars(again)[name]) for name in vars(first))
    assert last.segment_present.shape == (1, 20, 64)  # windows of use in the last quarter
    other = StepBatches(maker, QUICK, seed=2)(3, 0.1)
    assert first.logmel.shape != other.logmel.shape or not torch.equal(first.logmel, other.logmel)


# Losses


def one_batch() -> Batch:
    torch.manual_seed(0)
    present = torch.zeros(2, 20)
    present[0, 3] = present[0, 5] = present[1, 7] = 1.0
    return Batch(
        logmel=torch.randn(2, 64, 32),
        mask=torch.ones(2, 4, 4),
        share=present / present.sum(1, keepdim=True),
        present=present,
        segment_present=present[..., None] * torch.tensor([1.0, 0.0, 0.0, 1.0]),
        segment_weight=torch.ones(2, 20, 4),
    )


@torch.no_grad()
def test_the_recipe_decides_the_losses() -> None:
    batch, model = one_batch(), build(SMALL).eval()
    scores = model(batch.logmel, batch.mask)
    clip, segments = scores.clip, scores.segments
    everywhere = batch.present[..., None].expand_as(segments)

    def parts(multi_label: bool = True, **settings: object) -> dict[str, float]:
        recipe = replace(QUICK, **settings)
        losses = ClassifierLosses(recipe, multi_label)(model, batch)
        return {name: float(value) for name, value in losses.items()}

    mine = parts(segment_weight=0.5)
    assert mine["share"] == pytest.approx(float(ShareLoss()(clip, batch.share)))
    assert mine["presence"] == pytest.approx(float(PresenceLoss()(clip, batch.present)))
    active = float(PresenceLoss()(segments, batch.segment_present, batch.segment_weight))
    assert mine["segments"] == pytest.approx(0.5 * active)
    both = sum(float(ShareLoss()(branch, batch.share)) for branch in scores.branches)
    assert mine["branches"] == pytest.approx(0.3 * both)
    assert mine["total"] == pytest.approx(sum(v for k, v in mine.items() if k != "total"))

    focal = parts(loss="focal", focal_gamma=3.0)
    assert focal["presence"] == pytest.approx(float(FocalLoss(3.0)(clip, batch.present)))

    strong = parts(segment_targets="clip", segment_weight=1.0)
    assert strong["segments"] == pytest.approx(float(PresenceLoss()(segments, everywhere)))

    single = parts(multi_label=False, segment_targets="clip", segment_weight=1.0)
    assert "presence" not in single
    # the mean over segments of the cross-entropy with the clip's shares
    by_hand = torch.stack([ShareLoss()(segments[..., t], batch.share) for t in range(4)]).mean()
    assert single["segments"] == pytest.approx(float(by_hand))


# Training


@pytest.fixture
def small_set(tmp_path: Path) -> tuple[list[Clip], ClipBank]:
    clips = load_layout(hums(tmp_path / "set", ("low", "mid", "high"), 4), "folders")
    return clips, ClipBank.open(clips, tmp_path / "cache", RATE)


def weights_in(path: Path) -> dict[str, bytes]:
    return {n: t.numpy().tobytes() for n, t in checkpoint.load(path).tensors.items()}


def test_training_resumes_and_repeats_to_the_bit(
    small_set: tuple[list[Clip], ClipBank], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, bank = small_set
    config = replace(SMALL, labels=labels_of(clips))
    chosen = choose_share(clips, 0.25, seed=0)

    def trained(name: str, seed: int = 1) -> train.Trained:
        return train.train(
            chosen.train, bank, config, QUICK, tmp_path / name,
            seed=seed, validation=chosen.validation,
        )  # fmt: skip

    whole = trained("whole")
    assert (whole.steps, whole.model.training) == (6, False)
    assert set(whole.figures) == {"loss", "accuracy"}
    assert weights_in(trained("again").weights) == weights_in(whole.weights)
    assert weights_in(trained("other", seed=2).weights) != weights_in(whole.weights)

    draw = StepBatches.__call__

    def dies(self: StepBatches, step: int, position: float) -> Batch:
        if step == 4:
            raise KeyboardInterrupt
        return draw(self, step, position)

    def eager(*of: object) -> object:
        return replace(fit_config_of(*of), checkpoint_every_s=0.0)

    with monkeypatch.context() as patched:
        patched.setattr(StepBatches, "__call__", dies)
        patched.setattr(train, "fit_config_of", eager)
        with pytest.raises(KeyboardInterrupt):
            trained("cut")
    assert not (tmp_path / "cut" / "classifier.safetensors").exists()
    cut = trained("cut")
    assert weights_in(cut.weights) == weights_in(whole.weights)
    with pytest.raises(WeightsInvalid, match="another fit"):
        trained("cut", seed=3)
    notes = checkpoint.load(cut.weights).notes
    assert notes["trained_on"] == {"folders": sorted({clip.fold for clip in chosen.train})}


def test_training_refuses_labels_and_leaks(
    small_set: tuple[list[Clip], ClipBank], tmp_path: Path
) -> None:
    clips, bank = small_set
    config = replace(SMALL, labels=("low", "mid"))
    with pytest.raises(DatasetInvalid, match="is labelled high"):
        train.train(clips, bank, config, QUICK, tmp_path / "out", seed=0)
    config = replace(SMALL, labels=labels_of(clips))
    with pytest.raises(LeakFound):
        train.train(clips, bank, config, QUICK, tmp_path / "out", seed=0, validation=clips[:1])
    assert not (tmp_path / "out").exists()


def test_a_softmax_takes_one_label_a_clip(
    small_set: tuple[list[Clip], ClipBank], tmp_path: Path
) -> None:
    clips, bank = small_set
    two = replace(clips[0], labels=(clips[0].label, clips[-1].label))
    config = replace(SMALL, labels=labels_of(clips), multi_label=False)
    with pytest.raises(DatasetInvalid, match="multi_label = false") as refused:
        train.train([*clips[1:], two], bank, config, QUICK, tmp_path / "out", seed=0)
    assert str(two.path) in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_patience_needs_clips_that_are_held_out(
    small_set: tuple[list[Clip], ClipBank], tmp_path: Path
) -> None:
    clips, bank = small_set
    config, patient = replace(SMALL, labels=labels_of(clips)), replace(QUICK, patience=3)
    with pytest.raises(RecipeInvalid, match="patience = 3 ends a training by clips"):
        train.train(clips, bank, config, patient, tmp_path / "out", seed=0)
    assert not (tmp_path / "out").exists()


# The command


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., None]:
    """The command on a small data set, with a small recipe."""
    data = hums(tmp_path / "set", ("low", "high"), 4)
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        '[model]\narchitecture = "stride_cnn"\n[model.network]\nchannels = [4, 4, 4, 4]\n'
        "[training]\nsteps = 2\nbatch_segments = 32\n"
    )

    def run(**options: Any) -> None:
        settings = {"data": data, "layout": "folders", "config": recipe, "device": "cpu"}
        paths = {"out": tmp_path / "out", "cache": tmp_path / "cache"}
        train.main(**settings | paths | options)

    return run


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"device": "gpu"}, "error: there is no device 'gpu': cpu, cuda, auto"),
        ({"device": "cuda"}, "error: there is no GPU that PyTorch can use"),
        ({"minutes": -1.0}, "error: minutes should be greater than 0, not -1"),
        ({"steps": 0}, "error: steps should be greater than or equal to 1, not 0"),
        ({"minutes": 1.0, "steps": 5}, "error: exactly one of epochs, steps and minutes must be"),
    ],
)
def test_what_cannot_be_is_told_in_one_sentence(
    options: dict[str, Any],
    told: str,
    command: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(typer.Exit) as ended:
        command(**options)
    assert ended.value.exit_code == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@contextmanager
def room_for(n_bytes: int) -> Iterator[None]:
    """Let no file grow beyond ``n_bytes``, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_command_and_leaves_no_half(
    command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, room_for(20_000):
        command()
    assert ended.value.exit_code == 1
    assert "error: File too large" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.part"))
    with pytest.raises(OSError, match="File too large"), room_for(1_000):
        save_state(tmp_path / "resume.pt", {"a": torch.zeros(1_000)})
    assert not list(tmp_path.glob("resume*"))


def test_clips_too_short_to_train_on_are_named(
    command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    click = tmp_path / "set" / "low" / "click.wav"
    soundfile.write(click, np.full(250, 0.1), 16_000)  # 500 samples at 32 kHz: one frame of 320
    command()
    told = capsys.readouterr().err
    assert f"too short to train on: {click}" in told
    assert "too short to train on: 1 of 9 clips, under 20 ms" in told
    (tmp_path / "set" / "click").mkdir()
    click.rename(tmp_path / "set" / "click" / "0.wav")
    with pytest.raises(typer.Exit):
        command(out=tmp_path / "other")
    assert "every clip of the class click is too short to train on" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_the_same_samples_in_another_format_are_a_leak(
    small_set: tuple[list[Clip], ClipBank], tmp_path: Path
) -> None:
    clips, _ = small_set
    waveform, rate_hz = soundfile.read(clips[0].path, dtype="int16")
    soundfile.write(tmp_path / "copy.flac", waveform, rate_hz)
    copy = replace(clips[0], path=tmp_path / "copy.flac", source_id="./copy.flac")
    bank = ClipBank.open([*clips, copy], tmp_path / "cache", RATE)
    config = replace(SMALL, labels=labels_of(clips))
    with pytest.raises(LeakFound, match="the same samples"):
        train.train(clips, bank, config, QUICK, tmp_path / "out", seed=0, validation=[copy])
    assert not (tmp_path / "out").exists()
    left = without_copies(Chosen(tuple(clips), (copy,), config.labels), bank)
    assert left.train == tuple(clips[1:])
