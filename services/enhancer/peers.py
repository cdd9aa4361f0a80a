"""What the enhancer is measured against, and the measures. Used by ``evaluate`` only.

Plain textbook methods written with SciPy, the ceiling that only an oracle reaches, and
``noisereduce`` where a user has installed it. Every method takes and returns waveforms (n,).
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
import soxr
from scipy import signal

from services.enhancer.config import ANALYSIS_RATE_HZ

Waveform = np.ndarray[Any, np.dtype[np.float32]]

N_FFT = 1024
OVERLAP = 768
TINY = 1e-12
LSD_N_FFT = 2048
LSD_FLOOR = 1e-8
"""Added to unscaled power. At this floor the soxr upsampler's LSD is that of the literature."""


# Measures


def si_sdr_db(estimate: Waveform, target: Waveform) -> float:
    """Return the scale-invariant signal-to-distortion ratio in dB; higher is better.

    Source: Le Roux et al. 2019, "SDR - half-baked or well done?", equation 5.
    """
    estimate = estimate.astype(np.float64) - estimate.mean()
    target = target.astype(np.float64) - target.mean()
    kept = target * (estimate @ target) / (target @ target + TINY)
    distortion = estimate - kept
    return float(10 * np.log10((kept @ kept + TINY) / (distortion @ distortion + TINY)))


def snr_db(estimate: Waveform, target: Waveform) -> float:
    """Return the signal-to-noise ratio in dB; higher is better."""
    noise = (target - estimate).astype(np.float64)
    wanted = target.astype(np.float64)
    return float(10 * np.log10((wanted @ wanted + TINY) / (noise @ noise + TINY)))


def log_spectral_distance(
    estimate: Waveform, target: Waveform, sample_rate: int, from_hz: float = 0.0
) -> float:
    """Return the log-spectral distance (log10 of power, averaged over frames); lower is better.

    The estimate is scaled to the target by least squares first. n_fft 2048, hop 512, Hann.
    Source: Gray and Markel 1976, "Distance measures for speech processing", as the root of the
    mean square over frequency.
    """
    gain = float(estimate @ target) / float(estimate @ estimate + TINY)
    e, t = (_power(x) for x in (estimate * np.float32(gain), target))
    first = int(np.ceil(from_hz * LSD_N_FFT / sample_rate))
    gap = np.log10(e[:, first:] + LSD_FLOOR) - np.log10(t[:, first:] + LSD_FLOOR)
    return float(np.sqrt((gap**2).mean(axis=1)).mean())


