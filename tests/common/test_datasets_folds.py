"""Folds, and the guards against testing on what was learnt from."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile

from common.datasets import (
    Clip,
    ClipBank,
    check_no_leaks,
    drop_leaks,
    find_leaks,
    folds_of,
    joined,
    labels_of,
    load_layout,
    renamed,
    select_folds,
    split_of,
)
from common.datasets.leaks import duplicates_of
from common.errors import ClassMissing, DatasetMissing, FoldMissing, LeakFound
from tests.common.dataset_folders import RATE, esc50, fsd50k, us8k, write_wav


def clip(number: int, label: str, fold: int, *more: str) -> Clip:
    labels = (label, *more)
    return Clip(Path(f"{number}.wav"), label, "esc50", fold, str(number), number, labels)


def test_the_folds_asked_for_are_the_test_and_all_others_training() -> None:
    clips = [
        clip(n, label, fold)
        for n, (label, fold) in enumerate(
            (label, fold) for fold in (1, 2, 3) for label in ("dog", "rain")
        )
    ]
    parts = select_folds(clips, [2])
    assert parts.test == tuple(clips[2:4])
    assert parts.train == (*clips[:2], *clips[4:])
    assert folds_of(clips) == (1, 2, 3)
    assert select_folds(clips, [3, 1, 3]).train == tuple(clips[2:4])


def test_folds_and_classes_that_are_missing_are_named() -> None:
    clips = [clip(0, "dog", 1), clip(1, "rain", 1), clip(2, "dog", 2), clip(3, "dog", 3, "rain")]
    with pytest.raises(FoldMissing, match=r"there is no fold 4; there are 1, 2, 3"):
        select_folds(clips, [1, 4])
    with pytest.raises(FoldMissing, match=r"all for the test"):
        select_folds(clips, [1, 2, 3])
    with pytest.raises(FoldMissing, match=r"no fold was asked for"):
        select_folds(clips, [])
    with pytest.raises(ClassMissing, match=r"rain has no clip in fold 2; it is in 1, 3") as error:
        select_folds(clips, [2])
    assert (error.value.label, error.value.fold) == ("rain", 2)
    with pytest.raises(ClassMissing, match=r"rain has no clip to train on: all 2") as error:
        select_folds(clips, [1, 3])
    assert (error.value.label, error.value.fold) == ("rain", None)
    assert len(select_folds(clips, [3]).train) == 3  # its second label counts


def test_labels_of_a_clip_agree() -> None:
    one = clip(1, "dog", 1, "bark")
    assert labels_of([one, clip(2, "cat", 1)]) == ("bark", "cat", "dog")
    with pytest.raises(ValueError, match=r"is not 'cat'"):
        replace(one, label="cat")
    (other,) = renamed([one], {"bark": "dog"})
    assert other.labels == ("dog",)
    assert [c.index for c in joined([one], [one, other])] == [0, 1, 2]
    assert renamed([clip(3, "dog_bark", 1)])[0].label == "dog"


def test_recordings_shared_by_two_sets(tmp_path: Path) -> None:
    esc = load_layout(esc50(tmp_path / "esc"), "esc50")
    urban = load_layout(us8k(tmp_path / "us8k"), "us8k")
    (leak,) = find_leaks(urban, esc)
    assert (leak.train.path.name, leak.test.path.name) == (
        "100032-3-0-0.wav",
        "1-100032-A-0.wav",
    )
    assert leak.reason == "the same Freesound id 100032"
    with pytest.raises(LeakFound, match=r"1 of 5 training clips .*id 100032") as error:
        check_no_leaks(urban, esc)
    assert error.value.count == 1
    left = drop_leaks(urban, esc)
    assert left.kept == tuple(urban[1:])
    assert left.dropped == (leak,)
    check_no_leaks(left.kept, esc)
    parts = select_folds(urban, [10])
    check_no_leaks(parts.train, parts.test)


def test_many_leaks_are_counted_and_a_few_named(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav")
    clips = [
        Clip(tmp_path / "a.wav", "1", "digits", fold, "theo", n)
        for n, fold in enumerate([1] * 9 + [2])
    ]
    with pytest.raises(LeakFound, match=r"^9 of 9 .*the same speaker theo") as error:
        check_no_leaks(clips[:9], clips[9:])
    assert str(error.value).count("speaker theo") == 5


def test_speakers_are_no_recordings(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 300.0)
    write_wav(tmp_path / "b.wav", 400.0)
    digit = Clip(tmp_path / "a.wav", "7", "digits", 1, "42", 0)
    sound = Clip(tmp_path / "b.wav", "dog", "us8k", 1, "42", 0)
    own = Clip(tmp_path / "b.wav", "dog", "csv", 1, "42", 0)
    check_no_leaks([digit], [sound])
    check_no_leaks([digit], [own])
    named = replace(own, path=tmp_path / "a.wav", source_id="freesound:42")
    with pytest.raises(LeakFound, match=r"Freesound id 42"):
        check_no_leaks([named], [sound])


def test_the_same_bytes_under_another_name_and_fold(tmp_path: Path) -> None:
    root = esc50(tmp_path)
    audio = root / "audio"
    shutil.copy(audio / "1-17367-A-10.wav", audio / "2-82367-A-10.wav")
    clips = load_layout(root, "esc50")
    parts = select_folds(clips, [2])
    (leak,) = find_leaks(parts.train, parts.test)
    assert leak.reason == "the same bytes"
    assert {leak.train.path.name, leak.test.path.name} == {"1-17367-A-10.wav", "2-82367-A-10.wav"}
    assert [[c.path.name for c in group] for group in duplicates_of(clips)] == [
        ["1-17367-A-10.wav", "2-82367-A-10.wav"]
    ]
    write_wav(audio / "2-82367-A-10.wav", 1234.0)  # the same length, other bytes
    assert find_leaks(parts.train, parts.test) == []


def test_the_same_samples_in_another_format(tmp_path: Path) -> None:
    write_wav(tmp_path / "set" / "fold1" / "dog" / "a.wav")
    write_wav(tmp_path / "set" / "fold1" / "dog" / "b.wav", 333.0)
    samples, _ = soundfile.read(tmp_path / "set" / "fold1" / "dog" / "a.wav")
    (tmp_path / "set" / "fold2" / "dog").mkdir(parents=True)
    soundfile.write(tmp_path / "set" / "fold2" / "dog" / "c.flac", samples, RATE)
    clips = load_layout(tmp_path / "set", "folders")
    parts = select_folds(clips, [2])
    check_no_leaks(parts.train, parts.test)  # bytes alone do not tell
    bank = ClipBank.open(clips, tmp_path / "cache", RATE)
    with pytest.raises(LeakFound, match=r"1 of 2 .*a.wav and .*c.flac: the same samples"):
        check_no_leaks(parts.train, parts.test, bank=bank)


def test_own_files_of_two_folders_are_no_leak(tmp_path: Path) -> None:
    for name, hz in (("a/dog/1.wav", 300.0), ("b/dog/1.wav", 400.0)):
        write_wav(tmp_path / name, hz)
    here, there = (load_layout(tmp_path / name, "folders") for name in "ab")
    assert here[0].source_id == there[0].source_id
    check_no_leaks(here, there)
    with pytest.raises(LeakFound, match=r"the same file"):
        check_no_leaks(here, here)


def test_uploaders_on_request(tmp_path: Path) -> None:
    clips = load_layout(fsd50k(tmp_path), "fsd50k")
    train, validation = clips[:2], clips[2:3]
    check_no_leaks(train, validation)
    with pytest.raises(LeakFound, match=r"1 of 2 .*the same uploader casual"):
        check_no_leaks(train, validation, uploaders=True)
    check_no_leaks(clips[:3], clips[3:], uploaders=True)


def test_a_file_that_is_gone_is_no_pass(tmp_path: Path) -> None:
    clips = load_layout(esc50(tmp_path), "esc50")
    clips[3].path.unlink()
    with pytest.raises(DatasetMissing, match=r"1 of 6 clips are missing, the first is .*2-102567"):
        check_no_leaks(clips[:3], clips[3:])


def test_layouts_have_no_split_of_the_shipped_models() -> None:
    with pytest.raises(ValueError, match=r"esc50 has folds, but no split"):
        split_of(clip(1, "dog", 1))
