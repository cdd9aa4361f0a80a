"""What recordings and hours of audio cost, from running real ones, and what archives would need.

    python -m tests.bench.sizing [--short 300] [--long 6]

Two jobs go through PostgreSQL, an S3 server and one worker of each stage: many recordings of five
seconds, then a few of ten minutes, no two alike. Two measurements give two unknowns:
what each recording costs, whatever its length, and what each second of audio costs. From these
follow the needs of larger archives, by the arithmetic in ``docs/operations.md``. Costs in time are
processor seconds, so that a busy machine changes them little; what processes take while nothing is
to be done is measured first, told apart and left out of them.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import psycopg
import soundfile
import typer

from client.demo import SCENES, render
from tests.bench.rig import Kind, Rig, running

RATE = 44_100
SHORT_S = 5.0
LONG_S = 600.0
NOISE = 1e-3
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
TIMEOUT_S = 3600.0
POLL_S = 0.5
IDLE_S = 20.0
TABLES = ("recording", "stage_run", "attempt", "artifact")
ARCHIVES = (  # name, recordings, audio hours
    ("10,000 clips of 5 s", 10_000, 13.9),
    ("200,000 recordings of 3 min", 200_000, 10_000.0),
    ("1,000,000 recordings of 6 min", 1_000_000, 100_000.0),
    ("1,000,000 recordings of 1 h", 1_000_000, 1_000_000.0),
)
GIGABYTE = 1e9
PACED = ("dispatcher", "ingester", "redis")  # take turns: what they cost depends on the time taken


@dataclass(frozen=True)
class State:
    """What everything amounts to at one moment. Seconds of processor time, bytes, rows."""

    at_s: float  # of a clock that begins anywhere
    processor_s: dict[str, float]  # by process, its children included
    memory_bytes: dict[str, int]
    database_bytes: dict[str, int]  # by table, with indexes
    rows: dict[str, int]
    object_bytes: dict[str, int]  # by kind of artifact; "upload" for the recordings themselves


@dataclass(frozen=True)
class Cost:
    """Of one recording, whatever its length, and of each second of audio."""

    per_recording: float
    per_audio_s: float

    def of(self, recordings: float, audio_s: float) -> float:
        return self.per_recording * recordings + self.per_audio_s * audio_s


def make_recordings(folder: Path, number: int, length_s: float) -> Iterator[Path]:
    """Write stereo FLAC files (16 bit, 44.1 kHz) of scenes one after the other; yield the paths."""
    rng = np.random.default_rng([number, round(length_s)])
    scenes = [render(scene, np.random.default_rng(n)).audio for n, scene in enumerate(SCENES)]
    stereo = [np.repeat(audio, 2, axis=1)[:, :2] for audio in scenes]
    samples = round(length_s * RATE)
    for index in range(number):
        parts, length = [], 0
        while length < samples:
            parts.append(stereo[rng.integers(len(stereo))])
            length += len(parts[-1])
        offset = int(rng.integers(length - samples + 1))
        audio = np.concatenate(parts)[offset : offset + samples]
        path = folder / f"{length_s:g}s-{index:05d}.flac"
        noise = NOISE * rng.standard_normal(audio.shape)
        soundfile.write(path, np.clip(audio + noise, -1, 1), RATE, subtype="PCM_16")
        yield path


def look(rig: Rig, database: psycopg.Connection) -> State:
    """Return what everything amounts to now."""
    processor_s, memory = {}, {}
    for name, members in rig.families().items():
        times = [member.cpu_times() for member in members]
        processor_s[name] = sum(t.user + t.system for t in times)
        memory[name] = sum(member.memory_info().rss for member in members)
    rows = {t: one(database, f"SELECT count(*) FROM {t}") for t in TABLES}
    sizes = {t: one(database, f"SELECT pg_total_relation_size('{t}')") for t in TABLES}
    artifacts = database.execute("SELECT kind, sum(size_bytes) FROM artifact GROUP BY kind")
    objects = {kind: int(size) for kind, size in artifacts}
    uploaded = one(database, "SELECT coalesce(sum(size_bytes), 0) FROM recording")
    return State(
        time.monotonic(), processor_s, memory, sizes, rows, {**objects, "upload": uploaded}
    )


def connected(rig: Rig) -> psycopg.Connection:
    """Connect to the rig's database."""
    url = rig.settings.database_url.get_secret_value()
    return psycopg.connect(url.replace("+psycopg", ""), autocommit=True)


def one(database: psycopg.Connection, query: str) -> int:
    row = database.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


def run(rig: Rig, database: psycopg.Connection, paths: list[Path]) -> State:
    """Put recordings through all stages; return what everything amounts to afterwards."""
    with httpx.Client(base_url=rig.url, headers=rig.headers, timeout=120, trust_env=False) as http:
        job = http.post("/v1/jobs", json={"name": "sizing"}).raise_for_status().json()["id"]
        for path in paths:
            with path.open("rb") as body:
                http.post(
                    f"/v1/jobs/{job}/recordings", params={"name": path.name}, content=body
                ).raise_for_status()
        http.post(f"/v1/jobs/{job}/close").raise_for_status()
        deadline = time.monotonic() + TIMEOUT_S
        while (found := http.get(f"/v1/jobs/{job}").raise_for_status().json())["state"] == "closed":
            if time.monotonic() > deadline:
                raise TimeoutError(f"not completed after {TIMEOUT_S:g} s: {found['counts']}")
            time.sleep(POLL_S)
    if any(set(states) != {"succeeded"} for states in found["counts"].values()):
        raise RuntimeError(f"not all succeeded: {found['counts']}")
    return look(rig, database)


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    return {name: value - before.get(name, 0) for name, value in after.items()}


