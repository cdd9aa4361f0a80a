"""Arrays that grow along time, stored so that any slice can be read alone.

The file is a standard ``.npz`` (a ZIP of ``.npy``, deflated) with the members ``meta`` (JSON as
uint8) and ``frames_000000``, ``frames_000001``, ...: blocks of at most ``block_frames`` along the
last axis. ``numpy.load`` opens it too. The same content gives the same bytes.
"""

from __future__ import annotations

import errno
import io
import json
import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from common.errors import ArtifactInvalid, DiskFull

Array = npt.NDArray[Any]

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a ZIP can hold: no clock in the bytes
_COMPRESS_LEVEL = 4
_CACHED_BLOCKS = 4
_MAX_META_BYTES = 1 << 20
_MAX_BLOCK_BYTES = 16 << 20  # unpacked; those of today's files have 2 MiB at most
_MAX_DIRECTORY_BYTES = 16 << 20  # two weeks of mask
_MAX_HEADER_BYTES = 1 << 14
_MAX_WHY_LENGTH = 200  # what a damaged file says of itself may be long
_PIECE_BYTES = 1 << 16
_DTYPE = re.compile(r"[<>|][biuf][1248]")
_READ_ERRORS = (  # that zipfile, zlib, json and numpy raise at files made to confuse them
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space left to write {path.name}") from error
        raise


class FrameWriter:
    """Writes an array (..., T) of one dtype as it grows. A context manager."""

    def __init__(
        self,
        path: Path,
        meta: dict[str, Any],
        leading: tuple[int, ...],
        dtype: str,
        block_frames: int,
    ) -> None:
        """``leading`` is the shape before the time axis; ``meta`` must be JSON.

        Raises:
            DiskFull: if the file cannot grow, here and in every other method.
        """
        self.path = path
        self._meta = meta
        self._leading = leading
        self._dtype = np.dtype(dtype)
        self._block_frames = block_frames
        self._pending = np.empty((*leading, 0), self._dtype)
        self._blocks = 0
        self.n_frames = 0
        with _disk_errors(path):
            self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)

    def append(self, frames: Array) -> None:
        """Add frames (..., T) of the array's dtype; any T from 0 up."""
        if frames.shape[:-1] != self._leading or frames.dtype != self._dtype:
            raise ValueError(
                f"frames {frames.dtype} {frames.shape} do not fit {self._dtype} {self._leading}"
            )
        self.n_frames += frames.shape[-1]
        self._pending = np.concatenate([self._pending, frames], axis=-1)
        while self._pending.shape[-1] >= self._block_frames:
            self._write_block(self._pending[..., : self._block_frames])
            self._pending = self._pending[..., self._block_frames :].copy()

    def close(self) -> None:
        """Write what is pending and the meta member; the file is complete afterwards."""
        if self._pending.shape[-1]:
            self._write_block(self._pending)
            self._pending = self._pending[..., :0]
        layout = {
            "n_frames": self.n_frames,
            "leading": list(self._leading),
            "dtype": self._dtype.str,
            "block_frames": self._block_frames,
        }
        text = json.dumps({**self._meta, **layout}, sort_keys=True)
        self._write("meta", np.frombuffer(text.encode(), np.uint8))
        with _disk_errors(self.path):
            self._zip.close()

    def discard(self) -> None:
        """Give the file up and remove it."""
        try:
            self._zip.close()
        except OSError:
            pass  # the disk is full; the file goes anyway
        finally:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _write_block(self, block: Array) -> None:
        self._write(f"frames_{self._blocks:06d}", np.ascontiguousarray(block))
        self._blocks += 1

    def _write(self, member: str, values: Array) -> None:
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, values, allow_pickle=False)
        entry = zipfile.ZipInfo(f"{member}.npy", date_time=_EPOCH)
        with _disk_errors(self.path):
            self._zip.writestr(
                entry, buffer.getbuffer(), zipfile.ZIP_DEFLATED, compresslevel=_COMPRESS_LEVEL
            )


