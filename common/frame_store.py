"""Arrays that grow along time, stored so that any slice can be read alone.

The file is a standard ``.npz`` (a ZIP of ``.npy``, deflated) with the members ``meta`` (JSON as
uint8) and ``frames_000000``, ``frames_000001``, ...: blocks of at most ``block_frames`` along the
last axis. ``numpy.load`` opens it too. The same content gives the same bytes.
"""

from __future__ import annotations

import errno
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
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
_READ_ERRORS = (KeyError, OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


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


class FrameReader:
    """Reads slices along time of a file by ``FrameWriter``, a few blocks in memory.

    A context manager.
    """

    def __init__(self, path: Path, kind: str) -> None:
        """Open the file and read its meta member.

        Raises:
            ArtifactInvalid: here and in ``frames``: damaged, missing, or of another kind.
        """
        self.path = path
        self._cache: dict[int, Array] = {}
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise ArtifactInvalid(f"{path.name} cannot be opened: {error}") from error
        try:
            self.meta: dict[str, Any] = self._read_meta()
            if self.meta["kind"] != kind:
                raise ArtifactInvalid(f"{path.name} is a {self.meta['kind']!r}, not a {kind!r}")
            self.n_frames = int(self.meta["n_frames"])
            self.leading = tuple(int(n) for n in self.meta["leading"])
            self.dtype = np.dtype(str(self.meta["dtype"]))
            self._block_frames = int(self.meta["block_frames"])
            if self.n_frames < 0 or self._block_frames < 1:
                raise ArtifactInvalid(f"{path.name} has an impossible layout")
        except (KeyError, TypeError, ValueError) as error:
            self._zip.close()
            raise ArtifactInvalid(f"{path.name} has no valid meta member: {error}") from error
        except ArtifactInvalid:
            self._zip.close()
            raise

    def frames(self, start: int, stop: int) -> Array:
        """Return frames ``start`` to ``stop`` (exclusive); zeros outside the file."""
        out = np.zeros((*self.leading, max(0, stop - start)), self.dtype)
        first, last = max(0, start), min(stop, self.n_frames)
        while first < last:
            index, offset = divmod(first, self._block_frames)
            block = self._block(index)[..., offset : offset + last - first]
            out[..., first - start : first - start + block.shape[-1]] = block
            first += block.shape[-1]
        return out

    def close(self) -> None:
        self._zip.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_meta(self) -> dict[str, Any]:
        try:
            size = self._zip.getinfo("meta.npy").file_size
        except KeyError as error:
            raise ArtifactInvalid(f"{self.path.name} has no meta member") from error
        if size > _MAX_META_BYTES:
            raise ArtifactInvalid(f"{self.path.name} has a meta member of {size} bytes")
        try:
            meta = json.loads(self._read("meta").tobytes())
        except ValueError as error:
            raise ArtifactInvalid(f"{self.path.name} has no valid meta member: {error}") from error
        if not isinstance(meta, dict):
            raise ArtifactInvalid(f"{self.path.name} has no valid meta member")
        return meta

    def _block(self, index: int) -> Array:
        if index not in self._cache:
            block = self._read(f"frames_{index:06d}")
            length = min(self._block_frames, self.n_frames - index * self._block_frames)
            if block.shape != (*self.leading, length) or block.dtype != self.dtype:
                raise ArtifactInvalid(f"block {index} of {self.path.name} has the wrong shape")
            if len(self._cache) >= _CACHED_BLOCKS:
                del self._cache[next(iter(self._cache))]
            self._cache[index] = block
        return self._cache[index]

    def _read(self, member: str) -> Array:
        try:
            with self._zip.open(f"{member}.npy") as stream:
                array: Array = np.lib.format.read_array(stream, allow_pickle=False)
        except _READ_ERRORS as error:
            text = f"{member} of {self.path.name} cannot be read: {error}"
            raise ArtifactInvalid(text) from error
        return array
