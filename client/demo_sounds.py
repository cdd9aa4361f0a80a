"""Sounds made by rule, for the demo archive: sources, pulses and filters, no recordings.

Every function returns mono float64 of shape (samples,) with a peak of about 1, made at ``rate`` and
deterministic under ``rng``. Physics in brief: a horn is a periodic reed, a bark a glottal pulse
train through a vocal tract, rain many small impacts, wind noise whose colour follows its strength.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Waveform = NDArray[np.float64]


def seconds(rate: int, duration_s: float) -> Waveform:
    """Return the time axis in seconds."""
    return np.arange(round(rate * duration_s)) / rate


def normalised(x: Waveform) -> Waveform:
    """Scale to a peak of 1."""
    return x / max(float(np.abs(x).max(initial=0.0)), 1e-9)


def shaped_noise(
    rng: np.random.Generator,
    rate: int,
    duration_s: float,
    low_hz: float,
    high_hz: float,
    tilt: float,
) -> Waveform:
    """Return noise between two frequencies whose power falls with frequency to the ``tilt``."""
    n = round(rate * duration_s)
    frequencies = np.fft.rfftfreq(n, 1 / rate)
    spectrum = rng.normal(size=frequencies.size) + 1j * rng.normal(size=frequencies.size)
    f = np.maximum(frequencies, 1.0)
    edges = 1 / (1 + (low_hz / f) ** 4) / (1 + (f / high_hz) ** 4)
    return normalised(np.fft.irfft(spectrum * edges * f ** (-tilt / 2), n))


def resonate(x: Waveform, rate: int, formants: Sequence[tuple[float, float, float]]) -> Waveform:
    """Filter by resonances: (centre_hz, bandwidth_hz, gain) each."""
    spectrum = np.fft.rfft(x)
    f = np.fft.rfftfreq(x.size, 1 / rate)
    response = np.zeros_like(spectrum)
    for centre_hz, bandwidth_hz, gain in formants:
        response += gain / (1 + 1j * (f**2 - centre_hz**2) / np.maximum(f * bandwidth_hz, 1.0))
    return np.fft.irfft(spectrum * response, x.size)


def slow(rng: np.random.Generator, rate: int, duration_s: float, period_s: float) -> Waveform:
    """Return a smooth random curve in [0, 1] that changes within ``period_s``."""
    knots = rng.uniform(size=int(duration_s / period_s) + 3)
    t = seconds(rate, duration_s) / period_s
    step = t % 1
    ease = step * step * (3 - 2 * step)
    left = t.astype(int)
    curve: Waveform = knots[left] * (1 - ease) + knots[left + 1] * ease
    return curve


def fade(x: Waveform, rate: int, attack_s: float = 0.01, release_s: float = 0.03) -> Waveform:
    """Fade in and out."""
    t = seconds(rate, x.size / rate)[: x.size]
    envelope: Waveform = np.minimum(1, t / attack_s) * np.minimum(1, (t[-1] - t) / release_s)
    return x * envelope


def harmonics(pitch_hz: Waveform, rate: int, weights: list[float]) -> Waveform:
    """Return a harmonic tone along a pitch curve; partials above Nyquist are left out."""
    phase = 2 * np.pi * np.cumsum(pitch_hz) / rate
    tone = np.zeros_like(phase)
    for order, weight in enumerate(weights, 1):
        tone += weight * np.sin(order * phase) * (order * pitch_hz < 0.48 * rate)
    return tone


def siren(rng: np.random.Generator, rate: int, duration_s: float) -> Waveform:
    """A siren that wails between 650 and 1,450 Hz and drives past (Doppler, distance)."""
    t = seconds(rate, duration_s)
    wail = 0.5 - 0.5 * np.cos(2 * np.pi * t / rng.uniform(2.2, 3.4))
    distance_m = np.hypot(12.0, 14.0 * (t - duration_s / 2))
    speed = np.gradient(distance_m) * rate
    pitch = (650 + 800 * wail) / (1 + speed / 343)
    tone = np.tanh(1.6 * harmonics(pitch, rate, [1, 0.5, 0.35, 0.2, 0.12, 0.08, 0.05]))
    return fade(normalised(tone * 12 / distance_m), rate, 0.3, 0.3)


def car_horn(rng: np.random.Generator, rate: int, duration_s: float) -> Waveform:
    """Two reeds about a major third apart, rich in harmonics, with a short pitch settling."""
    t = seconds(rate, duration_s)
    low_hz = rng.uniform(390, 430)
    settle = 1 - 0.03 * np.exp(-t / 0.03)
    weights = [1, 0.9, 0.8, 0.7, 0.5, 0.42, 0.3, 0.25, 0.18, 0.12, 0.09, 0.06]
    tone = sum(harmonics(low_hz * ratio * settle, rate, weights) for ratio in (1.0, 1.26))
    return fade(normalised(np.tanh(0.6 * tone)), rate, 0.012, 0.05)


def bark(rng: np.random.Generator, rate: int) -> Waveform:
    """One bark: a rough pulse train that rises and drops, through a dog's vocal tract."""
    duration_s = rng.uniform(0.18, 0.28)
    t = seconds(rate, duration_s)
    pitch = rng.uniform(330, 420) * (1 + 0.5 * np.sin(np.pi * t / duration_s)) * (1 - 0.5 * t)
    jitter = 1 + 0.04 * slow(rng, rate, duration_s, 0.006)[: t.size]
    source = harmonics(pitch * jitter, rate, [1 / k**0.7 for k in range(1, 20)])
    breath = shaped_noise(rng, rate, duration_s, 500, 6000, 0.5)
    voice = resonate(
        normalised(source) + 0.5 * breath,
        rate,
        [(750, 260, 1.0), (1500, 380, 0.8), (2700, 600, 0.4), (4200, 900, 0.2)],
    )
    envelope = np.minimum(1, t / 0.015) * np.exp(-(((t - 0.06) / 0.09) ** 2) * (t > 0.06))
    return fade(normalised(voice * envelope), rate)


