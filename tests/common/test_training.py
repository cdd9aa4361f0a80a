"""The training loop: it minimises, averages, resumes, journals and notices broken gradients."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from common.checkpoint import written_beside
from common.errors import WeightsInvalid
from common.training import (
    RESUME_FILE,
    Ema,
    FitConfig,
    FitResult,
    Journal,
    Validation,
    fit,
    make_optimizer,
    one_cycle,
    to_device,
)
from common.training_state import (
    Interrupted,
    deterministic,
    random_states,
    restore_random_states,
    seed_all,
)

CONFIG = FitConfig(steps=200, lr=0.05, weight_decay=0.0, ema_decay=0.9, journal_every=50)


def batches() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn(16, 2, generator=generator)


def losses(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    error = (model(x)[:, 0] - (3 * x[:, 0] - x[:, 1] + 2)).square().mean()
    return {"total": error, "rms": error.sqrt()}


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """Untrained models start from the same weights, whichever tests ran before."""
    torch.manual_seed(0)


def test_fit_minimises_and_journals(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=400, journal_every=100)
    result = fit(nn.Linear(2, 1), batches(), losses, config, tmp_path)
    weight, bias = result.ema_model.weight, result.ema_model.bias
    torch.testing.assert_close(weight, torch.tensor([[3.0, -1.0]]), atol=1e-3, rtol=0.0)
    torch.testing.assert_close(bias, torch.tensor([2.0]), atol=1e-3, rtol=0.0)
    assert result.steps == 400
    assert not result.ema_model.training
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [100, 200, 300, 400]
    assert lines == list(result.history)
    assert lines[-1]["total"] < lines[0]["total"]
    assert "rms" in lines[0]


class CutOffError(Exception):
    pass


def test_fit_resumes_where_it_was_cut_off(tmp_path: Path) -> None:
    def cut_off() -> Iterator[Tensor]:
        yield from itertools.islice(batches(), 120)
        raise CutOffError

    config = FitConfig(steps=200, lr=0.05, checkpoint_every_s=0.0, journal_every=50)
    with pytest.raises(CutOffError):
        fit(nn.Linear(2, 1), cut_off(), losses, config, tmp_path)
    # exactly the 80 steps that are left
    result = fit(nn.Linear(2, 1), itertools.islice(batches(), 80), losses, config, tmp_path)
    assert [line["step"] for line in result.history] == [50, 100, 150, 200]
    again = fit(nn.Linear(2, 1), iter(()), losses, config, tmp_path)
    torch.testing.assert_close(again.ema_model.weight, result.ema_model.weight)


# Resuming exactly

EXACT = FitConfig(steps=60, lr=0.01, journal_every=7, seed=3)


def noisy_network() -> nn.Module:
    """Dropout and a norm: what the next step depends on beside the weights."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))


def at_step(step: int, position: float) -> Tensor:
    """A batch that depends on the step, the position and both other global generators."""
    own = torch.from_numpy(np.random.default_rng((5, step)).normal(position, 1.0, (16, 2)))
    return own.float() * random.uniform(0.9, 1.1) + float(np.random.normal(0.0, 0.1))


def weights_of(result: FitResult[nn.Module]) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in result.ema_model.state_dict().values()]


def losses_without_clock(result: FitResult[nn.Module]) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in result.history]


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    runs = [
        fit(noisy_network(), at_step, losses, replace(EXACT, seed=seed), tmp_path / str(n))
        for n, seed in enumerate((3, 3, 4))
    ]
    assert weights_of(runs[0]) == weights_of(runs[1])
    assert weights_of(runs[0]) != weights_of(runs[2])