def _power(waveform: Waveform) -> np.ndarray[Any, np.dtype[np.float64]]:
    padded = np.pad(waveform, (0, max(0, LSD_N_FFT - len(waveform))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, LSD_N_FFT)[:: LSD_N_FFT // 4]
    return np.abs(np.fft.rfft(frames * np.hanning(LSD_N_FFT), axis=1)) ** 2


# Noise suppression at 32 kHz


def wiener(mixture: Waveform, foreground: Waveform) -> Waveform:
    """Decision-directed Wiener filter with a noise spectrum from the quietest fifth of frames.

    Source: Ephraim and Malah 1984, section V (the a-priori SNR estimate, smoothing 0.98).
    """
    spectrum = _stft(mixture)
    power = np.abs(spectrum) ** 2
    noise = _quiet_spectrum(power)
    gain = np.ones_like(power[:, 0])
    gains = np.empty_like(power)
    previous = power[:, 0]
    for t in range(power.shape[1]):
        instant = np.maximum(power[:, t] / noise - 1.0, 0.0)
        prior = 0.98 * gain**2 * previous / noise + 0.02 * instant
        gain = np.maximum(prior / (1.0 + prior), 0.1)
        gains[:, t] = gain
        previous = power[:, t]
    return _istft(gains * spectrum, len(mixture))


def spectral_gate(mixture: Waveform, foreground: Waveform) -> Waveform:
    """Gate bins below 1.5 standard deviations over the quiet frames' mean level, smoothed.

    Source: the method of Sainburg's noisereduce 1.x; -20 dB instead of silence.
    """
    spectrum = _stft(mixture)
    level_db = 20.0 * np.log10(np.abs(spectrum) + 1e-8)
    energy = level_db.mean(axis=0)
    quiet = level_db[:, energy <= np.quantile(energy, 0.2)]
    threshold = quiet.mean(axis=1) + 1.5 * quiet.std(axis=1)
    gate = (level_db > threshold[:, None]).astype(np.float32)
    kernel = np.outer(np.hanning(9), np.hanning(9))
    gate = signal.fftconvolve(gate, kernel / kernel.sum(), mode="same").clip(0.0, 1.0)
    return _istft((0.1 + 0.9 * gate) * spectrum, len(mixture))


def oracle_ratio_mask(mixture: Waveform, foreground: Waveform) -> Waveform:
    """The ceiling: each bin by the foreground's true share of the power."""
    spectrum, wanted = _stft(mixture), _stft(foreground)
    noise = np.abs(spectrum - wanted) ** 2
    power = np.abs(wanted) ** 2
    return _istft(power / (power + noise + TINY) * spectrum, len(mixture))


def has_noisereduce() -> bool:
    """Return whether the user has installed noisereduce."""
    return importlib.util.find_spec("noisereduce") is not None


def noisereduce(mixture: Waveform, foreground: Waveform) -> Waveform:
    """``noisereduce.reduce_noise`` with its defaults (non-stationary)."""
    module = importlib.import_module("noisereduce")
    return np.asarray(module.reduce_noise(y=mixture, sr=ANALYSIS_RATE_HZ), np.float32)


def noisereduce_stationary(mixture: Waveform, foreground: Waveform) -> Waveform:
    """The same with one noise spectrum for the whole file."""
    module = importlib.import_module("noisereduce")
    cleaned = module.reduce_noise(y=mixture, sr=ANALYSIS_RATE_HZ, stationary=True)
    return np.asarray(cleaned, np.float32)


def _quiet_spectrum(power: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    energy = power.sum(axis=0)
    quiet = power[:, energy <= np.quantile(energy, 0.2)]
    return quiet.mean(axis=1) + TINY


def _stft(waveform: Waveform) -> np.ndarray[Any, Any]:
    return signal.stft(waveform, ANALYSIS_RATE_HZ, nperseg=N_FFT, noverlap=OVERLAP)[2]


def _istft(spectrum: np.ndarray[Any, Any], n: int) -> Waveform:
    waveform = signal.istft(spectrum, ANALYSIS_RATE_HZ, nperseg=N_FFT, noverlap=OVERLAP)[1]
    return np.pad(waveform, (0, max(0, n - len(waveform))))[:n].astype(np.float32)


# Widening


def upsampled(narrow: Waveform, rate_in: int, rate_out: int, n: int) -> Waveform:
    """The plain upsampler, (n,): what every widening starts from."""
    waveform = soxr.resample(narrow, rate_in, rate_out, quality="HQ")
    return np.pad(waveform, (0, max(0, n - len(waveform))))[:n].astype(np.float32)


def spectral_band_replication(narrow: Waveform, rate_in: int, rate_out: int, n: int) -> Waveform:
    """Copies of the upper half of the band, along a straight line fitted to its level.

    Source: Dietz et al. 2002; here blind, since no envelope was sent along: the slope (dB per
    octave, at most flat) is that of the frame's own upper three quarters.
    """
    base = upsampled(narrow, rate_in, rate_out, n)
    spectrum = signal.stft(base, rate_out, nperseg=N_FFT, noverlap=N_FFT // 2)[2]
    cut = int(0.92 * rate_in / rate_out * N_FFT / 2)
    level_db = 20.0 * np.log10(np.abs(spectrum) + 1e-9)
    octaves = np.log2(np.maximum(np.arange(len(spectrum)), 1) / cut)
    fitted = slice(cut // 4, cut - 4)
    slope, offset = np.polyfit(octaves[fitted], level_db[fitted], 1)
    envelope_db = np.minimum(slope, 0.0) * octaves[:, None] + offset
    patch = (cut // 2) // 2 * 2
    top = np.zeros_like(spectrum)
    for start in range(cut, len(spectrum), patch):
        width = min(patch, len(spectrum) - start)
        source = slice(cut - 4 - patch, cut - 4 - patch + width)
        flat_db = np.minimum(slope, 0.0) * octaves[source, None] + offset
        gain_db = envelope_db[start : start + width] - flat_db
        top[start : start + width] = spectrum[source] * 10.0 ** (np.minimum(gain_db, 0.0) / 20.0)
    added = signal.istft(top, rate_out, nperseg=N_FFT, noverlap=N_FFT // 2)[1]
    added = np.pad(added, (0, max(0, n - len(added))))[:n]
    return (base + added).astype(np.float32)
