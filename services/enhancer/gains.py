"""Band gains as they act on a recording: smoothing, interpolation, and one STFT for the whole file.

NumPy only. The gains come from the 32 kHz analysis; they are interpolated in time and frequency to
an STFT at the native rate, so that the recording itself is never resampled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import fft

from common.mel import hz_to_mel, mel_centres_hz
from services.enhancer.config import (
    ANALYSIS_RATE_HZ,
    ATTACK_S,
    GAIN_HOP_S,
    N_BANDS,
    RELEASE_S,
    WINDOW_HOPS,
    one_pole,
)

Array = np.ndarray[Any, np.dtype[np.float32]]

MAX_FRAMES_AT_ONCE = 512


def band_centres_hz() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the centres of the 64 gain bands, hertz."""
    return mel_centres_hz(N_BANDS, 0.0, ANALYSIS_RATE_HZ / 2)


def band_weights(freqs_hz: np.ndarray[Any, Any]) -> Array:
    """Return (N, 64): rows that interpolate band values linearly in mel at N frequencies.

    Beyond the outermost centres the outermost band holds.
    """
    centres = hz_to_mel(band_centres_hz())
    wanted = np.clip(hz_to_mel(freqs_hz), centres[0], centres[-1])
    left = np.clip(np.searchsorted(centres, wanted, side="right") - 1, 0, N_BANDS - 2)
    share = (wanted - centres[left]) / (centres[left + 1] - centres[left])
    weights = np.zeros((len(wanted), N_BANDS), np.float32)
    rows = np.arange(len(wanted))
    weights[rows, left] = 1.0 - share
    weights[rows, left + 1] += share.astype(np.float32)
    return weights


class GainSmoother:
    """One-pole smoothing of gains over time: fast up (attack), slow down (release)."""

    def __init__(self, attack_s: float = ATTACK_S, release_s: float = RELEASE_S) -> None:
        self._attack, self._release = one_pole(attack_s), one_pole(release_s)
        self._state: Array | None = None

    def smooth(self, gains: Array) -> Array:
        """Return gains (64, T), smoothed; the state is kept from call to call."""
        smoothed = np.empty_like(gains)
        state = gains[:, 0] if self._state is None else self._state
        for t in range(gains.shape[1]):
            target = gains[:, t]
            keep = np.where(target > state, self._attack, self._release).astype(np.float32)
            state = target + keep * (state - target)
            smoothed[:, t] = state
        self._state = state
        return smoothed


