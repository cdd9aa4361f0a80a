"""The bank with corrupt clips and damaged caches, and the command that looks at a data set."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer
from typer.testing import CliRunner

from common.datasets import Clip, ClipBank, load_layout
from common.datasets.__main__ import inspect, main
from common.errors import ClipsCorrupt, DatasetMissing
from tests.common.dataset_folders import RATE, esc50, tone, us8k, write_wav


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    return load_layout(esc50(tmp_path / "esc"), "esc50")


def spoil(clips: list[Clip]) -> None:
    """Damage three of six: no audio at all, no bytes, a header that promises ten times as much."""
    clips[1].path.write_bytes(b"this is no audio" * 10)
    clips[3].path.write_bytes(b"")
    soundfile.write(clips[4].path, tone(100.0, 4.0), RATE)
    content = clips[4].path.read_bytes()
    clips[4].path.write_bytes(content[: len(content) // 10])


def test_corrupt_clips_are_all_told_and_nothing_is_left(clips: list[Clip], tmp_path: Path) -> None:
    spoil(clips)
    cache = tmp_path / "cache"
    with pytest.raises(ClipsCorrupt, match=r"^3 of 6 clips cannot be decoded") as error:
        ClipBank.open(clips, cache, RATE)
    reasons = error.value.reasons
    assert set(reasons) == {clips[1].path, clips[3].path, clips[4].path}
    assert "not audio" in reasons[clips[1].path]
    assert "0 bytes" in reasons[clips[3].path]
    assert "4.0 s" in reasons[clips[4].path]
    for path, reason in reasons.items():
        assert f"{path}: {reason}" in str(error.value)
    assert [path.name for path in cache.iterdir()] == ["clips.lock"]


def test_only_ten_corrupt_clips_are_named(tmp_path: Path) -> None:
    clips = []
    for n in range(12):
        path = tmp_path / f"{n:02d}.wav"
        path.write_bytes(b"nothing")
        clips.append(Clip(path, "dog", "csv", 1, str(n), n))
    with pytest.raises(ClipsCorrupt, match=r"^12 of 12 .*09.wav.*; and 2 more$") as error:
        ClipBank.open(clips, tmp_path / "cache", RATE, skip_corrupt=True)  # all: nothing is left
    assert "10.wav" not in str(error.value)
    assert len(error.value.reasons) == 12


def test_corrupt_clips_are_skipped_on_request_and_remembered(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(clips)
    cache = tmp_path / "cache"
    bank = ClipBank.open(clips, cache, RATE, skip_corrupt=True)
    assert bank.clips == (clips[0], clips[2], clips[5])
    assert [one.clip for one in bank.skipped] == [clips[1], clips[3], clips[4]]
    np.testing.assert_allclose(bank.waveform(clips[2]), tone(220.0), atol=1e-4)
    with monkeypatch.context() as patch:
        patch.setattr("common.datasets.bank.read_clip", None)  # decoding again would fail
        again = ClipBank.open(clips, cache, RATE, skip_corrupt=True)
        assert (again.clips, again.skipped) == (bank.clips, bank.skipped)
        with pytest.raises(ClipsCorrupt, match=r"^3 of 6"):
            ClipBank.open(clips, cache, RATE)
    for number in (1, 3, 4):
        write_wav(clips[number].path)
    assert len(ClipBank.open(clips, cache, RATE).clips) == 6


def test_a_changed_file_is_decoded_anew(clips: list[Clip], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    ClipBank.open(clips, cache, RATE)
    before = clips[0].path.stat()
    write_wav(clips[0].path, 999.0)  # as long as before
    os.utime(clips[0].path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    bank = ClipBank.open(clips, cache, RATE)
    np.testing.assert_allclose(bank.waveform(clips[0]), tone(999.0), atol=1e-4)
    np.testing.assert_allclose(bank.waveform(clips[5]), tone(250.0), atol=1e-4)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _garble(path: Path) -> None:
    path.write_text("{")


def _drop(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("suffix", "damage"), [(".int16", _cut), (".int16", _drop), (".json", _garble), (".json", _cut)]
)
def test_a_damaged_cache_is_made_anew(
    clips: list[Clip], tmp_path: Path, suffix: str, damage: Callable[[Path], None]
) -> None:
    cache = tmp_path / "cache"
    ClipBank.open(clips, cache, RATE)
    (path,) = cache.glob(f"*{suffix}")
    damage(path)
    (cache / "clips-8000-of-a-killed-process.part").write_text("half")
    bank = ClipBank.open(clips, cache, RATE)
    np.testing.assert_allclose(bank.waveform(clips[5]), tone(250.0), atol=1e-4)
    assert not list(cache.glob("*.part"))


def test_a_cache_without_room_leaves_nothing(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("common.datasets.bank.json.dumps", full)
    cache = tmp_path / "cache"
    with pytest.raises(OSError, match=r"No space left"):
        ClipBank.open(clips, cache, RATE)
    assert not list(cache.glob("*.part"))
    assert not list(cache.glob("*.json"))
    monkeypatch.undo()
    assert len(ClipBank.open(clips, cache, RATE).clips) == 6


def test_padding_is_cut_for_urbansound_only(tmp_path: Path) -> None:
    root = us8k(tmp_path / "us8k")
    padded = np.concatenate([tone(440.0), np.zeros(RATE)])
    for path in root.glob("audio/*/*.wav"):
        soundfile.write(path, padded, RATE)
    cut = load_layout(root, "us8k")
    whole = [Clip(c.path, c.label, "csv", c.fold, c.source_id, c.index) for c in cut]
    bank = ClipBank.open([*cut, *whole], tmp_path / "cache", RATE)
    assert bank.n_samples(cut[0]) == pytest.approx(len(tone(440.0)), abs=2)
    assert bank.n_samples(whole[0]) == len(padded)


def test_a_bar_is_shown_and_files_that_are_gone_are_named(
    clips: list[Clip], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ClipBank.open(clips, tmp_path / "cache", RATE, progress=True)
    assert "6/6" in capsys.readouterr().err
    clips[2].path.unlink()
    with pytest.raises(DatasetMissing, match=r"1 of 6 clips are missing, the first is .*1-17367"):
        ClipBank.open(clips, tmp_path / "cache", RATE)


def test_inspection_by_hand(tmp_path: Path) -> None:
    esc, urban = esc50(tmp_path / "esc"), us8k(tmp_path / "us8k")
    (esc / "audio" / "2-102567-A-36.wav").write_bytes(b"nothing")
    report = inspect(esc, "esc50", urban, "us8k", cache=tmp_path / "cache")
    assert report["clips_of_each_fold"] == {1: 3, 2: 2}
    assert report["classes"]["vacuum_cleaner"] == {1: 1, 2: 0}
    assert list(report["corrupt"]) == [str(esc / "audio" / "2-102567-A-36.wav")]
    assert report["leaks_between_folds"] == {}
    assert report["leaks_against"] == report["leaked_against"] == {"Freesound id": 1}


def test_inspection_as_a_command(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    run = CliRunner().invoke(app, ["--data", str(us8k(tmp_path)), "--layout", "esc10"])
    assert run.exit_code == 1
    assert "could be of the layout us8k" in run.output
    out = tmp_path / "a folder that is made" / "report.json"
    command = ["--data", str(tmp_path), "--layout", "us8k", "--json", str(out)]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert '"dog_bark"' in out.read_text()
    assert [path.name for path in out.parent.iterdir()] == ["report.json"]


def test_a_report_that_finds_no_room_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    us8k(tmp_path)
    out = tmp_path / "report.json"
    out.write_text("of yesterday")

    def half(path: Path, text: str) -> int:
        path.write_bytes(text[:10].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    app = typer.Typer()
    app.command()(main)
    command = ["--data", str(tmp_path), "--layout", "us8k", "--json", str(out)]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 1
    assert "No space left on device" in run.output
    assert out.read_text() == "of yesterday"
    assert not list(tmp_path.glob("*.part"))


def test_a_clip_s_samples_are_digested_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = load_layout(us8k(tmp_path), "us8k")
    bank = ClipBank.open(clips, tmp_path / "cache")
    assert bank.digest(clips[0]) == hashlib.sha256(bank.pcm(clips[0]).tobytes()).digest()
    monkeypatch.setattr(bank, "pcm", None)  # not read again
    assert bank.digest(clips[0])
