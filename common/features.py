"""The log-mel front end of every model. Differentiable, batched, on any device.

It leaves out augmentation, which belongs to the training code of each service.
"""

from __future__ import annotations

import warnings

import torch
import torchaudio
from torch import Tensor, nn

ANALYSIS_RATE_HZ = 32_000
"""The sample rate that models look at; gains and removal work on the recording's own rate."""

LOG_FLOOR = 1e-6
"""Added to the power before the logarithm: about 108 dB below a full-scale sine at n_fft 1024."""


def mel_filters(sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float) -> Tensor:
    """Return triangular filters (n_mels, n_fft // 2 + 1) that peak at 1, evenly spaced in mel.

    Raises:
        ValueError: if the spectrum is too coarse, so that a filter would see no bin at all.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # told below, as an error
        filters: Tensor = torchaudio.functional.melscale_fbanks(
            n_fft // 2 + 1, f_min, f_max, n_mels, sample_rate, norm=None, mel_scale="htk"
        ).T
    if not filters.any(dim=1).all():
        raise ValueError(f"{n_mels} mel bands are too fine for n_fft {n_fft} at {sample_rate} Hz")
    return filters.contiguous()


class LogMel(nn.Module):
    """Natural logarithm of mel power: ln(filters @ |STFT|^2 + 1e-6), Hann window, unscaled STFT.

    Frame t is centred on sample t * hop_length; outside the waveform there are zeros, so that any
    length from one sample up has a defined result. The module has buffers but no weights.
    """

    window: Tensor
    filters: Tensor

    def __init__(
        self,
        sample_rate: int,
        n_fft: int,
        hop_length: int,
        n_mels: int,
        f_min: float = 0.0,
        f_max: float | None = None,
    ) -> None:
        """``f_min`` and ``f_max`` (default: half the sample rate) bound the filters, in hertz.

        Raises:
            ValueError: if a filter would fall between two bins of the spectrum.
        """
        super().__init__()
        self.n_fft = n_fft
        self.hop_length = hop_length
        f_max = sample_rate / 2 if f_max is None else f_max
        filters = mel_filters(sample_rate, n_fft, n_mels, f_min, f_max)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Return (B, n_mels, samples // hop_length + 1) of waveforms (B, samples) in [-1, 1]."""
        return torch.log(self.power(waveform) + LOG_FLOOR)

    def power(self, waveform: Tensor) -> Tensor:
        """Return the same without floor and logarithm: mel power, at least 0."""
        spectrum = torch.stft(
            waveform,
            self.n_fft,
            hop_length=self.hop_length,
            window=self.window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )  # (B, n_fft // 2 + 1, T)
        power = spectrum.real.square() + spectrum.imag.square()
        return torch.matmul(self.filters, power)
