"""A three-hour recording goes through all four stages in bounded memory.

Most of its minutes are digital silence, which the models skip; with FULL_SOUND=1 none is.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from common.domain import Stage
from tests.e2e.conftest import Stack

RATE = 44_100
CHANNELS = 2
HOURS = 3
EVERY_MINUTE = "FULL_SOUND" in os.environ  # takes some ten minutes
SOUNDING_MINUTES = set(range(HOURS * 60)) if EVERY_MINUTE else {0, 1, 60, 119, 179}
LIMIT_BYTES = int(1.5e9)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hours of stereo: minutes of noise with loud bursts, and silence between them."""
    path = tmp_path_factory.mktemp("long") / "three-hours.flac"
    rng = np.random.default_rng(0)
    seconds = np.arange(RATE * 60) / RATE
    bursts = 0.5 * np.sin(2 * np.pi * 900 * seconds) * (seconds % 7 < 0.8)
    with soundfile.SoundFile(path, "w", RATE, CHANNELS, "PCM_16") as out:
        for minute in range(HOURS * 60):
            block = np.zeros((RATE * 60, CHANNELS))
            if minute in SOUNDING_MINUTES:
                block = 0.02 * rng.standard_normal(block.shape) + bursts[:, None]
            out.write(block)
    return path


class PeakMemory(threading.Thread):
    """Watches the resident memory of every process of a stack."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root = psutil.Process(root)
        self.peaks: dict[str, int] = {}
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            for process in [self.root, *self.root.children(recursive=True)]:
                try:
                    name = f"{process.pid} {' '.join(process.cmdline())[-80:]}"
                    used = process.memory_info().rss
                except psutil.Error:
                    continue
                self.peaks[name] = max(used, self.peaks.get(name, 0))
            time.sleep(0.2)


def test_no_process_needs_more_than_its_share(stack: Stack, recording: Path) -> None:
    watch = PeakMemory(stack.state.pid)
    watch.start()
    try:
        job_id = stack.submit([recording])
        job = stack.wait(job_id, timeout_s=3_000)
    finally:
        watch.done.set()
        watch.join()
    assert job["counts"] == {stage.value: {"succeeded": 1} for stage in Stage}
    assert len(watch.peaks) >= 2 + 2 * len(Stage)
    over = {name: used for name, used in watch.peaks.items() if used > LIMIT_BYTES}
    assert not over
    # The attempts' own figures agree that the models ran within it.
    for stage, peak in stack.rows(
        "SELECT r.stage, a.peak_memory_bytes FROM attempt a"
        " JOIN stage_run r ON r.id = a.stage_run_id"
    ):
        assert 100e6 < peak < LIMIT_BYTES, stage
    print(json.dumps({name: round(used / 1e6) for name, used in watch.peaks.items()}, indent=1))
    for kind in ("enhanced", "restored"):
        ((key,),) = stack.rows("SELECT object_key FROM artifact WHERE kind = ?", kind)
        info = soundfile.info(stack.home.folder / "objects" / key)
        assert (info.frames, info.channels) == (HOURS * 3600 * RATE, CHANNELS)
