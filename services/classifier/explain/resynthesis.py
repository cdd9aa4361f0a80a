"""The sound of some bins alone: the spectrum at the recording's rate, masked, phase kept."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from common.masks import interpolate_bands
from common.mel import mel_centres_hz
from services.classifier.config import Config
from services.classifier.explain.question import FloatArray

WINDOW_S = 0.032
"""Length of the transform, that of the analysis; its frames overlap by three quarters."""
MIN_FFT = 32


def resynthesised(
    samples: FloatArray, sample_rate: int, chosen: npt.NDArray[np.bool_], config: Config
) -> FloatArray:
    """Return (n,) that holds the chosen bins of ``samples`` (n,) and nothing else.

    Args:
        samples: a window at the recording's rate.
        sample_rate: that rate, hertz.
        chosen: (F, T) on the analysis grid; its edges become soft by linear interpolation. What
            lies above the analysis, which the classifier cannot hear, is left out.
        config: has the scale of bands and frames.
    """
    n_fft = max(MIN_FFT, 2 * round(WINDOW_S * sample_rate / 2))
    hop = n_fft // 4
    window = torch.hann_window(n_fft)
    waveform = torch.from_numpy(samples.astype(np.float32))
    spectrum = torch.stft(
        waveform, n_fft, hop, window=window, pad_mode="constant", return_complex=True
    )  # (n_fft // 2 + 1, frames)
    mask = _on_spectrum(chosen, sample_rate, n_fft, hop, spectrum.shape[1], config)
    kept = torch.istft(
        spectrum * torch.from_numpy(mask), n_fft, hop, window=window, length=len(samples)
    )
    return np.asarray(kept.numpy(), np.float32)


def _on_spectrum(
    chosen: npt.NDArray[np.bool_],
    sample_rate: int,
    n_fft: int,
    hop: int,
    n_frames: int,
    config: Config,
) -> FloatArray:
    """Return the choice (F, T) as gains in [0, 1] on the bins of a transform."""
    T = chosen.shape[1]
    position = np.arange(n_frames) * (hop / sample_rate) * (config.sample_rate / config.hop_length)
    left = np.minimum(position.astype(np.int64), T - 1)
    right = np.minimum(left + 1, T - 1)
    share = np.clip(position - left, 0.0, 1.0).astype(np.float32)
    gains = chosen.astype(np.float32)
    in_time = gains[:, left] * (1.0 - share) + gains[:, right] * share  # (F, frames)
    freqs_hz = np.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    heard_hz = config.sample_rate / 2
    mask = interpolate_bands(in_time, mel_centres_hz(config.n_mels, 0.0, heard_hz), freqs_hz)
    mask[freqs_hz > heard_hz] = 0.0
    return mask
