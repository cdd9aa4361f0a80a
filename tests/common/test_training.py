"""The training loop: it minimises, averages, resumes, journals and notices broken gradients."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from common.training import Ema, FitConfig, Journal, fit, make_optimizer, one_cycle, to_device

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
