"""What each published layout gives, and what is said where it is not kept to."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from common.datasets import Clip, folds_of, labels_of, load_layout
from common.datasets.own_layouts import hashed_fold
from common.errors import DatasetError, DatasetInvalid, DatasetMissing
from tests.common.dataset_folders import esc50, fsd50k, us8k, write_table, write_wav


def told(clips: list[Clip]) -> list[tuple[str, tuple[str, ...], int, str]]:
    return [(clip.path.name, clip.labels, clip.fold, clip.source_id) for clip in clips]


def test_esc50_keeps_every_class(tmp_path: Path) -> None:
    clips = load_layout(esc50(tmp_path), "esc50")
    assert told(clips)[0] == ("1-100032-A-0.wav", ("dog",), 1, "100032")
    assert labels_of(clips) == ("dog", "rain", "vacuum_cleaner")
    assert (folds_of(clips), [clip.index for clip in clips]) == ((1, 2), [0, 1, 2, 3, 4, 5])
    assert {clip.dataset for clip in clips} == {"esc50"}


def test_esc10_is_what_its_column_marks(tmp_path: Path) -> None:
    root = esc50(tmp_path)
    for path in root.glob("audio/*-36.wav"):
        path.unlink()  # a folder that holds ESC-10 only
    clips = load_layout(root, "esc10")
    assert labels_of(clips) == ("dog", "rain")
    assert len(clips) == 4
    with pytest.raises(DatasetMissing, match=r"2 of 6 audio files.*could be.*esc10"):
        load_layout(root, "esc50")


def test_esc10_in_its_own_release(tmp_path: Path) -> None:
    names = ["Dog bark", "Rain", "Sea waves", "Baby cry", "Clock tick"]
    names += ["Person sneeze", "Helicopter", "Chainsaw", "Rooster", "Fire crackling"]
    for number, name in enumerate(names, start=1):
        write_wav(tmp_path / f"{number:03d} - {name}" / f"{1 + number % 5}-302{number}-A.wav")
    clips = load_layout(tmp_path, "esc10")
    assert told(clips)[3] == ("5-3024-A.wav", ("crying_baby",), 5, "3024")
    assert len(labels_of(clips)) == 10
    for path in (tmp_path / "009 - Rooster").iterdir():
        path.unlink()
    (tmp_path / "009 - Rooster").rmdir()
    with pytest.raises(DatasetMissing, match=r"1 of ESC-10's 10 class folders.*Rooster"):
        load_layout(tmp_path, "esc10")


def test_us8k_in_its_folds(tmp_path: Path) -> None:
    clips = load_layout(us8k(tmp_path), "us8k")
    assert told(clips)[3] == ("77751-3-0-2.wav", ("dog_bark",), 10, "77751")
    assert clips[0].path == tmp_path / "audio" / "fold5" / "100032-3-0-0.wav"
    assert (folds_of(clips), labels_of(clips)) == ((5, 10), ("children_playing", "dog_bark"))


def test_fsd50k_has_several_labels_and_three_folds(tmp_path: Path) -> None:
    clips = load_layout(fsd50k(tmp_path), "fsd50k")
    assert told(clips) == [
        ("64760.wav", ("Electric_guitar", "Guitar", "Music"), 1, "64760"),
        ("16399.wav", ("Bark", "Dog"), 1, "16399"),
        ("345111.wav", ("Electric_guitar", "Guitar", "Music"), 2, "345111"),
        ("37199.wav", ("Bark", "Dog"), 3, "37199"),
    ]
    assert [clip.uploader for clip in clips] == ["casual", "kennel", "casual", "other"]
    assert clips[0].label == "Electric_guitar"


def test_fsd50k_without_metadata_and_with_odd_ones(tmp_path: Path) -> None:
    clips = load_layout(fsd50k(tmp_path / "a", metadata=False), "fsd50k")
    assert {clip.uploader for clip in clips} == {""}
    root = fsd50k(tmp_path / "b")
    (root / "FSD50K.metadata" / "dev_clips_info_FSD50K.json").write_text("[" * 100_000)
    with pytest.raises(DatasetInvalid, match=r"dev_clips_info_FSD50K.json is not JSON"):
        load_layout(root, "fsd50k")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('9,"Bark,Meow",m,train', "line 2 of .*dev.csv: the label 'Meow' is not in vocabulary"),
        ("9,Bark,m,test", "line 2 of .*dev.csv: the split 'test' is neither train nor val"),
        ("../../etc/passwd,Bark,m,train", "line 2 of .*dev.csv: .*leads out"),
    ],
)
def test_fsd50k_rows_that_are_refused(tmp_path: Path, line: str, says: str) -> None:
    root = fsd50k(tmp_path)
    write_table(root / "FSD50K.ground_truth" / "dev.csv", "fname,labels,mids,split", line)
    with pytest.raises(DatasetInvalid, match=says):
        load_layout(root, "fsd50k")


def test_digits_are_classes_and_speakers_folds(tmp_path: Path) -> None:
    for name in ("7_theo_0", "7_george_0", "0_theo_12"):
        write_wav(tmp_path / "recordings" / f"{name}.wav")
    clips = load_layout(tmp_path, "digits")
    assert told(clips) == [
        ("0_theo_12.wav", ("0",), 2, "theo"),
        ("7_george_0.wav", ("7",), 1, "george"),
        ("7_theo_0.wav", ("7",), 2, "theo"),
    ]
    write_wav(tmp_path / "recordings" / "seven.wav")
    with pytest.raises(DatasetInvalid, match=r"1 of 4 files .*'seven.wav'"):
        load_layout(tmp_path, "digits")


def test_a_folder_is_a_class_and_a_folder_in_it_a_recording(tmp_path: Path) -> None:
    for name in ("dog/a.wav", "dog/yard/1.wav", "cat/yard/2.WAV", "cat/b.flac"):
        write_wav(tmp_path / name)
    write_table(tmp_path / "dog" / "notes.txt", "no audio")
    (tmp_path / ".cache").mkdir()
    clips = load_layout(tmp_path, "folders")
    assert told(clips) == [
        ("b.flac", ("cat",), hashed_fold("./cat/b.flac"), "./cat/b.flac"),
        ("2.WAV", ("cat",), hashed_fold("yard"), "yard"),
        ("a.wav", ("dog",), hashed_fold("./dog/a.wav"), "./dog/a.wav"),
        ("1.wav", ("dog",), hashed_fold("yard"), "yard"),
    ]


def test_hashed_folds_stay_and_are_about_even() -> None:
    # SHA-256 of "yard" begins with 7ae4b7c7678e3e29 (by sha256sum); modulo 5, plus 1
    assert hashed_fold("yard") == int("7ae4b7c7678e3e29", 16) % 5 + 1
    counts = [[hashed_fold(str(n)) for n in range(2000)].count(fold) for fold in range(1, 6)]
    assert sum(counts) == 2000
    assert min(counts) > 330


def test_fold_folders(tmp_path: Path) -> None:
    for name in ("fold1/dog/x.wav", "Fold_02/dog/x.wav", "fold1/cat/y.wav"):
        write_wav(tmp_path / name)
    clips = load_layout(tmp_path, "folders")
    assert sorted((clip.fold, clip.label) for clip in clips) == [(1, "cat"), (1, "dog"), (2, "dog")]
    assert {clip.place for clip in clips} == {
        "fold1/dog/x.wav",
        "Fold_02/dog/x.wav",
        "fold1/cat/y.wav",
    }
    write_wav(tmp_path / "birds" / "z.wav")
    with pytest.raises(DatasetInvalid, match=r"'birds'; either all"):
        load_layout(tmp_path, "folders")


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissing, match=r"holds no folder"):
        load_layout(tmp_path, "folders")
    (tmp_path / "dog").mkdir()
    with pytest.raises(DatasetMissing, match=r"class folder .*dog holds no audio file"):
        load_layout(tmp_path, "folders")
    write_wav(tmp_path / "dog" / "a.wav")
    write_wav(tmp_path / "stray.wav")
    with pytest.raises(DatasetInvalid, match=r"1 audio files lie in .*'stray.wav'"):
        load_layout(tmp_path, "folders")


def test_manifest(tmp_path: Path) -> None:
    for name in ("a.wav", "in/b.wav", "c.wav"):
        write_wav(tmp_path / name)
    table = write_table(
        tmp_path / "mine.csv",
        "\ufeffpath,label,fold,source,remark",
        "a.wav, dog ; bark;dog,0,yard,one",
        "in/b.wav,cat,3,,",
        '"c.wav","cat, big",3,freesound:42,x',
    )
    expected = [
        ("a.wav", ("dog", "bark"), 0, "yard"),
        ("b.wav", ("cat",), 3, "./in/b.wav"),
        ("c.wav", ("cat, big",), 3, "freesound:42"),
    ]
    assert told(load_layout(table, "csv")) == expected
    assert [clip.place for clip in load_layout(table, "csv")] == ["a.wav", "in/b.wav", "c.wav"]
    assert told(load_layout(tmp_path, "csv")) == expected
    write_table(tmp_path / "manifest.csv", "label,path", "dog,a.wav")
    (clip,) = load_layout(tmp_path, "csv")
    assert (clip.fold, clip.source_id) == (hashed_fold("./a.wav"), "./a.wav")


def _drop(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def _drop_column(root: Path) -> None:
    write_table(root / "meta" / "esc50.csv", "filename,category,esc10,src_file", "a,b,True,1")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_drop("meta/esc50.csv"), r"the table meta/esc50.csv is missing in .*root$"),
        (_drop("audio/1-17367-A-10.wav"), r"1 of 6 audio files .*1-17367-A-10.wav \(line 4 of"),
        (_drop_column, "lacks the column fold; it has 'filename, category, esc10, src_file'"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    root = esc50(tmp_path / "root")
    damage(root)
    with pytest.raises(DatasetMissing, match=says):
        load_layout(root, "esc50")


def test_other_layouts_are_suggested(tmp_path: Path) -> None:
    us8k(tmp_path / "sets" / "UrbanSound8K")
    with pytest.raises(DatasetMissing, match=r"could be of the layout us8k"):
        load_layout(tmp_path / "sets" / "UrbanSound8K", "esc50")
    with pytest.raises(DatasetMissing, match=r"its folder 'UrbanSound8K' could be what is meant"):
        load_layout(tmp_path / "sets", "us8k")
    write_wav(tmp_path / "own" / "dog" / "a.wav")
    write_wav(tmp_path / "own" / "cat" / "b.wav")
    with pytest.raises(DatasetMissing, match=r"could be of the layout folders"):
        load_layout(tmp_path / "own", "fsd50k")
    with pytest.raises(DatasetInvalid, match=r"no layout 'esc'; known are esc50, esc10, us8k"):
        load_layout(tmp_path, "esc")
    with pytest.raises(DatasetMissing, match=r"there is no folder"):
        load_layout(tmp_path / "nowhere", "esc50")


HEADER = "path,label,fold,source"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([HEADER, "a.wav,dog,1,s", "../b.wav,dog,1,s"], "line 3 of m.csv: .*leads out"),
        ([HEADER, "/etc/passwd,dog,1,s"], "line 2 of m.csv: .*leads out"),
        ([HEADER, "C:/a.wav,dog,1,s"], "line 2 of m.csv: .*leads out"),
        ([HEADER, "x\\..\\..\\a.wav,dog,1,s"], "line 2 of m.csv: .*leads out"),
        ([HEADER, "a\0.wav,dog,1,s"], "line 2 of m.csv: .*control characters"),
        ([HEADER, f"{'a' * 600},dog,1,s"], r"line 2 of m.csv: .*\(600 characters\)"),
        ([HEADER, ",dog,1,s"], "line 2 of m.csv: the column path is empty"),
        ([HEADER, "a.wav,,1,s"], "line 2 of m.csv: the column label is empty"),
        ([HEADER, "a.wav,dog;;cat,1,s"], "line 2 of m.csv, column label: a label is empty"),
        ([HEADER, f"a.wav,{'d' * 101},1,s"], "line 2 of m.csv.*longer than 100"),
        ([HEADER, "a.wav,do\x07g,1,s"], "line 2 of m.csv.*control characters"),
        ([HEADER, "a.wav,dog,first,s"], "line 2 of m.csv: the fold 'first' is not 0 to 9999"),
        ([HEADER, "a.wav,dog,٣,s"], "line 2 of m.csv: the fold '٣' is not"),
        ([HEADER, "a.wav,dog,,s"], "line 2 of m.csv: the column fold is empty"),
        ([HEADER, "a.wav,dog,1,./s"], "line 2 of m.csv: a source must not begin with"),
        ([HEADER, "a.wav,dog,1"], "line 2 of m.csv has 3 values, its header has 4"),
        ([HEADER, "a.wav,dog,1,s", "./a.wav,cat,1,s"], "line 3 .*second time, first in line 2"),
        (["path,fold", "a.wav,1"], "lacks the column label; it has 'path, fold'"),
        (["path,label,label", "a.wav,a,b"], "names a column twice"),
        ([HEADER, "b.wav,dog,1,s"], r"1 of 1 audio files .*b.wav \(line 2 of m.csv\)"),
        ([HEADER], "holds no clips"),
        ([""], "m.csv is empty"),
        ([HEADER, '"a.wav'], "line 2 of m.csv: unexpected end"),
        ([HEADER, "a.wav,dog,1," + "s" * 70_000], "line 2 of m.csv is longer than 65536"),
    ],
)
def test_lines_of_a_manifest_that_are_refused(tmp_path: Path, lines: list[str], says: str) -> None:
    write_wav(tmp_path / "a.wav")
    table = write_table(tmp_path / "m.csv", *lines)
    with pytest.raises(DatasetError, match=says):
        load_layout(table, "csv")


def test_tables_of_wrong_bytes_and_of_absurd_size(tmp_path: Path) -> None:
    table = tmp_path / "m.csv"
    table.write_bytes(b"path,label\n\xff\xfe.wav,dog\n")
    with pytest.raises(DatasetInvalid, match=r"m.csv is not UTF-8"):
        load_layout(table, "csv")
    with table.open("wb") as file:
        file.truncate(300 * 2**20)  # sparse: one line of zeros
    with pytest.raises(DatasetInvalid, match=r"m.csv has 314572800 bytes"):
        load_layout(table, "csv")
    with table.open("wb") as file:
        file.write(b"path,label\n")
        file.truncate(100 * 2**20)  # a line of 100 MB
    with pytest.raises(DatasetInvalid, match=r"line 2 of m.csv is longer"):
        load_layout(table, "csv")


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    write_wav(tmp_path / "secret" / "x.wav")
    root = tmp_path / "set"
    write_wav(root / "dog" / "a.wav")
    (root / "dog" / "inside.wav").symlink_to(root / "dog" / "a.wav")
    (root / "loop").symlink_to(root / "loop")
    assert len(load_layout(root, "folders")) == 2
    (root / "dog" / "x.wav").symlink_to(tmp_path / "secret" / "x.wav")
    with pytest.raises(DatasetInvalid, match=r"x.wav leads out of the data set .* a link"):
        load_layout(root, "folders")
    table = write_table(root / "m.csv", "path,label", "more/x.wav,dog")
    (root / "more").symlink_to(tmp_path / "secret")
    with pytest.raises(DatasetInvalid, match=re.escape(f"{root / 'more'} leads out")):
        load_layout(table, "csv")


def test_a_data_set_may_itself_be_a_link(tmp_path: Path) -> None:
    esc50(tmp_path / "disk" / "ESC-50")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "ESC-50")
    assert len(load_layout(tmp_path / "link", "esc50")) == 6


def test_rows_of_esc_that_are_refused(tmp_path: Path) -> None:
    root = esc50(tmp_path)
    header = "filename,fold,target,category,esc10,src_file,take"
    write_table(root / "meta" / "esc50.csv", header, "1-1-A-0.wav,6,0,dog,True,1,A")
    with pytest.raises(DatasetInvalid, match=r"line 2 .*: the fold '6' is not 1 to 5"):
        load_layout(root, "esc50")
    write_table(root / "meta" / "esc50.csv", header, "1-1-A-0.wav,1,0,dog,perhaps,1,A")
    with pytest.raises(DatasetInvalid, match=r"line 2 .*esc10 is neither True nor False"):
        load_layout(root, "esc10")