def test_an_interrupted_fit_ends_as_one_that_was_not(tmp_path: Path) -> None:
    config = replace(EXACT, steps=40, checkpoint_every_s=0.0)
    whole = fit(noisy_network(), at_step, losses, config, tmp_path / "whole")

    def dies_at(last: int) -> Callable[[int, float], Tensor]:
        def draw(step: int, position: float) -> Tensor:
            if step == last:
                raise CutOffError
            return at_step(step, position)

        return draw

    for last in (10, 31):
        with pytest.raises(CutOffError):
            fit(noisy_network(), dies_at(last), losses, config, tmp_path / "cut")
        seed_all(99)  # whatever other code draws in between must not matter
    cut = fit(noisy_network(), at_step, losses, config, tmp_path / "cut")
    assert weights_of(cut) == weights_of(whole)
    assert losses_without_clock(cut) == losses_without_clock(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_keeps_what_was_learnt(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = fit(noisy_network(), at_step, losses, EXACT, tmp_path / "whole")
    before = signal.getsignal(number)

    def draw(step: int, position: float) -> Tensor:
        if step == 20:
            os.kill(os.getpid(), number)
        return at_step(step, position)

    with pytest.raises(Interrupted) as stopped:
        fit(noisy_network(), draw, losses, EXACT, tmp_path / "cut")
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) == before
    told = capsys.readouterr().err
    assert f"stopped by {number.name} after step 21" in told
    assert "same command again" in told
    cut = fit(noisy_network(), at_step, losses, EXACT, tmp_path / "cut")
    assert weights_of(cut) == weights_of(whole)


def test_a_checkpoint_cut_off_in_writing_is_not_loaded(tmp_path: Path) -> None:
    whole = fit(noisy_network(), at_step, losses, EXACT, tmp_path)
    resume = tmp_path / RESUME_FILE
    content = resume.read_bytes()
    (tmp_path / (RESUME_FILE + ".part")).write_bytes(content[: len(content) // 2])
    again = fit(noisy_network(), at_step, losses, EXACT, tmp_path)
    assert weights_of(again) == weights_of(whole)
    resume.write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsInvalid, match=r"resume\.pt cannot be read; remove it"):
        fit(noisy_network(), at_step, losses, EXACT, tmp_path)


def test_what_fails_in_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_text("old")

    def fail() -> None:
        with written_beside(path) as beside:
            beside.write_text("half")
            raise CutOffError

    with pytest.raises(CutOffError):
        fail()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("kept", "old")]


def test_the_checkpoint_of_another_fit_is_refused(tmp_path: Path) -> None:
    fit(noisy_network(), at_step, losses, EXACT, tmp_path, identity="fold 1")
    with pytest.raises(WeightsInvalid, match=r"of another fit \(identity differ\)"):
        fit(noisy_network(), at_step, losses, EXACT, tmp_path, identity="fold 2")
    other = replace(EXACT, lr=0.5, seed=8)
    with pytest.raises(WeightsInvalid, match=r"\(lr, seed differ\)"):
        fit(noisy_network(), at_step, losses, other, tmp_path, identity="fold 1")
    longer = replace(EXACT, steps=80)
    result = fit(noisy_network(), at_step, losses, longer, tmp_path, identity="fold 1")
    assert result.steps == 80


def test_random_states_of_all_three_generators() -> None:
    states = random_states()

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.normal()), float(torch.randn(()))

    np.random.normal()  # leaves a second normal number behind, which is part of the state
    states = random_states()
    first = draw()
    restore_random_states(states)
    assert draw() == first


def test_determinism_lasts_as_long_as_the_block() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with deterministic():
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled() == before


# Validation and what one sees


def test_validation_ends_a_fit_and_the_best_is_kept(tmp_path: Path) -> None:
    figures = iter([3.0, 1.0, 2.0, 1.0, 5.0])
    seen: list[Tensor] = []

    def measure(model: nn.Linear) -> Mapping[str, float]:
        seen.append(model.weight.detach().clone())
        assert not model.training
        return {"loss": next(figures), "accuracy": 0.5}

    config = replace(CONFIG, steps=1000)
    validation = Validation(measure, every=10, patience=2)
    result = fit(nn.Linear(2, 1), batches(), losses, config, tmp_path, validation=validation)
    assert result.steps == 40  # best after 20; 30 and 40 were no better
    assert result.stopped_early
    torch.testing.assert_close(result.ema_model.weight, seen[1])
    lines = [line for line in result.history if "validation_loss" in line]
    assert [line["validation_loss"] for line in lines] == [3.0, 1.0, 2.0, 1.0]
    # it has ended for good, and the best is in the checkpoint
    again = fit(nn.Linear(2, 1), iter(()), losses, config, tmp_path, validation=validation)
    torch.testing.assert_close(again.ema_model.weight, seen[1])


def test_validation_without_patience_only_reports(tmp_path: Path) -> None:
    worse = itertools.count()
    validation = Validation(lambda model: {"loss": float(next(worse))}, every=60)
    result = fit(nn.Linear(2, 1), batches(), losses, CONFIG, tmp_path, validation=validation)
    assert (result.steps, result.stopped_early) == (200, False)
    steps = [line["step"] for line in result.history if "validation_loss" in line]
    assert steps == [60, 120, 180, 200]


def test_curves_are_written_and_go_on(tmp_path: Path) -> None:
    def stops(step: int, position: float) -> Tensor:
        if step == 33:
            raise CutOffError
        return at_step(step, position)

    validation = Validation(lambda model: {"accuracy": 0.25}, every=20)
    config = replace(EXACT, checkpoint_every_s=0.0)
    with pytest.raises(CutOffError):
        fit(noisy_network(), stops, losses, config, tmp_path, validation=validation)
    fit(noisy_network(), at_step, losses, config, tmp_path, validation=validation)
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = {"loss/total", "loss/rms", "optimizer/lr", "optimizer/gradient_norm"}
    assert set(curves.Tags()["scalars"]) == tags | {"speed/steps_per_s", "validation/accuracy"}
    journal = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    expected = [(line["step"], line["total"]) for line in journal if "total" in line]
    assert [step for step, _ in expected] == [7, 14, 21, 28, 35, 42, 49, 56]
    drawn = [(event.step, event.value) for event in curves.Scalars("loss/total")]
    assert drawn == [(step, pytest.approx(value)) for step, value in expected]
    assert [event.step for event in curves.Scalars("validation/accuracy")] == [20, 40, 60]