class _BoundedFile(io.FileIO):
    """A file of which no more than ``most_bytes`` come at once, whatever a damaged ZIP asks for."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        super().__init__(path)
        self._most_bytes = most_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        """Return bytes. Raises BadZipFile when too many are asked for."""
        wanted = self._most_bytes if size is None or size < 0 else size
        if wanted > self._most_bytes:
            raise zipfile.BadZipFile(f"a table of contents of {wanted} bytes")
        return super().read(wanted) or b""


@contextmanager
def _read_errors(what: str) -> Iterator[None]:
    try:
        yield
    except _READ_ERRORS as error:
        text = f"{what} cannot be read: {str(error)[:_MAX_WHY_LENGTH]}"
        raise ArtifactInvalid(text) from error


class FrameReader:
    """Reads slices along time of a file by ``FrameWriter``, a few blocks in memory.

    A context manager. The file is not trusted: nothing is unpacked or made room for before its
    size is known to be that of a block, so that a damaged one costs no more than a sound one.
    """

    def __init__(
        self, path: Path, kind: str, max_directory_bytes: int = _MAX_DIRECTORY_BYTES
    ) -> None:
        """Open the file and read its meta member.

        Args:
            max_directory_bytes: of the ZIP's table of contents, some 60 for each block.

        Raises:
            ArtifactInvalid: here and in ``frames``: damaged, missing, or of another kind.
        """
        self.path = path
        self._cache: dict[int, Array] = {}
        with _read_errors(path.name):
            self._file = _BoundedFile(path, max_directory_bytes)
        try:
            with _read_errors(path.name):
                self._zip = zipfile.ZipFile(self._file)
            self.meta = self._read_meta()
            with _read_errors(f"the meta member of {path.name}"):
                self._read_layout(kind)
        except ArtifactInvalid:
            self._file.close()
            raise

    def frames(self, start: int, stop: int) -> Array:
        """Return frames ``start`` to ``stop`` (exclusive); zeros outside the file."""
        out = np.zeros((*self.leading, max(0, stop - start)), self.dtype)
        first, last = max(0, start), min(stop, self.n_frames)
        while first < last:
            index, offset = divmod(first, self.block_frames)
            block = self._block(index)[..., offset : offset + last - first]
            out[..., first - start : first - start + block.shape[-1]] = block
            first += block.shape[-1]
        return out

    def close(self) -> None:
        self._zip.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_meta(self) -> dict[str, Any]:
        if "meta.npy" not in self._zip.NameToInfo:
            raise ArtifactInvalid(f"{self.path.name} has no meta member")
        with _read_errors(f"the meta member of {self.path.name}"):
            meta = json.loads(self._read("meta", _MAX_META_BYTES).tobytes())
        if not isinstance(meta, dict):
            raise ArtifactInvalid(f"{self.path.name} has no valid meta member")
        return meta

    def _read_layout(self, kind: str) -> None:
        name = self.path.name
        if self.meta["kind"] != kind:
            raise ArtifactInvalid(f"{name} is a {str(self.meta['kind'])[:80]!r}, not a {kind!r}")
        self.n_frames = _whole(self.meta["n_frames"])
        self.leading = tuple(map(_whole, self.meta["leading"]))
        self.dtype = _dtype(self.meta["dtype"])
        self.block_frames = _whole(self.meta["block_frames"])
        frame_bytes = math.prod(self.leading) * self.dtype.itemsize
        if not 0 < frame_bytes * self.block_frames <= _MAX_BLOCK_BYTES:
            raise ArtifactInvalid(f"{name} has an impossible layout")
        members, blocks = len(self._zip.infolist()), -(-self.n_frames // self.block_frames)
        if members != 1 + blocks:
            raise ArtifactInvalid(f"{name} has {members} members, not meta and {blocks} blocks")

    def _block(self, index: int) -> Array:
        if index not in self._cache:
            length = min(self.block_frames, self.n_frames - index * self.block_frames)
            shape = (*self.leading, length)
            block = self._read(f"frames_{index:06d}", math.prod(shape) * self.dtype.itemsize)
            if block.shape != shape or block.dtype != self.dtype:
                raise ArtifactInvalid(f"block {index} of {self.path.name} has the wrong shape")
            if len(self._cache) >= _CACHED_BLOCKS:
                del self._cache[next(iter(self._cache))]
            self._cache[index] = block
        return self._cache[index]

    def _read(self, member: str, max_bytes: int) -> Array:
        """Return an array of at most ``max_bytes``, not to be written to."""
        name = f"{member} of {self.path.name}"
        with _read_errors(name):
            entry = self._zip.getinfo(f"{member}.npy")
            if entry.file_size > max_bytes + _MAX_HEADER_BYTES:
                raise ArtifactInvalid(f"{name} is said to have {entry.file_size} bytes")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ArtifactInvalid(f"{name} is packed in a way that is not known here")
            with self._zip.open(entry) as stream:
                content = b"".join(iter(partial(stream.read, _PIECE_BYTES), b""))
            return _array(content)


def _array(content: bytes) -> Array:
    """Return the array of a ``.npy`` file of version 1.0. Raises one of ``_READ_ERRORS``."""
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("another version of .npy")
    shape, in_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    size_bytes = math.prod(shape) * dtype.itemsize
    if in_columns or dtype.hasobject or size_bytes != len(content) - stream.tell():
        raise ValueError("the header does not fit what follows it")
    return np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape)


def _whole(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{str(value)[:80]!r} is no number of things")
    return value


def _dtype(value: object) -> np.dtype[Any]:
    if not isinstance(value, str) or not _DTYPE.fullmatch(value):
        raise ValueError(f"{str(value)[:80]!r} is no type of numbers")
    return np.dtype(value)
