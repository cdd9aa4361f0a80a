"""Training of both models: ``python -m services.enhancer.train --data DIR --out DIR``.

The denoiser and the generator are trained one after the other, each for half of the minutes. The
generator spends the first four fifths of its time on distances alone (its weights are published as
``generator_l1``); then the relativistic GAN enters (``generator_gan``). A run that was cut off goes
on where it stopped.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn
from tqdm import tqdm

from common import checkpoint
from common.datasets import Clip, ClipBank, exclude_leaks, load_clips, split_of
from common.losses import MultiResolutionSTFTLoss
from common.soundscapes import cast_of
from common.training import Ema, FitConfig, Journal, Losses, fit, make_optimizer, one_cycle
from services.enhancer.config import (
    ANALYSIS_HOP,
    ANALYSIS_N_FFT,
    ANALYSIS_RATE_HZ,
    CD_RATE_HZ,
    DenoiserConfig,
    DiscriminatorConfig,
    GeneratorConfig,
)
from services.enhancer.data import (
    NarrowBatch,
    NoisyBatch,
    log_mel,
    narrow_batches,
    noisy_batches,
    wide_clips,
)
from services.enhancer.discriminator import Discriminator
from services.enhancer.gains import band_weights
from services.enhancer.losses import (
    CompressedSpectrumLoss,
    FeatureMatchingLoss,
    NegativeSpectralSnr,
    RelativisticDiscriminatorLoss,
    RelativisticGeneratorLoss,
)
from services.enhancer.model import Denoiser, Generated, Generator, log_magnitude

BATCH_SIZE = 6
MAX_STEPS = 1_000_000  # minutes end the schedule
COMPRESSED_WEIGHT = 10.0
SNR_WEIGHT = 0.01
ADVERSARIAL_WEIGHT = 0.05
MATCHING_WEIGHT = 0.5
GAN_SHARE = 0.2
GAN_LR = 2e-4


class Part(StrEnum):
    """What to train."""

    ALL = "all"
    DENOISER = "denoiser"
    GENERATOR = "generator"


class DenoiserLosses(nn.Module):
    """A batch of mixtures to the denoiser's losses, through its gains on the 32 kHz spectrum."""

    def __init__(self) -> None:
        super().__init__()
        self.front_end = log_mel()
        self.compressed = CompressedSpectrumLoss()
        self.snr = NegativeSpectralSnr()
        freqs_hz = torch.fft.rfftfreq(ANALYSIS_N_FFT, 1.0 / ANALYSIS_RATE_HZ).numpy()
        self.weights = torch.from_numpy(band_weights(freqs_hz))
        self.window = torch.hann_window(ANALYSIS_N_FFT)

    def forward(self, model: Denoiser, batch: NoisyBatch) -> Losses:
        logits = model(self.front_end(batch.mixture), batch.mask)
        gains = torch.matmul(self.weights, torch.sigmoid(logits))  # (B, bins, T)
        # a common scale, so that the losses do not depend on the level
        scale = 0.1 / batch.mixture.square().mean(dim=1, keepdim=True).add(1e-10).sqrt()
        cleaned = gains * self._spectrum(batch.mixture * scale)
        target = self._spectrum(batch.foreground * scale)
        compressed = self.compressed(cleaned, target)
        snr = self.snr(cleaned, target)
        total = COMPRESSED_WEIGHT * compressed + SNR_WEIGHT * snr
        return {"total": total, "compressed": compressed, "snr_db": -snr}

    def _spectrum(self, waveform: Tensor) -> Tensor:
        return torch.stft(
            waveform,
            ANALYSIS_N_FFT,
            hop_length=ANALYSIS_HOP,
            window=self.window,
            pad_mode="constant",
            return_complex=True,
        ) / (ANALYSIS_N_FFT**0.5)


class GeneratorLosses(nn.Module):
    """A batch of narrowed clips to the distances between widened and true."""

    def __init__(self) -> None:
        super().__init__()
        self.multi_resolution = MultiResolutionSTFTLoss()

    def forward(self, model: Generator, batch: NarrowBatch) -> Losses:
        return self.of(model, batch, model(batch.upsampled, batch.rate_in, CD_RATE_HZ))

    def of(self, model: Generator, batch: NarrowBatch, made: Generated) -> Losses:
        """Return the losses of what was made from a batch."""
        top = slice(made.cutoff_bin, None)
        target = log_magnitude(model.spectrum(batch.target))
        l1 = F.l1_loss(made.log_magnitude[:, top], target[:, top])
        stft = self.multi_resolution(batch.upsampled + made.waveform, batch.target)
        return {"total": l1 + stft, "l1": l1, "stft": stft}


def train_denoiser(clips: list[Clip], cache: Path, out: Path, minutes: float) -> Path:
    """Train the denoiser and return its weights file."""
    torch.manual_seed(0)
    config = DenoiserConfig()
    bank = ClipBank.open(clips, cache, ANALYSIS_RATE_HZ)
    cast = cast_of([clip for clip in clips if split_of(clip) == "train"])
    losses = DenoiserLosses()
    result = fit(
        Denoiser(config).to(memory_format=torch.channels_last),
        noisy_batches(bank, cast, BATCH_SIZE, seed=time.time_ns()),
        losses,
        FitConfig(steps=MAX_STEPS, lr=3e-3, minutes=minutes, ema_decay=0.995),
        out / "denoiser",
    )
    path = out / "denoiser.safetensors"
    checkpoint.save(path, asdict(config), result.ema_model)
    return path