def test_bf16_rounds_the_forward_pass(tmp_path: Path) -> None:
    kinds = []

    def spy(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        y = model(x)
        kinds.append(y.dtype)
        return {"total": y.float().square().mean()}

    for bf16 in (True, False):
        config = replace(CONFIG, steps=1, bf16=bf16)
        fit(nn.Linear(2, 1), batches(), spy, config, tmp_path / str(bf16))
    assert kinds == [torch.bfloat16, torch.float32]


def test_minutes_end_the_schedule(tmp_path: Path) -> None:
    config = FitConfig(steps=10**9, lr=0.01, minutes=0.01)
    result = fit(nn.Linear(2, 1), batches(), losses, config, tmp_path)
    assert 0 < result.steps < 10**9
    assert 0.6 <= result.seconds < 5.0


def test_broken_gradients_are_noticed(tmp_path: Path) -> None:
    def broken(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        return {"total": model(x).mean() * float("nan")}

    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="step"):
        fit(model, batches(), broken, CONFIG, tmp_path)
    torch.testing.assert_close(model.weight.detach(), before)


def test_a_broken_batch_leaves_no_trace(tmp_path: Path) -> None:
    """The fit goes on as if the model had not seen it, running statistics included."""
    config = replace(EXACT, steps=20)

    def normed() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def with_inf(step: int, position: float) -> Tensor:
        x = at_step(step, position)
        if step == 7:
            x[3, 1] = float("inf")
        return x

    def unseen(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        if bool(x.isfinite().all()):
            return losses(model, x)
        total = sum(weight.sum() for weight in model.parameters()) * float("nan")
        return {"total": total, "rms": total}

    result = fit(normed(), with_inf, losses, config, tmp_path / "seen")
    wanted = fit(normed(), with_inf, unseen, config, tmp_path / "unseen")
    assert all(bool(t.isfinite().all()) for t in result.ema_model.state_dict().values())
    assert weights_of(result) == weights_of(wanted)
    assert int(result.ema_model[1].num_batches_tracked) == 19
    assert result.steps == 20


def test_one_cycle_rises_peaks_and_falls() -> None:
    values = [one_cycle(p / 100, 0.2, 0.001) for p in range(101)]
    assert values[0] == pytest.approx(0.04)
    assert values[20] == max(values) == pytest.approx(1.0)
    assert values[100] == pytest.approx(0.001)
    assert values[:21] == sorted(values[:21])
    assert values[20:] == sorted(values[20:], reverse=True)


def test_no_weight_decay_on_vectors() -> None:
    groups = make_optimizer(
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), 0.1, 0.5
    ).param_groups
    assert [(g["weight_decay"], len(g["params"])) for g in groups] == [(0.5, 1), (0.0, 3)]


def test_parts_learn_at_rates_of_their_own(tmp_path: Path) -> None:
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 1)})

    def scale(name: str) -> float:
        return 1.0 if name.startswith("head") else 0.1

    groups = make_optimizer(model, 0.5, 0.2, scale).param_groups
    assert {(g["lr"], g["weight_decay"]) for g in groups} == {
        (0.05, 0.2), (0.05, 0.0), (0.5, 0.2), (0.5, 0.0)
    }  # fmt: skip

    def through_both(model: nn.ModuleDict, x: Tensor) -> dict[str, Tensor]:
        return {"total": model["head"](model["body"](x)).square().mean()}

    before = {name: w.clone() for name, w in model.state_dict().items()}
    config = replace(CONFIG, steps=1, weight_decay=0.0)
    fit(model, batches(), through_both, config, tmp_path, lr_scale=scale)
    moved = {n: float((w - before[n]).abs().max()) for n, w in model.state_dict().items()}
    # the first step of Adam moves each weight by its learning rate; a cycle begins at 4 %
    assert moved["head.bias"] == pytest.approx(0.04 * CONFIG.lr, rel=1e-3)
    assert moved["body.weight"] == pytest.approx(0.004 * CONFIG.lr, rel=1e-3)


def test_ema_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    ema = Ema(model, decay=0.5)
    nn.init.constant_(model.weight, 2.0)
    ema.update(model, step=0)  # keeps 1/10
    assert float(ema.model.weight) == pytest.approx(1.9)
    ema.update(model, step=1000)  # keeps 0.5
    assert float(ema.model.weight) == pytest.approx(1.95)


def test_journal_averages(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl", [])
    journal.add({"total": 1.0})
    journal.add({"total": 3.0})
    assert journal.write(step=2) == {"step": 2, "total": 2.0}


def test_to_device_takes_nested_batches() -> None:
    batch = to_device({"x": torch.zeros(1), "name": "a", "deep": {"y": torch.ones(2)}}, "cpu")
    assert batch["name"] == "a"
    assert batch["deep"]["y"].shape == (2,)