class GainApplier:
    """Applies band gains to a recording of any rate and channel count, as a stream.

    Audio and gains are put in as they come; out comes what both allow. Square-root Hann windows of
    four hops, so that gains of one give the input back.
    """

    def __init__(self, sample_rate: int, channels: int) -> None:
        self.hop = max(1, round(GAIN_HOP_S * sample_rate))
        self.window_samples = WINDOW_HOPS * self.hop
        half = self.window_samples // 2
        phase = np.arange(self.window_samples) / self.window_samples
        window = np.sin(np.pi * phase)  # the root of the periodic Hann window
        self._window = window.astype(np.float32)
        freqs_hz = np.fft.rfftfreq(self.window_samples, 1.0 / sample_rate)
        self._weights = band_weights(freqs_hz)
        self._rate = sample_rate
        # the first window is centred one hop before the recording: it reaches into it by one hop
        self._audio = np.zeros((channels, half + self.hop), np.float32)
        self._tail = np.zeros((channels, self.window_samples - self.hop), np.float32)
        self._gains = np.zeros((N_BANDS, 0), np.float32)
        self._gains_start = 0  # number of the first gain frame held
        self._frame = -1  # number of the next STFT frame; frame 0 is centred on sample 0
        self._in = self._out = 0

    def push_audio(self, block: Array) -> None:
        """Take samples (C, n)."""
        self._audio = np.concatenate([self._audio, block], axis=1)
        self._in += block.shape[1]

    def push_gains(self, gains: Array) -> None:
        """Take gain frames (64, T), one every 10 ms, the first centred on the first sample."""
        self._gains = np.concatenate([self._gains, gains], axis=1)

    def pull(self) -> Array:
        """Return the samples (C, m) that are finished; m may be 0."""
        if self._gains.shape[1] == 0:
            return np.zeros((self._audio.shape[0], 0), np.float32)
        frames_by_audio = (self._audio.shape[1] - self.window_samples) // self.hop + 1
        last_gain_s = (self._gains_start + self._gains.shape[1] - 1) * GAIN_HOP_S
        frames_by_gain = int(last_gain_s * self._rate / self.hop + 1e-6) + 1 - self._frame
        return self._process(min(frames_by_audio, frames_by_gain))

    def flush(self) -> Array:
        """Return the rest, so that the output is as long as the input. The last gain holds."""
        missing = self._in - self._out
        if missing <= 0:
            return np.zeros((self._audio.shape[0], 0), np.float32)
        # the last window must be centred half a window after the end
        frames = -(-(self._in + self.window_samples // 2) // self.hop) + 1 - self._frame
        wanted = (frames - 1) * self.hop + self.window_samples
        padding = max(0, wanted - self._audio.shape[1])
        self._audio = np.pad(self._audio, ((0, 0), (0, padding)))
        return self._process(frames)[:, :missing]

    def _process(self, n_frames: int) -> Array:
        parts = []
        while n_frames > 0:
            n = min(n_frames, MAX_FRAMES_AT_ONCE)
            parts.append(self._process_some(n))
            n_frames -= n
        if not parts:
            return np.zeros((self._audio.shape[0], 0), np.float32)
        return np.concatenate(parts, axis=1)

    def _process_some(self, n: int) -> Array:
        gains = self._gains_at(n) @ self._weights.T  # (n, bins)
        finished = np.empty((self._audio.shape[0], n * self.hop), np.float32)
        for channel, samples in enumerate(self._audio):  # one by one: memory for many channels
            windows = np.lib.stride_tricks.sliding_window_view(samples, self.window_samples)
            frames = windows[: (n - 1) * self.hop + 1 : self.hop] * self._window
            spectrum = fft.rfft(frames, axis=1)
            spectrum *= gains
            frames = fft.irfft(spectrum, self.window_samples, axis=1) * self._window
            summed = np.zeros((n + WINDOW_HOPS - 1, self.hop), np.float32)
            summed[: WINDOW_HOPS - 1] = self._tail[channel].reshape(-1, self.hop)
            hops = frames.reshape(n, WINDOW_HOPS, self.hop)
            for i in range(WINDOW_HOPS):
                # squared windows of four hops add up to two
                summed[i : i + n] += 0.5 * hops[:, i]
            finished[channel] = summed[:n].ravel()
            self._tail[channel] = summed[n:].ravel()
        self._audio = self._audio[:, n * self.hop :].copy()
        self._frame += n
        return self._without_lead(finished)

    def _without_lead(self, finished: Array) -> Array:
        """Drop what lies before the first sample of the recording."""
        lead = self.window_samples // 2
        start = (self._frame * self.hop - finished.shape[1]) - lead
        kept = finished[:, max(0, -start) :]
        kept = kept[:, : max(0, self._in - self._out)]
        self._out += kept.shape[1]
        return kept

    def _gains_at(self, n: int) -> Array:
        """Return the gains (n, 64) at the next n STFT frames; forget those before them."""
        times_s = (self._frame + np.arange(n)) * (self.hop / self._rate)
        position = times_s / GAIN_HOP_S - self._gains_start
        position = np.clip(position, 0.0, self._gains.shape[1] - 1)
        left = np.floor(position).astype(np.int64)
        right = np.minimum(left + 1, self._gains.shape[1] - 1)
        share = (position - left).astype(np.float32)
        gains = self._gains[:, left] * (1.0 - share) + self._gains[:, right] * share
        done = int(left[-1])
        self._gains = self._gains[:, done:].copy()
        self._gains_start += done
        return np.ascontiguousarray(gains.T)
