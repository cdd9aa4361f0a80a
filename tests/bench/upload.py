"""Uploading one large file through the gateway against writing it to the store directly, as JSON.

    python -m tests.bench.upload [--gib 2] [--repeat 3] [--store directory --store s3]

Directly means without Soundmill: for the directory a file is written and flushed to disk, for S3
the server's own client sends it. The gateway gets it as one raw body and in parts. Each way is
taken in turn, ``repeat`` times; the median counts. ``ratio`` is the speed through the gateway over
that of writing directly; ``memory_mib`` is the most that the gateway's resident memory grew.
"""

from __future__ import annotations

import http.client
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, BinaryIO, cast
from urllib.parse import urlsplit

import psutil
import typer
from minio import Minio

from tests.bench.rig import Kind, Rig, running

MEBIBYTE = 1 << 20
BLOCK = os.urandom(8 * MEBIBYTE)
SEND_BYTES = 1 * MEBIBYTE
PARTS_AT_ONCE = 3  # as many as the S3 client sends by default
SAMPLE_EVERY_S = 0.02
KINDS = {"directory": Kind.EMBEDDED, "s3": Kind.CLUSTER}


class Blocks:
    """A file of a given size without a disk: random bytes, again and again."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._at = 0

    def read(self, size: int = -1, /) -> bytes:
        start = self._at % len(BLOCK)
        missing = self._size - self._at
        block = BLOCK[start : start + min(missing, missing if size < 0 else size)]
        self._at += len(block)
        return block

    def __iter__(self) -> Iterator[bytes]:
        while block := self.read(SEND_BYTES):
            yield block


class Memory:
    """Samples the resident memory of a process from a thread."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._stop = threading.Event()
        self.idle = self.peak = process.memory_info().rss

    def __enter__(self) -> Memory:
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            self.peak = max(self.peak, self._process.memory_info().rss)


def write_file(rig: Rig, size: int) -> None:
    """Write to the directory's own disk, without the store."""
    path = rig.folder / "direct"
    with path.open("wb", buffering=0) as file:
        for block in Blocks(size):
            file.write(block)
        os.fsync(file.fileno())
    path.unlink()


def put_object(rig: Rig, size: int) -> None:
    """Send to the S3 server with its own client, as that does it by default."""
    settings = rig.settings
    client = Minio(
        settings.s3_endpoint,
        access_key=settings.s3_access_key.get_secret_value(),
        secret_key=settings.s3_secret_key.get_secret_value(),
        region=settings.s3_region,
        secure=False,
    )
    bucket = urlsplit(settings.store_url).netloc
    client.put_object(bucket, "direct", cast(BinaryIO, Blocks(size)), size)
    client.remove_object(bucket, "direct")


class Sender:
    """One connection to the gateway."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        parts = urlsplit(rig.url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=600)

    def call(self, method: str, path: str, body: Any = None, length: int | None = None) -> Any:
        """Send a request; return the decoded answer."""
        headers = dict(self._rig.headers)
        if length is not None:
            headers |= {"Content-Length": str(length), "Content-Type": "application/octet-stream"}
        elif body is not None:
            headers |= {"Content-Type": "application/json"}
            body = json.dumps(body).encode()
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= http.client.BAD_REQUEST:
            raise RuntimeError(f"{method} {path}: {answer.status} {text.decode()}")
        return json.loads(text) if text else None


def send_raw(rig: Rig, size: int) -> None:
    """Send a recording as one body."""
    sender = Sender(rig)
    job_id = sender.call("POST", "/v1/jobs", {"name": "bench"})["id"]
    sender.call("POST", f"/v1/jobs/{job_id}/recordings?name=a.wav", iter(Blocks(size)), size)
    sender.call("DELETE", f"/v1/jobs/{job_id}")


def send_parts(rig: Rig, size: int) -> None:
    """Send an upload in parts, several at once, as the client does."""
    sender = Sender(rig)
    upload = sender.call("POST", "/v1/uploads", {"name": "a.wav", "size_bytes": size})
    path = f"/v1/uploads/{upload['id']}"
    part_bytes = upload["part_bytes"]
    connections = [Sender(rig) for _ in range(PARTS_AT_ONCE)]

    def send(first: int) -> None:
        for number in range(first, upload["parts"], PARTS_AT_ONCE):
            length = min(part_bytes, size - number * part_bytes)
            body = iter(Blocks(length))
            connections[first].call("PUT", f"{path}/parts/{number + 1}", body, length)

    with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
        list(pool.map(send, range(PARTS_AT_ONCE)))
    sender = Sender(rig)  # the first connection may have been idle for too long
    sender.call("POST", f"{path}/complete")
    sender.call("DELETE", path)


def measure(store: str, size: int, repeat: int) -> dict[str, Any]:
    """Return the figures of one store."""
    ways: dict[str, Callable[[Rig, int], None]] = {
        "direct": write_file if store == "directory" else put_object,
        "gateway_raw": send_raw,
        "gateway_parts": send_parts,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    grown: dict[str, list[int]] = {name: [] for name in ways}
    with running(KINDS[store], workers=0) as rig:
        for way in ways.values():
            way(rig, 64 * MEBIBYTE)  # so that what is loaded at first use is not measured
        gateway = psutil.Process(rig.processes["gateway"].pid)
        gateway = (gateway.children() or [gateway])[0]
        for _ in range(repeat):
            for name, way in ways.items():
                with Memory(gateway) as memory:
                    began = time.perf_counter()
                    way(rig, size)
                    seconds[name].append(time.perf_counter() - began)
                grown[name].append(memory.peak - memory.idle)
                print(f"{store} {name} {seconds[name][-1]:.2f} s", file=sys.stderr)
    direct_s = statistics.median(seconds["direct"])
    return {
        name: {
            "seconds": [round(value, 2) for value in values],
            "mib_per_s": round(size / MEBIBYTE / statistics.median(values), 1),
            "ratio": round(direct_s / statistics.median(values), 2),
            "memory_mib": round(max(grown[name]) / MEBIBYTE, 1),
        }
        for name, values in seconds.items()
    }


def main(
    gib: float = 2.0,
    repeat: int = 3,
    store: Annotated[list[str], typer.Option()] = ["directory", "s3"],  # noqa: B006
) -> None:
    """Measure and print JSON; progress goes to standard error."""
    size = int(gib * 1024) * MEBIBYTE
    figures = {name: measure(name, size, repeat) for name in store}
    print(json.dumps({"size_bytes": size, "repeat": repeat, "stores": figures}, indent=2))


if __name__ == "__main__":
    typer.run(main)
