"""What is found in folders and archives, hostile ones included."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

import pytest

from client.errors import NoAudio
from client.sources import Source, Unreadable, clean_name, list_sources

AUDIO = b"RIFF....WAVE" * 100


def archive_of(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def content_of(source: Source) -> bytes:
    return b"".join(source.blocks())


def test_folder_is_searched_in_order_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/two.FLAC", "one.wav", "notes.txt", ".hidden.wav", "more.zip"):
        (tmp_path / name).write_bytes(AUDIO)
    os.mkfifo(tmp_path / "pipe.wav")
    listing = list_sources([tmp_path])
    assert [source.name for source in listing.sources] == ["one.wav", "b/two.FLAC"]
    assert sum(listing.skipped.values()) == 4
    assert content_of(listing.sources[0]) == AUDIO


@pytest.mark.parametrize("content", [{}, {"readme.txt": b"no sound here"}])
def test_folder_without_audio(tmp_path: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(NoAudio, match="There is no audio") as caught:
        list_sources([tmp_path])
    assert caught.value.exit_code == 2
    assert str(tmp_path) in str(caught.value)


def test_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(NoAudio, match=r"absent.*No such file"):
        list_sources([tmp_path / "absent"])


def test_named_file_is_taken_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "recording.dat"
    path.write_bytes(AUDIO)
    assert [source.name for source in list_sources([path]).sources] == ["recording.dat"]


def test_file_that_vanishes_is_an_error_of_its_own(tmp_path: Path) -> None:
    for name in ("gone.wav", "there.wav"):
        (tmp_path / name).write_bytes(AUDIO)
    gone, there = list_sources([tmp_path]).sources
    (tmp_path / "gone.wav").unlink()
    with pytest.raises(Unreadable, match="no longer there"):
        content_of(gone)
    assert content_of(there) == AUDIO


def test_file_that_becomes_a_pipe_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(AUDIO)
    (source,) = list_sources([tmp_path]).sources
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(Unreadable, match="not a regular file"):
        content_of(source)


def test_archive_entries_are_streamed_and_nothing_is_written(tmp_path: Path) -> None:
    hostile = {
        "../../etc/evil.wav": AUDIO,
        "/absolute.wav": AUDIO,
        "C:\\windows\\drive.wav": AUDIO,
        "a\x1b[31m.wav": AUDIO,
        "same.wav": AUDIO,
    }
    path = archive_of(tmp_path / "hostile.zip", hostile)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("same.wav", AUDIO)
    listing = list_sources([path])
    names = [source.name for source in listing.sources]
    assert names == [
        "etc/evil.wav",
        "absolute.wav",
        "C:/windows/drive.wav",
        "a\ufffd[31m.wav",
        "same.wav",
        "same.wav",
    ]
    assert all(content_of(source) == AUDIO for source in listing.sources)
    assert list(tmp_path.iterdir()) == [path]


def test_links_inside_an_archive_are_left_out(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "a.zip", {"good.wav": AUDIO})
    link = zipfile.ZipInfo("link.wav")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    listing = list_sources([path])
    assert [source.name for source in listing.sources] == ["good.wav"]
    assert listing.skipped == {"links inside an archive": 1}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_damaged_entry_is_an_error_of_its_own(tmp_path: Path, method: int) -> None:
    noise = os.urandom(5000)
    path = archive_of(tmp_path / "a.zip", {"bad.wav": noise, "good.wav": AUDIO}, method)
    data = bytearray(path.read_bytes())
    data[2000:2010] = b"\0" * 10
    path.write_bytes(data)
    bad, good = list_sources([path]).sources
    with pytest.raises(Unreadable, match="damaged"):
        content_of(bad)
    assert content_of(good) == AUDIO


def test_encrypted_entry(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "a.zip", {"secret.wav": AUDIO}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag in the entry's own header
    data[data.index(b"PK\x01\x02") + 8] |= 1  # and in the directory's
    path.write_bytes(data)
    (source,) = list_sources([path]).sources
    with pytest.raises(Unreadable, match="encrypted"):
        content_of(source)


def test_file_that_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"not a ZIP at all")
    with pytest.raises(NoAudio, match="cannot be read as a ZIP archive"):
        list_sources([path])


def test_overlapping_entries_are_not_trusted(tmp_path: Path) -> None:
    """A small archive whose directory names the same large bytes many times."""
    kernel = archive_of(tmp_path / "kernel.zip", {"a.wav": AUDIO * 50}, zipfile.ZIP_STORED)
    data = kernel.read_bytes()
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entry, tail = data[start:end], bytearray(data[end:])
    count = 40
    tail[8:10] = tail[10:12] = count.to_bytes(2, "little")
    tail[12:16] = (len(entry) * count).to_bytes(4, "little")
    bomb = tmp_path / "bomb.zip"
    bomb.write_bytes(data[:start] + entry * count + bytes(tail))
    with pytest.raises(NoAudio, match="overlapping"):
        list_sources([bomb])


def test_size_in_the_directory_is_not_believed(tmp_path: Path) -> None:
    """An entry that unpacks to more than it declares ends at what it declared."""
    path = archive_of(tmp_path / "a.zip", {"a.wav": b"\0" * 1_000_000})
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\x01\x02")
    for position in (22, directory + 24):
        data[position : position + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(data)
    (source,) = list_sources([path]).sources
    read: list[bytes] = []
    with pytest.raises(Unreadable, match="damaged"):
        read.extend(source.blocks())
    assert sum(map(len, read)) <= 1000


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("plain.wav", "plain.wav"),
        ("folder/Näme 1.wav", "folder/Näme 1.wav"),
        ("../../x.wav", "x.wav"),
        ("..", "unnamed"),
        ("a\nb.wav", "a\ufffdb.wav"),
        ("bad\udcff.wav", "bad\ufffd.wav"),
        ("\u202egnp.wav", "\ufffdgnp.wav"),
        ("x" * 1000 + ".wav", "x" * 396 + ".wav"),
    ],
)
def test_clean_name(raw: str, clean: str) -> None:
    assert clean_name(raw) == clean
