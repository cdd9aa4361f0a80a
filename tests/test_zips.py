"""Streamed ZIP archives, read back by Python's zipfile and by Info-ZIP."""

from __future__ import annotations

import io
import shutil
import subprocess
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import ArtifactInvalid
from common.formats import zips
from common.formats.zips import Packed, zipped

MADE_AT = 1_700_000_001.0  # 2023-11-14 22:13:21 UTC


def packed(name: str, *blocks: bytes) -> Packed:
    return Packed(name, sum(map(len, blocks)), MADE_AT, blocks)


def archive(*files: Packed, scratch: Path, deflate: bool = False) -> bytes:
    return b"".join(zipped(files, scratch, deflate=deflate))


@pytest.mark.parametrize("deflate", [False, True])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.dictionaries(
        st.text(st.characters(exclude_categories=["C"], exclude_characters="/\\"), min_size=1),
        st.lists(st.binary(min_size=1, max_size=100), max_size=3),
        max_size=4,
    )
)
def test_zipfile_reads_it(tmp_path: Path, files: dict[str, list[bytes]], deflate: bool) -> None:
    data = archive(
        *(packed(name, *blocks) for name, blocks in files.items()),
        scratch=tmp_path,
        deflate=deflate,
    )
    with zipfile.ZipFile(io.BytesIO(data)) as read:
        assert read.testzip() is None
        assert read.namelist() == list(files)
        for name, blocks in files.items():
            assert read.read(name) == b"".join(blocks)
            assert read.getinfo(name).date_time == (2023, 11, 14, 22, 13, 20)
    assert list(tmp_path.iterdir()) == []


def test_info_zip_reads_it(tmp_path: Path) -> None:
    if shutil.which("unzip") is None:
        pytest.skip("unzip is not installed")
    path = tmp_path / "a.zip"
    files = [packed("tapes/Café 1.flac", b"a" * 1000), packed("tapes/2.flac", b"b", b"c")]
    path.write_bytes(archive(*files, scratch=tmp_path))
    checked = subprocess.run(["unzip", "-t", path], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    subprocess.run(["unzip", "-q", path, "-d", tmp_path / "out"], check=True)
    assert (tmp_path / "out/tapes/2.flac").read_bytes() == b"bc"
    assert (tmp_path / "out/tapes/2.flac").stat().st_mode & 0o777 == 0o644


def test_large_numbers_go_into_zip64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 32 bits ended at a thousand: the structures are those of files beyond 4 GiB."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    sizes = [10, 999, 1000, 5000, 3]
    files = [packed(f"{size}.bin", bytes([size % 251]) * size) for size in sizes]
    real = zips.struct.pack

    def pack_32_bits_as_all_ones(form: str, *values: object) -> bytes:
        return real(form, *(0xFFFFFFFF if value == 1000 and "L" in form else value
                            for value in values))  # fmt: skip

    monkeypatch.setattr(zips, "LIMIT", 1000)
    monkeypatch.setattr(zips.struct, "pack", pack_32_bits_as_all_ones)
    data = archive(*files, scratch=tmp_path)
    monkeypatch.undo()
    with zipfile.ZipFile(io.BytesIO(data)) as read:
        assert read.testzip() is None
        assert [entry.file_size for entry in read.infolist()] == sizes
        offsets = [entry.header_offset for entry in read.infolist()]
        assert offsets == sorted(offsets)
        assert offsets[-1] > 5000


def test_more_entries_than_16_bits_count(tmp_path: Path) -> None:
    n = 0xFFFF + 2
    data = archive(*(packed(f"{i}", b"x") for i in range(n)), scratch=tmp_path)
    with zipfile.ZipFile(io.BytesIO(data)) as read:
        assert len(read.namelist()) == n
        assert read.read(f"{n - 1}") == b"x"


def test_memory_does_not_grow_with_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zips, "IN_MEMORY_BYTES", 1 << 16)

    def files(n: int) -> Iterator[Packed]:
        return (packed(f"tapes/number {i:07d}.enhanced.flac", b"x") for i in range(n))

    def peak(n: int) -> int:
        tracemalloc.start()
        for _ in zipped(files(n), tmp_path, deflate=False):
            pass
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(10)
    assert peak(12_000) < peak(2_000) + 200_000


def test_a_file_that_is_not_as_long_as_said(tmp_path: Path) -> None:
    for size in (1, 5):
        file = Packed("a", size, MADE_AT, [b"abc"])
        with pytest.raises(ArtifactInvalid, match="3 bytes"):
            archive(file, scratch=tmp_path)
