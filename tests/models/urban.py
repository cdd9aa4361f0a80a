"""A tiny UrbanSound8K: hums of two classes in three folds, laid out as published."""

from __future__ import annotations

from pathlib import Path

import soundfile

from tests.models.hums import hum

CLASSES = {"dog_bark": 0, "siren": 2}
PER_FOLD = 3
"""Clips of each class in a fold, each from a recording of its own."""


def urban_sound(root: Path) -> Path:
    """Write the data set into ``root`` and return that."""
    (root / "metadata").mkdir(parents=True)
    rows = ["slice_file_name,fsID,fold,classID,class"]
    for fold in (1, 2, 3):
        (root / "audio" / f"fold{fold}").mkdir(parents=True)
        for name, k in CLASSES.items():
            for n in range(PER_FOLD):
                source = 1000 * fold + 100 * k + n
                file = f"{source}-{k}-0-0.wav"
                rows.append(f"{file},{source},{fold},{k},{name}")
                path = root / "audio" / f"fold{fold}" / file
                soundfile.write(path, hum(k, 0.4, source), 16_000)
    (root / "metadata" / "UrbanSound8K.csv").write_text("\n".join(rows) + "\n")
    return root
