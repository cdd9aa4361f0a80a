"""What an archive costs per file when the stages cost nothing, and what polling it costs.

    python -m tests.bench.archive [--recordings 1000 --recordings 100000] [--stack embedded]
                                  [--way manifest] [--out FILE]

Every run has a stack of its own, empty at the start and warmed up with a few recordings. The job is
closed right after its source was handed in, so that reading and processing go on side by side, as
they do for a user. Figures per file of the largest run are held against those of the smallest.

Results are written to FILE after every run, and the run in progress every few seconds; runs that
FILE holds already are not made again. JSON on standard output, progress on standard error.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from common.domain import ENDED_STATES, Stage
from tests.bench import tiny
from tests.bench.ledger import Ledger, Plan, Run, Way
from tests.bench.rig import Kind, Rig, running
from tests.bench.watch import MEBIBYTE, JobWatch, ProcessWatch, percentile

WARM_UP = 64
TELL_EVERY_S = 10.0
STALLED_AFTER_S = 600.0
HEADERS = {"zip": "application/zip", "manifest": "application/x-ndjson"}
DEFAULT_OUT = Path("runs/bench-archive.json")
SIZES, STACKS, WAYS, STAGES = [1_000, 100_000], list(Kind), [Way.MANIFEST, Way.ZIP], list(Stage)


def make_run(plan: Plan, stages: list[Stage], workers: int, source: str, ledger: Ledger) -> Run:
    """Start a stack, submit, wait for the end; return what it took."""
    with running(plan.stack, workers) as rig, client_of(rig) as http:
        tell(f"{plan}: preparing")
        warm_up(rig, http, stages)
        prepared = prepare(rig, plan, source)
        job_id = new_job(http, stages)
        with ProcessWatch(rig) as processes, JobWatch(rig, job_id) as watch:
            submit(http, job_id, plan.way, prepared)
            http.post(f"/v1/jobs/{job_id}/close").raise_for_status()
            ended = follow(plan, watch, processes, len(stages), ledger)
        return report(plan, stages, workers, watch, processes, ended, last_words(rig, ended))


def warm_up(rig: Rig, http: httpx.Client, stages: list[Stage]) -> None:
    """Have every process load what it loads at first use."""
    job_id = new_job(http, stages)
    for number in range(WARM_UP):
        upload(http, job_id, f"{number}.wav", tiny.recording("warm-up", number))
    http.post(f"/v1/jobs/{job_id}/close").raise_for_status()
    with JobWatch(rig, job_id) as watch:
        while watch.job.get("state") not in ENDED_STATES:
            time.sleep(0.2)
            if watch.elapsed_s() > STALLED_AFTER_S:
                raise RuntimeError("warming up never ended")


def prepare(rig: Rig, plan: Plan, source: str) -> Path:
    """Make what will be submitted; return where it lies."""
    seed = f"{plan.way}-{plan.recordings}"
    path = rig.folder / f"submission.{plan.way}"
    if plan.way is Way.ZIP:
        tiny.write_zip(path, seed, plan.recordings)
    elif plan.way is Way.UPLOADS:
        tiny.write_folder(path, seed, plan.recordings)
    elif source == "s3":
        tiny.write_manifest(path, seed, tiny.fill_bucket(rig.settings, seed, plan.recordings))
    else:
        tiny.write_manifest(path, seed, tiny.write_folder(rig.imports, seed, plan.recordings))
    return path


def submit(http: httpx.Client, job_id: str, way: Way, prepared: Path) -> None:
    """Hand the recordings in."""
    if way is Way.UPLOADS:
        for path in sorted(prepared.rglob("*.wav")):
            upload(http, job_id, path.relative_to(prepared).as_posix(), path.read_bytes())
        return
    with prepared.open("rb") as body:
        http.post(
            f"/v1/jobs/{job_id}/sources",
            content=body,
            params={"name": prepared.name},
            headers={"Content-Type": HEADERS[way]},
            timeout=None,
        ).raise_for_status()


def follow(
    plan: Plan, watch: JobWatch, processes: ProcessWatch, stages: int, ledger: Ledger
) -> str:
    """Wait until the job has ended or nothing moves any more; return how it ended."""
    told = moved = time.monotonic()
    last: Any = None
    while True:
        time.sleep(0.2)
        now = time.monotonic()
        if watch.error is not None:
            return "failed"
        if not watch.progress:
            continue
        seen = watch.progress[-1]
        if seen.state in ENDED_STATES:
            return seen.state
        if (seen.recordings, seen.runs_done) != last:
            last, moved = (seen.recordings, seen.runs_done), now
        elif now - moved > STALLED_AFTER_S:
            return "stalled"
        if now - told > TELL_EVERY_S:
            told = now
            share = seen.runs_done / (plan.recordings * stages)
            left_s = seen.at_s / share - seen.at_s if share else float("nan")
            tell(
                f"{plan}: {seen.recordings} read, {share:.1%} done,"
                f" about {left_s / 60:.0f} min left"
            )
            ledger.note_progress(plan, asdict(seen), processes.peak_rss)


def report(
    plan: Plan,
    stages: list[Stage],
    workers: int,
    watch: JobWatch,
    processes: ProcessWatch,
    ended: str,
    detail: str,
) -> Run:
    """Return the figures of a run that has ended."""
    count = plan.recordings
    total = count * len(stages)
    read_s = watch.until(lambda seen: seen.recordings >= count)
    half_s = watch.until(lambda seen: seen.runs_done >= total / 2)
    done_s = watch.until(lambda seen: seen.state == "completed")
    counts = {stage.value: {"succeeded": count} for stage in stages}
    milliseconds = [1e3 * latency for latency in watch.latencies_s]
    return Run(
        stack=plan.stack.value,
        way=plan.way.value,
        recordings=count,
        workers=workers,
        stages=[stage.value for stage in stages],
        ended=ended,
        exact=watch.job.get("counts") == counts and watch.job.get("recordings") == count,
        submission_ms_per_file=per_file(read_s, count),
        completion_ms_per_file=per_file(done_s, count),
        half_seconds=[round(half_s, 2), round(done_s - half_s, 2)] if half_s and done_s else [],
        poll_ms={
            name: round(percentile(milliseconds, share), 1)
            for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
        },
        polls=len(milliseconds),
        peak_rss_mb={name: round(size / MEBIBYTE, 1) for name, size in processes.peak_rss.items()},
        redis_used_mb=round(processes.redis_bytes / MEBIBYTE, 2),
        cpu_ms_per_file={
            name: round(1e3 * seconds / count, 3) for name, seconds in processes.cpu_s().items()
        },
        detail=detail,
    )


def new_job(http: httpx.Client, stages: list[Stage]) -> str:
    request = {"name": "bench", "stages": [stage.value for stage in stages]}
    job_id: str = http.post("/v1/jobs", json=request).raise_for_status().json()["id"]
    return job_id


def upload(http: httpx.Client, job_id: str, name: str, content: bytes) -> None:
    path = f"/v1/jobs/{job_id}/recordings"
    http.post(path, params={"name": name}, content=content).raise_for_status()


def client_of(rig: Rig) -> httpx.Client:
    return httpx.Client(base_url=rig.url, timeout=120, trust_env=False, headers=rig.headers)


def per_file(seconds: float | None, count: int) -> float | None:
    return None if seconds is None else round(1e3 * seconds / count, 3)


def last_words(rig: Rig, ended: str) -> str:
    """Return the ends of the logs of a run that did not end well."""
    if ended == "completed":
        return ""
    logs = {
        path.name: path.read_text(errors="replace")[-1500:] for path in rig.folder.glob("*.log")
    }
    return "\n".join(f"--- {name}\n{text}" for name, text in logs.items())


def tell(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def plans(stacks: list[Kind], ways: list[Way], recordings: list[int]) -> Iterator[Plan]:
    """Yield the runs, small ones first: they say how long the large ones will take."""
    for count in sorted(recordings):
        for stack in stacks:
            for way in ways:
                yield Plan(stack, way, count)


def main(
    recordings: Annotated[list[int], typer.Option(min=1)] = SIZES,
    stack: Annotated[list[Kind], typer.Option()] = STACKS,
    way: Annotated[list[Way], typer.Option()] = WAYS,
    stage: Annotated[list[Stage], typer.Option()] = STAGES,
    workers: Annotated[int, typer.Option(min=1)] = 1,
    source: Annotated[str, typer.Option(help="file or s3: what a manifest names")] = "file",
    out: Path = DEFAULT_OUT,
) -> None:
    """Measure; see the top of this file."""
    ledger = Ledger(out)
    waiting = [p for p in plans(stack, way, recordings) if not ledger.has(p, stage, workers)]
    while waiting:
        left_s = ledger.estimate_s(waiting)
        left = "unknown" if left_s is None else f"{left_s / 60:.0f} min"
        tell(f"{len(waiting)} runs to make, time left: {left}")
        plan = waiting.pop(0)
        run = make_run(plan, stage, workers, source, ledger)
        ledger.add(run)
        tell(f"{plan}: {run.ended}, {run.completion_ms_per_file} ms per file")
    print(json.dumps(ledger.document(), indent=1))


if __name__ == "__main__":
    typer.run(main)