def train_generator(clips: list[Clip], cache: Path, out: Path, minutes: float) -> list[Path]:
    """Train the generator, first without and then with the GAN; return both weights files."""
    torch.manual_seed(0)
    config = GeneratorConfig()
    esc = [clip for clip in clips if clip.dataset == "esc10"]
    bank = ClipBank.open(esc, cache, CD_RATE_HZ)
    targets = wide_clips(bank, [clip for clip in esc if split_of(clip) == "train"])
    typer.echo(f"{len(targets)} training clips are wide enough to be targets")
    result = fit(
        Generator(config).to(memory_format=torch.channels_last),
        narrow_batches(bank, targets, BATCH_SIZE, seed=time.time_ns()),
        GeneratorLosses(),
        FitConfig(steps=MAX_STEPS, lr=2e-3, minutes=minutes * (1 - GAN_SHARE), ema_decay=0.995),
        out / "generator_l1",
    )
    l1_path = out / "generator_l1.safetensors"
    checkpoint.save(l1_path, asdict(config), result.ema_model)
    generator = copy.deepcopy(result.ema_model).requires_grad_(True)
    adversarial = fit_adversarially(
        generator,
        narrow_batches(bank, targets, BATCH_SIZE, seed=time.time_ns()),
        minutes * GAN_SHARE,
        out / "generator_gan",
    )
    gan_path = out / "generator_gan.safetensors"
    checkpoint.save(gan_path, asdict(config), adversarial)
    return [l1_path, gan_path]


def fit_adversarially(
    generator: Generator, batches: Iterator[NarrowBatch], minutes: float, folder: Path
) -> Generator:
    """Train ``generator`` against a new discriminator; return its moving average.

    The perceptual term is feature matching in the discriminator. Short enough not to be resumed.
    """
    torch.manual_seed(1)
    discriminator = Discriminator(DiscriminatorConfig()).train()
    generator.train()
    optimizers = [
        make_optimizer(generator, GAN_LR, 0.0),
        make_optimizer(discriminator, 2 * GAN_LR, 0.0),
    ]
    ema = Ema(generator, 0.99)
    journal = Journal(folder / "journal.jsonl", [])
    distances = GeneratorLosses()
    judge, fool = RelativisticDiscriminatorLoss(), RelativisticGeneratorLoss()
    matching = FeatureMatchingLoss()
    started_s, step = time.monotonic(), 0
    with tqdm(unit="step", mininterval=5.0) as bar:
        while (elapsed_s := time.monotonic() - started_s) < 60.0 * minutes:
            share = one_cycle(elapsed_s / (60.0 * minutes), 0.1, 0.05)
            optimizers[0].param_groups[0]["lr"] = GAN_LR * share
            optimizers[1].param_groups[0]["lr"] = 2 * GAN_LR * share
            batch = next(batches)
            made = generator(batch.upsampled, batch.rate_in, CD_RATE_HZ)
            top = slice(made.cutoff_bin, None)
            real = log_magnitude(generator.spectrum(batch.target))[:, top]
            # the waveform is analysed again: what is heard is judged, not what was asked for
            fake = log_magnitude(generator.spectrum(batch.upsampled + made.waveform))[:, top]

            judged = judge(discriminator(real).scores, discriminator(fake.detach()).scores)
            optimizers[1].zero_grad(set_to_none=True)
            torch.autograd.backward(judged)
            optimizers[1].step()

            of_real, of_fake = discriminator(real), discriminator(fake)
            parts = distances.of(generator, batch, made)
            fooled = fool(of_real.scores.detach(), of_fake.scores)
            matched = matching(of_real.features, of_fake.features)
            total = parts["total"] + ADVERSARIAL_WEIGHT * fooled + MATCHING_WEIGHT * matched
            optimizers[0].zero_grad(set_to_none=True)
            torch.autograd.backward(total)
            nn.utils.clip_grad_norm_(generator.parameters(), 5.0)
            optimizers[0].step()
            ema.update(generator, step)

            parts |= {"judge": judged, "fool": fooled, "matching": matched}
            journal.add({name: float(value.detach()) for name, value in parts.items()})
            step += 1
            bar.update()
            if step % 20 == 0:
                journal.write(step=step, seconds=elapsed_s)
    return ema.model


def main(
    data: Annotated[Path, typer.Option(help="Folder that holds the data sets.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, journals and weights.")],
    minutes: Annotated[float, typer.Option(help="Of training, all in all.")] = 40.0,
    part: Annotated[Part, typer.Option(help="Which model.")] = Part.ALL,
    quick: Annotated[bool, typer.Option(help="Two minutes, to see it run.")] = False,
    cache: Annotated[Path, typer.Option(help="Folder for decoded clips.")] = Path("runs/cache"),
    threads: Annotated[int, typer.Option(help="Processor threads.")] = 1,
) -> None:
    """Train the enhancer's models and write their weights to OUT."""
    torch.set_num_threads(threads)
    minutes = 2.0 if quick else minutes
    each = minutes / 2 if part is Part.ALL else minutes
    clips = exclude_leaks(load_clips(data))
    if part in (Part.ALL, Part.DENOISER):
        typer.echo(f"wrote {train_denoiser(clips, cache, out, each)}")
    if part in (Part.ALL, Part.GENERATOR):
        for path in train_generator(clips, cache, out, each):
            typer.echo(f"wrote {path}")


if __name__ == "__main__":
    typer.run(main)
