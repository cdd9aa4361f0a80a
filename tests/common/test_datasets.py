"""Layouts, splits and the clip bank, on small generated data sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from common.datasets import Clip, ClipBank, clips_of, exclude_leaks, load_clips, split_of
from common.errors import DatasetMissing

RATE = 8_000


def write(path: Path, waveform: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform, RATE)


def tone(seconds: float) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """ESC: one clip a fold; UrbanSound8K: folds 1 and 3; digits: three speakers."""
    root = tmp_path / "data"
    esc = root / "ESC-50"
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        rows.append(f"{fold}-{fold}00-A-0.wav,{fold},0,dog,True,{fold}00,A")
        write(esc / "audio" / f"{fold}-{fold}00-A-0.wav", tone(0.5))
    rows.append("1-9-A-1.wav,1,1,vacuum_cleaner,False,9,A")
    rows.append("1-8-A-42.wav,1,42,siren,False,8,A")
    (esc / "meta").mkdir()
    (esc / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")
    urban = root / "UrbanSound8K"
    rows = ["slice_file_name,fsID,fold,classID,class"]
    for fold, source in ((1, "500"), (1, "77"), (3, "200")):
        rows.append(f"{source}-3-0-0.wav,{source},{fold},3,dog_bark")
        padded = np.concatenate([tone(0.25), np.zeros(RATE)])
        write(urban / "audio" / f"fold{fold}" / f"{source}-3-0-0.wav", padded)
    (urban / "metadata").mkdir()
    (urban / "metadata" / "UrbanSound8K.csv").write_text("\n".join(rows) + "\n")
    for speaker in ("george", "nicolas", "theo"):
        write(root / "free-spoken-digit" / "audio" / f"7_{speaker}_0.flac", tone(0.3))
    return root


def test_layouts_are_read_and_classes_renamed(data: Path) -> None:
    clips = load_clips(data)
    assert [clip.index for clip in clips] == list(range(11))
    assert {clip.label for clip in clips if clip.dataset == "us8k"} == {"dog"}
    assert {clip.label for clip in clips if clip.dataset == "digits"} == {"speech"}
    assert sum(clip.dataset == "esc10" for clip in clips) == 5  # of ESC-50, what is ESC-10


def test_splits(data: Path) -> None:
    clips = load_clips(data)
    esc = {clip.fold: split_of(clip) for clip in clips if clip.dataset == "esc10"}
    assert esc == {1: "train", 2: "train", 3: "train", 4: "validation", 5: "test"}
    digits = {clip.source_id: split_of(clip) for clip in clips if clip.dataset == "digits"}
    assert digits == {"george": "train", "nicolas": "validation", "theo": "test"}
    assert all(
        split_of(clip) == "test" for clip in clips if (clip.dataset, clip.fold) == ("us8k", 3)
    )


def test_a_tenth_of_urban_sources_is_for_validation() -> None:
    clips = [Clip(Path(f"{n}"), "dog", "us8k", 1, f"{n}", n) for n in range(2000)]
    share = np.mean([split_of(clip) == "validation" for clip in clips])
    assert share == pytest.approx(0.1, abs=0.02)


def test_leaks_are_dropped(data: Path) -> None:
    kept = exclude_leaks(load_clips(data))
    names = {clip.path.name for clip in kept}
    # recording 500 is in ESC fold 5 (test), 200 in UrbanSound8K fold 3 (test)
    assert "500-3-0-0.wav" not in names
    assert "2-200-A-0.wav" not in names
    assert {"5-500-A-0.wav", "200-3-0-0.wav", "77-3-0-0.wav"} <= names
    assert all(split_of(clip) == "test" for clip in clips_of(data, "test"))


def _drop_table(data: Path) -> None:
    (data / "ESC-50" / "meta" / "esc50.csv").unlink()


def _drop_clip(data: Path) -> None:
    (data / "ESC-50" / "audio" / "1-100-A-0.wav").unlink()


def _drop_set(data: Path) -> None:
    (data / "free-spoken-digit").rename(data / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "names"),
    [(_drop_table, "esc50.csv"), (_drop_clip, "1-100-A-0.wav"), (_drop_set, "free-spoken-digit")],
)
def test_what_is_missing_is_named(data: Path, damage: Callable[[Path], None], names: str) -> None:
    damage(data)
    with pytest.raises(DatasetMissing, match=names):
        load_clips(data)


def test_bank_trims_padding_and_keeps_waveforms(data: Path, tmp_path: Path) -> None:
    clips = load_clips(data)
    bank = ClipBank.open(clips, tmp_path / "cache", sample_rate=RATE)
    by_set = {clip.dataset: bank.waveform(clip) for clip in clips}
    assert len(by_set["us8k"]) == pytest.approx(0.25 * RATE, abs=2)
    assert by_set["esc10"].dtype == np.float32
    np.testing.assert_allclose(by_set["esc10"], tone(0.5), atol=1e-4)
    assert bank.n_samples(clips[0]) == len(bank.waveform(clips[0]))


def test_bank_is_built_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips, cache = load_clips(data), tmp_path / "cache"
    ClipBank.open(clips, cache, sample_rate=RATE)
    monkeypatch.setattr("common.datasets.bank.read_clip", None)  # decoding again would fail
    part = ClipBank.open(clips[3:5], cache, sample_rate=RATE)
    np.testing.assert_allclose(part.waveform(clips[3]), tone(0.5), atol=1e-4)
    moved = replace(clips[0], index=5)
    assert len(ClipBank.open([moved], cache, sample_rate=RATE).waveform(moved)) > 0
    with pytest.raises(ValueError, match="at least one"):
        ClipBank.open([], cache)
