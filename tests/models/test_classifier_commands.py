"""Commands that look at weights: what is wrong is told in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import typer

from services.classifier.evaluation import consistency
from services.classifier.explain import __main__ as explain
from services.classifier.explain import measure

MEASURES = (measure.main, consistency.main)


@pytest.fixture
def commands(tmp_path: Path) -> list[Callable[..., None]]:
    explained = partial(explain.main, tmp_path / "a.wav", tmp_path / "why")
    return [explained, *(partial(main, data=tmp_path) for main in MEASURES)]


def test_devices_that_are_not_there_are_named(
    commands: list[Callable[..., None]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for command in commands:
        for device, why in (("x", "no device 'x': cpu, cuda, auto"), ("cuda", "no GPU")):
            with pytest.raises(typer.Exit):
                command(device=device)
            told = capsys.readouterr().err
            assert told.startswith("error: ")
            assert why in told


@pytest.mark.parametrize("main", MEASURES)
def test_data_that_are_not_there_are_named(
    main: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit):
        main(data=tmp_path / "nowhere")
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "nowhere" in told
    assert told.count("\n") == 1
