"""Explain one recording without a job: maps, pictures and audio into a folder."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Annotated, get_args

import torch
import typer

from common.params import ClassifyParams, ExplainMethod, parse_params
from common.stage_io import StageInput
from services.classifier.admission import device_named
from services.classifier.config import Config
from services.classifier.explain.methods import possible
from services.classifier.explain.stage import explain
from services.classifier.infer import load
from services.classifier.listening import listen
from services.classifier.selection import plain_errors


def main(
    audio: Annotated[Path, typer.Argument(help="the recording", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="folder for what is found; made if need be")],
    label: Annotated[
        list[str] | None, typer.Option(help="what to explain; by default what is heard best")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(get_args(ExplainMethod))}; by default all that fit"),
    ] = None,
    windows: Annotated[int, typer.Option(help="windows of 5.12 s per label, at most")] = 1,
    weights: Annotated[Path | None, typer.Option(help="by default those that are shipped")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads")] = 1,
) -> None:
    """Write why the classifier hears what it hears in a recording."""
    torch.set_num_threads(threads)
    with plain_errors():
        loaded = load(device_named(device), weights)
        params = _params(loaded.config, label or [], method or [], windows)
        with tempfile.TemporaryDirectory() as scratch:
            item = StageInput(audio.name, audio, params, {}, Path(scratch))
            found = explain(loaded, item, params, listen(loaded, item, None))
            out.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(found.path) as archive:
                archive.extractall(out)
                names = archive.namelist()
    for name in names:
        typer.echo(out / name)


def _params(config: Config, labels: list[str], methods: list[str], windows: int) -> ClassifyParams:
    wanted = {
        "explain": methods or possible(config),
        "explain_labels": labels,
        "explain_windows": windows,
    }
    return parse_params({"classify": wanted}).classify


if __name__ == "__main__":
    typer.run(main)
