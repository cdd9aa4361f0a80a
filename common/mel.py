"""The mel scale. NumPy only, so that reading a mask needs no torch.

Source: O'Shaughnessy 1987, "Speech communication: human and machine", as the HTK Book 3.4 (section
5.4) has it; the other common scale (Slaney's) is linear below 1 kHz and not used here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_MEL_FACTOR = 2595.0
_MEL_CORNER_HZ = 700.0


def hz_to_mel(frequency_hz: npt.ArrayLike) -> FloatArray:
    """Return frequencies (any shape, hertz, at least 0) in mel."""
    ratio = np.asarray(frequency_hz, dtype=np.float64) / _MEL_CORNER_HZ
    return np.asarray(_MEL_FACTOR * np.log10(1.0 + ratio))


def mel_to_hz(mel: npt.ArrayLike) -> FloatArray:
    """Return mel values (any shape, at least 0) in hertz."""
    exponent = np.asarray(mel, dtype=np.float64) / _MEL_FACTOR
    return np.asarray(_MEL_CORNER_HZ * (10.0**exponent - 1.0))


def mel_edges_hz(n_mels: int, f_min: float, f_max: float) -> FloatArray:
    """Return the (n_mels + 2,) corners of the filters: filter i spans edges i to i + 2."""
    mels = np.linspace(hz_to_mel(f_min).item(), hz_to_mel(f_max).item(), n_mels + 2)
    return mel_to_hz(mels)


def mel_centres_hz(n_mels: int, f_min: float, f_max: float) -> FloatArray:
    """Return the (n_mels,) frequencies where the filters peak."""
    return mel_edges_hz(n_mels, f_min, f_max)[1:-1]