def clock_tick(rng: np.random.Generator, rate: int) -> Waveform:
    """One tick: an impact that rings in a few narrow modes of a wooden case."""
    t = seconds(rate, 0.06)
    click = np.exp(-t / 0.0006) * rng.normal(size=t.size)
    for mode_hz, decay_s in ((2350, 0.006), (3600, 0.004), (5200, 0.003), (900, 0.012)):
        if mode_hz < 0.45 * rate:
            click += 0.8 * np.exp(-t / decay_s) * np.sin(2 * np.pi * mode_hz * t)
    return fade(normalised(click), rate, 0.0005, 0.01)


def jackhammer(rng: np.random.Generator, rate: int, duration_s: float) -> Waveform:
    """Blows 22 times a second, each a burst of noise and a ringing chisel."""
    out = np.zeros(round(rate * duration_s))
    blow_s = 0.045
    t = seconds(rate, blow_s)
    at_s = 0.0
    while at_s < duration_s - blow_s:
        burst = rng.normal(size=t.size) * np.exp(-t / 0.008)
        ring = np.sin(2 * np.pi * 1730 * t) * np.exp(-t / 0.015) * 0.6
        start = round(at_s * rate)
        out[start : start + t.size] += (burst + ring) * rng.uniform(0.7, 1.0)
        at_s += 1 / 22 + rng.normal(0, 0.001)
    return fade(normalised(out), rate)


def rain(rng: np.random.Generator, rate: int, duration_s: float) -> Waveform:
    """Drops at random times and sizes over a hiss of those too many to tell apart."""
    n = round(rate * duration_s)
    drops = rng.exponential(size=n) * (rng.uniform(size=n) < 220 / rate)
    t = seconds(rate, 0.008)
    drop = np.sin(2 * np.pi * min(3200.0, 0.4 * rate) * t) * np.exp(-t / 0.0012)
    patter = np.convolve(drops, drop)[:n]
    return normalised(
        0.5 * normalised(patter) + shaped_noise(rng, rate, duration_s, 900, 9000, 0.6)
    )


def wind(rng: np.random.Generator, rate: int, duration_s: float) -> Waveform:
    """Gusts: the stronger, the brighter."""
    gust = slow(rng, rate, duration_s, 1.5)
    calm = shaped_noise(rng, rate, duration_s, 30, 250, 1.5)
    strong = shaped_noise(rng, rate, duration_s, 60, 900, 1.2)
    return normalised((0.4 + gust) * calm + gust**2 * strong)


def engine(rng: np.random.Generator, rate: int, duration_s: float) -> Waveform:
    """An engine at idle: uneven firing near 27 Hz through an exhaust, with a rattle."""
    revs = 27 * (1 + 0.03 * slow(rng, rate, duration_s, 0.8))
    firing = 0.5 + 0.5 * np.sin(2 * np.pi * np.cumsum(revs) / rate)
    uneven = 0.7 + 0.6 * slow(rng, rate, duration_s, 0.05)
    pulses = harmonics(revs, rate, [1 / k**0.8 for k in range(1, 60)]) * uneven
    rattle = shaped_noise(rng, rate, duration_s, 300, 9000, 1.2) * firing**4 * uneven
    exhaust = [(90, 60, 1.0), (210, 120, 0.6), (480, 300, 0.3), (1400, 900, 0.1)]
    return normalised(normalised(resonate(normalised(pulses), rate, exhaust)) + 0.25 * rattle)


def in_space(rng: np.random.Generator, rate: int, x: Waveform, decay_s: float) -> Waveform:
    """Add the echoes of a place: decaying noise, quieter and duller than the direct sound."""
    tail = shaped_noise(rng, rate, decay_s, 100, 5000, 0.8)
    tail *= np.exp(-6.9 * seconds(rate, decay_s)[: tail.size] / decay_s)
    tail *= 0.35 / np.sqrt(np.sum(tail**2))
    n = x.size + tail.size
    echoes = np.fft.irfft(np.fft.rfft(x, n) * np.fft.rfft(tail, n), n)
    echoes[: x.size] += x
    return normalised(echoes)
