"""Folder names for results: safe and unique."""

from __future__ import annotations

import pytest

from client.names import MAX_NAME_BYTES, FolderNames, safe_name


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("siren.wav", "siren"),
        ("site a/2024-05-01/rec.01.flac", "site a_2024-05-01_rec.01"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("/srv/x.wav", "_srv_x"),
        ("...", "recording"),
        ("", "recording"),
        ("con.wav", "recording_con"),
        (".hidden.wav", "hidden"),
        ("what?<>|.wav", "what____"),
        ("täglich.wav", "täglich"),
    ],
)
def test_folder_name(name: str, folder: str) -> None:
    assert FolderNames().of(name) == folder


def test_names_are_unique_even_where_case_does_not_count() -> None:
    names = FolderNames()
    given = [names.of(name) for name in ("a.wav", "a.flac", "A.wav", "a-2.wav", "a.mp3")]
    assert given == ["a", "a-2", "A-3", "a-2-2", "a-4"]
    assert len({name.casefold() for name in given}) == len(given)


def test_names_are_the_same_every_time() -> None:
    recordings = ["b/x.wav", "b_x.wav", "x.wav"]
    first, second = FolderNames(), FolderNames()
    assert [first.of(n) for n in recordings] == [second.of(n) for n in recordings]


def test_long_names_fit_a_file_system() -> None:
    name = safe_name("ü" * 500)
    assert len(name.encode()) <= MAX_NAME_BYTES
    assert set(name) == {"ü"}
