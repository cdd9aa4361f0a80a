"""Train the segmenter: ``python -m services.segmenter.train --data DIR --out DIR``.

Trains on soundscapes of the train split alone. A run that was cut off goes on where it was; the
weights file is written at the end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from common import checkpoint
from common.datasets import ClipBank, exclude_leaks, load_clips, split_of
from common.soundscapes import cast_of
from common.training import FitConfig, fit
from services.segmenter.config import SegmenterConfig
from services.segmenter.data import CROP_FRAMES, FULL_LENGTH, BatchMaker, ExampleMaker
from services.segmenter.losses import SegmenterLoss
from services.segmenter.model import Segmenter

BATCH_SIZE = 16


def main(
    data: Annotated[Path, typer.Option(help="Folder of the data sets.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, journal and weights.")],
    minutes: Annotated[float, typer.Option(help="Wall-clock time to train.")] = 35.0,
    quick: Annotated[bool, typer.Option(help="Three minutes, to see it run.")] = False,
    cache: Annotated[Path, typer.Option(help="Folder for decoded clips.")] = Path("runs/cache"),
    start: Annotated[Path | None, typer.Option(help="Weights to go on from.")] = None,
    full_length: Annotated[bool, typer.Option(help="Whole soundscapes, to end with.")] = False,
    lr: Annotated[float, typer.Option(help="Learning rate at the peak.")] = 3e-3,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Train a segmenter and write ``segmenter.safetensors`` into the out folder."""
    torch.set_num_threads(threads)
    config = SegmenterConfig()
    clips = exclude_leaks(load_clips(data))
    bank = ClipBank.open(clips, cache)
    cast = cast_of([clip for clip in clips if split_of(clip) == "train"])
    torch.manual_seed(seed)
    model = Segmenter(config).to(memory_format=torch.channels_last)
    if start is not None:
        checkpoint.restore(model, checkpoint.load(start))
    maker = ExampleMaker(bank, cast, config, seed)
    crop_frames = FULL_LENGTH if full_length else CROP_FRAMES
    batches = BatchMaker(maker, config, BATCH_SIZE, seed=seed, crop_frames=crop_frames)
    fit_config = FitConfig(
        steps=1_000_000,  # time decides
        lr=lr,
        ema_decay=0.998,
        minutes=3.0 if quick else minutes,
        seed=seed,
    )
    result = fit(model, batches, SegmenterLoss(), fit_config, out, device)
    checkpoint.save(out / "segmenter.safetensors", config.to_json(), result.ema_model)
    typer.echo(f"{result.steps} steps in {result.seconds:.0f} s")


if __name__ == "__main__":
    typer.run(main)
