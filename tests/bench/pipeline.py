"""Throughput of the whole pipeline against a plain loop over the same models, as JSON.

    python -m tests.bench.pipeline FOLDER [--limit N]

The pipeline is the embedded stack: HTTP, object store, database, queues and six services. The
plain loop calls the four models one after the other in one process, on files, with one thread: what
a careful script would do. ``pipeline_over_plain_loop`` above 1 means that the pipeline is faster;
on a machine with C cores the most it could be is about C.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from client.home import Home
from common.domain import SERVICE_OF, STAGE_NEEDS, ArtifactKind
from common.params import JobParams
from common.stage_io import Phases, StageInput
from tests.e2e.conftest import Stack, start, stop

PHASES = ("queue_wait", "download", "decode", "infer", "encode", "upload")
TIMEOUT_S = 3600.0


def run_pipeline(paths: list[Path], home: Home) -> dict[str, Any]:
    """Submit ``paths`` to a fresh stack; return what it took."""
    state = start(home)
    try:
        with httpx.Client(base_url=state.url, timeout=60, trust_env=False) as http:
            stack = Stack(home, state, http)
            started = time.perf_counter()
            job_id = stack.submit(paths)
            submitted_s = time.perf_counter() - started
            job = stack.wait(job_id, TIMEOUT_S)
            wall_s = time.perf_counter() - started
            columns = ", ".join(f"SUM(a.{phase}_s)" for phase in PHASES)
            stages = {
                stage: {
                    phase: round(value or 0.0, 2) for phase, value in zip(PHASES, sums, strict=True)
                }
                for stage, *sums in stack.rows(
                    f"SELECT r.stage, {columns} FROM attempt a"
                    " JOIN stage_run r ON r.id = a.stage_run_id GROUP BY r.stage"
                )
            }
    finally:
        stop(home)
    audio_s = job["audio_s_total"]
    return {
        "recordings": len(paths),
        "audio_s": round(audio_s, 1),
        "counts": job["counts"],
        "submit_s": round(submitted_s, 2),
        "wall_s": round(wall_s, 2),
        "x_real_time": round(audio_s / wall_s, 2),
        "seconds_per_phase": stages,
    }


def run_plain_loop(paths: list[Path], folder: Path) -> dict[str, Any]:
    """Run the four models on ``paths`` in this process; return what it took."""
    import torch

    torch.set_num_threads(1)
    infers = {s: importlib.import_module(f"services.{SERVICE_OF[s]}.infer") for s in STAGE_NEEDS}
    models = {stage: infer.load("cpu") for stage, infer in infers.items()}
    seconds: dict[str, float] = defaultdict(float)
    audio_s = 0.0
    for number, path in enumerate(paths):
        files: dict[ArtifactKind, Path] = {}
        for stage, infer in infers.items():
            scratch = folder / f"{number}-{stage}"
            scratch.mkdir()
            item = StageInput(
                path.name, path, JobParams().of(stage), dict(files), scratch, Phases()
            )
            started = time.perf_counter()
            output = infer.process(models[stage], item)
            if number:  # the first warms up
                seconds[stage] += time.perf_counter() - started
            files.update({kind: file.path for kind, file in output.files.items()})
        if number:
            audio_s += output.audio.duration_s
    return {
        "recordings": len(paths) - 1,
        "audio_s": round(audio_s, 1),
        "x_real_time": round(audio_s / sum(seconds.values()), 2),
        "real_time_factor": {stage: round(s / audio_s, 5) for stage, s in seconds.items()},
    }


def main(
    folder: Path,
    limit: Annotated[int, typer.Option(help="at most so many recordings")] = 1_000_000,
    plain: Annotated[int, typer.Option(help="recordings in the plain loop")] = 40,
) -> None:
    """Measure and print."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())[:limit]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="soundmill-bench-") as scratch:
        loop_folder = Path(scratch) / "loop"
        loop_folder.mkdir()
        loop = run_plain_loop(paths[: plain + 1], loop_folder)
        pipeline = run_pipeline(paths, Home.at(Path(scratch) / "home"))
    ratio = pipeline["x_real_time"] / loop["x_real_time"]
    report = {
        "cores": os.cpu_count(),
        "pipeline": pipeline,
        "plain_loop": loop,
        "pipeline_over_plain_loop": round(ratio, 2),
    }
    typer.echo(json.dumps(report, indent=2))


if __name__ == "__main__":
    typer.run(main)