def worked(before: State, after: State, idle: dict[str, float]) -> dict[str, float]:
    """Return the processor seconds between two states beyond what idling takes."""
    wall_s = after.at_s - before.at_s
    spent = difference(before.processor_s, after.processor_s)
    return {name: max(0.0, s - idle[name] * wall_s) for name, s in spent.items()}


def solve(
    short: dict[str, float], long: dict[str, float], n_short: int, n_long: int
) -> dict[str, Cost]:
    """Return the costs that explain both jobs: two equations, two unknowns, none below 0."""
    matrix = np.array([[n_short, n_short * SHORT_S], [n_long, n_long * LONG_S]])
    costs = {}
    for name in short.keys() & long.keys():
        fixed, per_s = np.linalg.solve(matrix, [short[name], long[name]])
        if per_s < 0:  # nothing of it depends on the length
            fixed, per_s = (short[name] + long[name]) / (n_short + n_long), 0.0
        if fixed < 0:
            fixed = 0.0
            per_s = (short[name] + long[name]) / (n_short * SHORT_S + n_long * LONG_S)
        costs[name] = Cost(float(fixed), float(per_s))
    return costs


def needs(name: str, recordings: int, hours: float, costs: dict[str, dict[str, Cost]]) -> Any:
    """Return what an archive would need: core hours, rows, bytes."""
    audio_s = hours * HOUR_S
    workers = {
        process: cost.of(recordings, audio_s) / HOUR_S
        for process, cost in sorted(costs["processor_s"].items())
        if process not in PACED
    }
    total = sum(workers.values())
    return {
        "archive": name,
        "audio_hours": hours,
        "core_hours": {process: round(value, 2) for process, value in workers.items()},
        "core_hours_in_all": round(total, 1),
        "cores_for_30_days": round(total * HOUR_S / (30 * DAY_S), 2),
        "rows": round(sum(c.of(recordings, audio_s) for c in costs["rows"].values())),
        "database_gb": round(
            sum(c.of(recordings, audio_s) for c in costs["database_bytes"].values()) / GIGABYTE, 2
        ),
        "objects_gb": {
            kind: round(cost.of(recordings, audio_s) / GIGABYTE, 1)
            for kind, cost in sorted(costs["object_bytes"].items())
        },
    }


def main(
    short: Annotated[int, typer.Option(help="recordings of five seconds")] = 300,
    long: Annotated[int, typer.Option(help="recordings of ten minutes")] = 6,
) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="soundmill-bench-") as scratch:
        folder = Path(scratch)
        warm = list(make_recordings(folder, 2, SHORT_S + 1))
        clips = list(make_recordings(folder, short, SHORT_S))
        tapes = list(make_recordings(folder, long, LONG_S))
        with running(Kind.CLUSTER, workers=None) as rig, connected(rig) as database:
            first = run(rig, database, warm)  # the models are loaded
            time.sleep(IDLE_S)
            start = look(rig, database)
            passed_s = start.at_s - first.at_s
            spent = difference(first.processor_s, start.processor_s)
            idle = {name: seconds / passed_s for name, seconds in spent.items()}
            second = run(rig, database, clips)
            third = run(rig, database, tapes)
    costs = {
        name: solve(
            difference(getattr(start, name), getattr(second, name)),
            difference(getattr(second, name), getattr(third, name)),
            short,
            long,
        )
        for name in ("rows", "object_bytes")
    }
    # tables grow by pages, too coarse for few recordings
    grown = difference(start.database_bytes, second.database_bytes)
    costs["database_bytes"] = {name: Cost(size / short, 0.0) for name, size in grown.items()}
    work = worked(start, second, idle), worked(second, third, idle)
    costs["processor_s"] = solve(*work, short, long)
    busy = {
        name: (third.processor_s[name] - start.processor_s[name]) / (third.at_s - start.at_s)
        for name in PACED
    }
    report = {
        "short": {"recordings": short, "audio_s": short * SHORT_S},
        "long": {"recordings": long, "audio_s": long * LONG_S},
        "per_recording_and_per_audio_hour": {
            name: {
                what: [round(cost.per_recording, 5), round(cost.per_audio_s * HOUR_S, 2)]
                for what, cost in sorted(found.items())
            }
            for name, found in costs.items()
        },
        "wall_s": [round(second.at_s - start.at_s, 1), round(third.at_s - second.at_s, 1)],
        "idle_cores": {name: round(share, 4) for name, share in idle.items()},
        "busy_cores": {name: round(share, 4) for name, share in busy.items()},
        "memory_mb": {name: round(size / 1e6) for name, size in third.memory_bytes.items()},
        "archives": [needs(*archive, costs) for archive in ARCHIVES],
    }
    typer.echo(json.dumps(report, indent=2))


if __name__ == "__main__":
    typer.run(main)
