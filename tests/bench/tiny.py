"""Collections of tiny recordings, no two alike: a folder, a manifest, a ZIP.

A recording is a tenth of a second of noise, 844 bytes: what is measured with them is the cost per
file, not per second.
"""

from __future__ import annotations

import hashlib
import io
import json
import wave
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.settings import Settings
from common.storage import open_store

SAMPLE_RATE = 8_000
SAMPLES = 800
PER_FOLDER = 1_000


def recording(seed: str, number: int) -> bytes:
    """Return a WAV file (mono, 8 bit) that only this seed and number give."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(1)
        writer.setframerate(SAMPLE_RATE)
        writer.writeframes(hashlib.shake_128(f"{seed}/{number}".encode()).digest(SAMPLES))
    return file.getvalue()


def names(seed: str, count: int) -> Iterator[str]:
    """Yield the names of ``count`` recordings, in folders."""
    for number in range(count):
        yield f"{seed}/{number // PER_FOLDER:04d}/{number:07d}.wav"


def write_folder(folder: Path, seed: str, count: int) -> list[str]:
    """Write recordings below a folder; return their ``file://`` addresses."""
    urls = []
    for number, name in enumerate(names(seed, count)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(recording(seed, number))
        urls.append(path.as_uri())
    return urls


def write_manifest(path: Path, seed: str, urls: Sequence[str]) -> None:
    """Write a manifest of JSON lines."""
    with path.open("w") as file:
        for name, url in zip(names(seed, len(urls)), urls, strict=True):
            file.write(json.dumps({"url": url, "name": name, "custom_id": name}) + "\n")


def write_zip(path: Path, seed: str, count: int) -> None:
    """Write a ZIP of recordings."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, name in enumerate(names(seed, count)):
            archive.writestr(name, recording(seed, number))


def fill_bucket(settings: Settings, seed: str, count: int) -> list[str]:
    """Put recordings into the import bucket of the settings; return their ``s3://`` addresses."""
    bucket = settings.import_buckets
    store = open_store(settings.model_copy(update={"store_url": f"s3://{bucket}"}))
    urls = []
    for number, name in enumerate(names(seed, count)):
        store.put_stream(name, io.BytesIO(recording(seed, number)), "audio/wav")
        urls.append(f"s3://{bucket}/{name}")
    return urls
