"""Small data sets that a small network can learn: hums, of a height for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile


def hum(number: int, seconds: float, seed: int) -> np.ndarray:
    """A tone of its class: an octave apart, of a random phase, with some noise."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * 16_000)) / 16_000
    tone = np.sin(2 * np.pi * 250 * 2**number * time_s + rng.uniform(0, 6.28))
    return 0.3 * tone + 0.003 * rng.standard_normal(len(time_s))


def hums(folder: Path, labels: Sequence[str], n_clips: int, seconds: float = 0.8) -> Path:
    """Write a folder per class of hums; class number k hums k octaves above the first."""
    for k, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for n in range(n_clips):
            soundfile.write(folder / label / f"{n}.wav", hum(k, seconds, 100 * k + n), 16_000)
    return folder


def three_sets(root: Path) -> Path:
    """Write the three data sets, as published, with every split in each; return ``root``."""
    esc, urban, digits = (
        root / "ESC-50",
        root / "UrbanSound8K",
        root / "free-spoken-digit" / "audio",
    )
    for folder in (esc / "audio", esc / "meta", urban / "metadata", digits):
        folder.mkdir(parents=True)
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for n, label in enumerate(("dog", "rain", "rooster")):
            name = f"{fold}-{fold}{n}-A-{n}.wav"
            rows.append(f"{name},{fold},{n},{label},True,{fold}{n},A")
            soundfile.write(esc / "audio" / name, hum(n, 1.0, seed=fold), 16_000)
    (esc / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")
    rows = ["slice_file_name,fsID,fold,classID,class"]
    for fold in (1, 2, 3):
        (urban / "audio" / f"fold{fold}").mkdir(parents=True)
        name = f"7{fold}-8-0-0.wav"
        rows.append(f"{name},7{fold},{fold},8,siren")
        soundfile.write(urban / "audio" / f"fold{fold}" / name, hum(3, 1.0, seed=fold), 16_000)
    (urban / "metadata" / "UrbanSound8K.csv").write_text("\n".join(rows) + "\n")
    for n, speaker in enumerate(("george", "nicolas", "theo")):
        soundfile.write(digits / f"7_{speaker}_0.flac", hum(4, 0.3, seed=n), 16_000)
    return root
