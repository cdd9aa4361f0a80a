"""The artifact: explanation.zip, with one JSON document and the files it names.

The same input makes the same bytes: entries have no time of their own, pictures no author.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from common.audio import AudioWriter
from common.mel import mel_centres_hz
from services.classifier.config import Config
from services.classifier.explain.answers import Answer, Reason
from services.classifier.explain.methods import ABOUT
from services.classifier.explain.pictures import relevance_picture, stage_picture
from services.classifier.explain.question import FloatArray
from services.classifier.explain.regions import TOP_SHARE
from services.classifier.explain.stages import StageMaps

VERSION = 1
DOCUMENT = "explanation.json"
BEGINNING = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a ZIP entry can have."""
NO_FILE_NAME = re.compile(r"[^\w-]+")


class Bundle:
    """Writes explanation.zip, answer by answer. A context manager.

    Args:
        path: the file to write; its folder also takes audio while it is packed.
        config: has the scale of bands and frames.
        facts: what the document says about the whole.
    """

    def __init__(self, path: Path, config: Config, facts: dict[str, Any]) -> None:
        self._path, self._config = path, config
        self._document: dict[str, Any] = {"version": VERSION, **facts, "answers": []}
        self._zip = zipfile.ZipFile(path, "w")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            text = json.dumps(self._document, indent=2, ensure_ascii=False) + "\n"
            self._add(DOCUMENT, text.encode(), deflate=True)
        self._zip.close()

    def add(self, answer: Answer) -> None:
        """Pack one answer: maps, pictures and audio."""
        number = len(self._document["answers"]) + 1
        folder = f"{number}-{NO_FILE_NAME.sub('_', answer.label)}"
        extract = answer.extract
        self._document["answers"].append(
            {
                "label": answer.label,
                "onset_s": round(extract.start_s, 3),
                "offset_s": round(extract.stop_s, 3),
                "confidence": round(answer.confidence, 4),
                "logit": round(answer.logit, 4),
                "reasons": [self._reason(answer, reason, folder) for reason in answer.reasons],
                "feature_maps": self._stages(answer, folder) if answer.stages else None,
            }
        )

    def _reason(self, answer: Answer, reason: Reason, folder: str) -> dict[str, Any]:
        about, relevance = ABOUT[reason.method], reason.relevance
        stem = f"{folder}/{reason.method}"
        largest = float(np.abs(relevance.values).max())
        self._add_arrays(
            f"{stem}.npz",
            relevance=(relevance.values / (largest or 1.0)).astype(np.float16),
            scale=np.asarray(largest, np.float32),
            logmel=answer.logmel.astype(np.float16),
            **self._axes(answer),
        )
        self._add(f"{stem}.png", relevance_picture(answer, reason, self._config))
        audio_name = None
        if reason.chosen.any():
            audio_name = self._add_audio(stem, reason.audio, answer.extract.recorded_rate)
        return {
            "method": reason.method,
            "says": about.says,
            "evidence": about.evidence,
            "of_label": about.of_label,
            "sum": _rounded(relevance.total),
            "beyond_the_end": _rounded(relevance.beyond),
            "conservation_error": _rounded(relevance.conservation_error),
            "spread_evenly": _rounded(relevance.spread),
            "most_relevant": {
                "share_of_relevance": TOP_SHARE,
                "share_of_bins": round(float(reason.chosen.mean()), 4),
                "confidence_alone": round(reason.confidence_alone, 4),
                "confidence_without": round(reason.confidence_without, 4),
                "regions": [asdict(region) for region in reason.regions],
            },
            "files": {"map": f"{stem}.npz", "picture": f"{stem}.png", "audio": audio_name},
        }

    def _stages(self, answer: Answer, folder: str) -> dict[str, Any]:
        arrays: dict[str, Any] = {}
        pictures = {}
        for stage in answer.stages:
            arrays |= _stage_arrays(stage)
            pictures[stage.stage] = f"{folder}/feature_maps-{stage.stage}.png"
            self._add(pictures[stage.stage], stage_picture(answer, stage, self._config))
        self._add_arrays(f"{folder}/feature_maps.npz", **arrays)
        return {
            "says": ABOUT["feature_maps"].says,
            "files": {"maps": f"{folder}/feature_maps.npz", "pictures": pictures},
        }

    def _axes(self, answer: Answer) -> dict[str, np.ndarray[Any, Any]]:
        config = self._config
        hop_s = config.hop_length / config.sample_rate
        times_s = answer.extract.start_s + hop_s * np.arange(answer.logmel.shape[1])
        centres_hz = mel_centres_hz(config.n_mels, 0.0, config.sample_rate / 2)
        return {"times_s": times_s, "centres_hz": centres_hz}

    def _add_audio(self, stem: str, audio: FloatArray, sample_rate: int) -> str:
        with AudioWriter(self._path.parent, "most-relevant", sample_rate, channels=1) as writer:
            writer.write(audio[None])
        name = f"{stem}{writer.path.suffix}"
        self._add(name, writer.path.read_bytes())
        writer.path.unlink()
        return name

    def _add_arrays(self, name: str, **arrays: np.ndarray[Any, Any]) -> None:
        out = io.BytesIO()
        np.savez_compressed(out, allow_pickle=False, **arrays)
        self._add(name, out.getvalue())

    def _add(self, name: str, content: bytes, deflate: bool = False) -> None:
        entry = zipfile.ZipInfo(name, BEGINNING)
        entry.external_attr = 0o100644 << 16
        entry.compress_type = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
        self._zip.writestr(entry, content)


def _stage_arrays(stage: StageMaps) -> dict[str, np.ndarray[Any, Any]]:
    return {
        f"{stage.stage}.mean": stage.mean.astype(np.float16),
        f"{stage.stage}.channels": np.asarray(stage.channels, np.int32),
        f"{stage.stage}.maps": stage.maps.astype(np.float16),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
