"""Files of vectors that are damaged, or made to harm whoever reads them."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common.vectors import VectorWriter

WIDTH, N_VECTORS = 3, 1500  # two blocks
HUGE = 1 << 40

Damage = Callable[[Path], object]


def sound(path: Path, digest: str) -> Path:
    """Write a file of vectors, (3, 1500), with which nothing is wrong."""
    segments = np.random.default_rng(0).normal(size=(WIDTH, 5 * N_VECTORS)).astype(np.float32)
    with VectorWriter(path, digest, WIDTH, 0.08) as writer:
        writer.append(segments)
    return path


def _members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _write(path: Path, members: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _npy(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(values), allow_pickle=True)
    return buffer.getvalue()


def _header(shape: tuple[int, ...], descr: str, content: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    layout = {"shape": shape, "fortran_order": False, "descr": descr}
    np.lib.format.write_array_header_1_0(buffer, layout)
    return buffer.getvalue() + content


def _meta(**changed: Any) -> Damage:
    """Return what writes other things into the meta member."""

    def damage(path: Path) -> None:
        members = _members(path)
        start = members["meta.npy"].index(b"\n") + 1
        text = json.dumps({**json.loads(members["meta.npy"][start:]), **changed})
        members["meta.npy"] = _npy(np.frombuffer(text.encode(), np.uint8))
        _write(path, members)

    return damage


def _raw_meta(text: bytes) -> Damage:
    return lambda path: _write(
        path, {**_members(path), "meta.npy": _npy(np.frombuffer(text, np.uint8))}
    )


def _block(content: bytes, number: int = 0) -> Damage:
    """Return what puts another block in the place of one."""
    return lambda path: _write(path, {**_members(path), f"frames_{number:06d}.npy": content})


def _values(value: float) -> Damage:
    block = np.ones((WIDTH, 1024), "<f2")
    block[1, 700] = value
    return _block(_npy(block))


def _patched(find: bytes, at: int, new: bytes, last: bool = False) -> Damage:
    """Return what overwrites bytes at an offset from the first or last place of ``find``."""

    def damage(path: Path) -> None:
        raw = bytearray(path.read_bytes())
        start = (raw.rindex(find) if last else raw.index(find)) + at
        raw[start : start + len(new)] = new
        path.write_bytes(raw)

    return damage


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _long_contents(path: Path) -> None:
    """A table of contents of more than a megabyte."""
    _write(path, _members(path) | {f"{n:060000}": b"" for n in range(20)})


def _bomb(path: Path) -> None:
    """A block of 100 MB that is packed into a tenth of one, and says that it is one."""
    _block(_header((WIDTH, 1024), "<f2", bytes(100 << 20)))(path)


def _long_header(path: Path) -> None:
    """A .npy whose header is said to have 64 MB: it has, packed."""
    _block(b"\x93NUMPY\x02\x00" + struct.pack("<I", 64 << 20) + b" " * (64 << 20))(path)


DAMAGES: dict[str, Damage] = {
    "empty": lambda path: path.write_bytes(b""),
    "no zip": lambda path: path.write_bytes(b"PK no zip"),
    "cut": _cut,
    "a flipped bit": _patched(b"PK\x01\x02", -100, b"\xa5\xa5\xa5"),
    "no meta": lambda path: _write(path, {"other.npy": _npy([1.0])}),
    "meta of the wrong kind": _raw_meta(b'["kind"]'),
    "meta nested too deep": _raw_meta(b"[" * 100_000),
    "meta is not text": _raw_meta(b"\xff\xfe\x00"),
    "another version": _meta(kind="soundmill-vectors-2"),
    "a kind as long as a book": _meta(kind="k" * 500_000),
    "frames without end": _meta(n_frames=HUGE),
    "infinitely many frames": _raw_meta(
        b'{"kind": "soundmill-vectors-1", "n_frames": 1e999, "leading": [3]}'
    ),
    "fewer frames than none": _meta(n_frames=-5),
    "vectors too wide": _meta(leading=[HUGE]),
    "vectors of no width": _meta(leading=[0]),
    "too many axes": _meta(leading=[1] * 60),
    "blocks too long": _meta(block_frames=HUGE, n_frames=HUGE),
    "one block of everything": _meta(block_frames=1 << 20, n_frames=1 << 20),
    "numbers of another type": _meta(dtype="<f8"),
    "objects": _meta(dtype="|O"),
    "numbers of a gigabyte each": _meta(dtype="V1073741824"),
    "a vector lasts no time": _meta(vector_s=0.0),
    "a vector lasts a moment": _meta(vector_s=1e-12),
    "a vector lasts for ever": _meta(vector_s=float("inf")),
    "a vector lasts how long": _meta(vector_s="0.4"),
    "of nobody's weights": _meta(digest=None),
    "a block of another shape": _block(_npy(np.zeros((WIDTH, 7), "<f2"))),
    "a block of another type": _block(_npy(np.zeros((WIDTH, 1024), "<f8"))),
    "a block of objects": _block(_npy(np.array([{"a": 1}], object))),
    "a block that says it is huge": _block(_header((HUGE, HUGE), "<f2")),
    "a block that says it is empty": _block(_header((WIDTH, 0), "<f2")),
    "a block that is not .npy": _block(b"cake"),
    "a header that is no Python": _block(b"\x93NUMPY\x01\x00\x08\x00{(((((\n "),
    "a header without end": _long_header,
    "a bomb": _bomb,
    "no number": _values(float("nan")),
    "infinity": _values(float("inf")),
    "a long table of contents": _long_contents,
    "packed otherwise": lambda path: _write(path, _members(path), zipfile.ZIP_LZMA),
    "a secret": _patched(b"PK\x01\x02", 8, b"\x01\x00"),
    "a ZIP of the future": _patched(b"PK\x01\x02", 6, b"\xff\xff"),
    "a name that is no text": _patched(
        b"PK\x01\x02", 8, struct.pack("<H", 0x800) + b"\0" * 36 + b"\xff\xff"
    ),
    "a table of contents without end": _patched(
        b"PK\x05\x06", 12, struct.pack("<I", 0xFFFFFFF0), last=True
    ),
    "noise": lambda path: path.write_bytes(random.Random(0).randbytes(20_000)),
}
"""What is done to a sound file, by what is wrong with it then."""
