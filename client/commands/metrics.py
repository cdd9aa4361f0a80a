"""``metrics``: what the work of a job took."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from client.api.metrics import JobMetrics, StageMetrics
from client.commands.options import (
    DEFAULT_HOME,
    HomeOption,
    JobArgument,
    JsonOption,
    KeyOption,
    UrlOption,
)
from client.commands.output import make_console, say_json, told_plainly
from client.home import Home
from client.place import Place, find_job
from common.domain import Outcome

UNKNOWN = "–"
DONE = (Outcome.SUCCEEDED, Outcome.REUSED)
MIB = 1 << 20


def metrics(
    job: JobArgument,
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = "",
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what the work of a job took: speeds, waits, phases, memory, retries."""
    with told_plainly(as_json), Place(Home.at(home), url, key).gateway() as gateway:
        found = gateway.job_metrics(find_job(gateway, job).id)
        if as_json:
            say_json(found.model_dump(mode="json"))
        else:
            show(found, make_console(as_json))


def show(metrics: JobMetrics, console: Console) -> None:
    """Print the metrics of a job: a summary, a table of stages, what did not succeed."""
    line = [
        f"Job {metrics.job_id} ({metrics.state})",
        f"first result after {number(metrics.to_first_result_s)} s",
        f"end after {number(metrics.to_end_s)} s",
        f"{number(metrics.audio_hours_per_hour)} audio hours per hour",
        f"{number(metrics.recordings_per_s)} recordings/s",
    ]
    console.print(", ".join(line) + ".", highlight=False, soft_wrap=True)
    table = Table("", *metrics.stages, box=None, pad_edge=False)
    for name, cells in rows(list(metrics.stages.values())):
        table.add_row(name, *cells)
    console.print(table)
    for stage, found in metrics.stages.items():
        for ended in found.attempts:
            if ended.outcome not in DONE:
                reason = f" ({ended.reason})" if ended.reason else ""
                line_of = f"{stage}: {ended.count} attempts {ended.outcome}{reason}"
                console.print(line_of, highlight=False, markup=False, soft_wrap=True)


def rows(stages: list[StageMetrics]) -> Iterable[tuple[str, list[str]]]:
    """Yield the rows of the table: a name, and a cell for each stage."""
    yield "recordings done", [str(stage.recordings_done) for stage in stages]
    yield "attempts", [str(sum(one.count for one in stage.attempts)) for stage in stages]
    yield "audio, s", [number(stage.audio_s) for stage in stages]
    yield "busy, s", [number(stage.busy_s) for stage in stages]
    factors = [stage.real_time_factor for stage in stages]
    yield "real-time factor", [number(factor.total) for factor in factors]
    yield "  median / p95", [pair(factor.p50, factor.p95) for factor in factors]
    waits = [stage.queue_wait_s for stage in stages]
    yield "wait, s: mean", [number(wait.mean) for wait in waits]
    yield "  median / p95", [pair(wait.p50, wait.p95) for wait in waits]
    yield "  longest", [number(wait.max) for wait in waits]
    names = dict.fromkeys(name for stage in stages for name in stage.phases)
    for name in names:
        shares = [stage.phases[name].share if name in stage.phases else None for stage in stages]
        yield f"{name}, share", [UNKNOWN if s is None else f"{s:.0%}" for s in shares]
    yield "batch: mean / most", [pair(s.batch_size.mean, s.batch_size.max) for s in stages]
    yield "memory, MiB", [mebibytes(stage.peak_memory_bytes) for stage in stages]
    yield "device memory, MiB", [mebibytes(stage.device_memory_bytes) for stage in stages]
    yield "devices", [", ".join(one.device for one in stage.devices) or UNKNOWN for stage in stages]
    yield "models", [", ".join(m.digest[:12] for m in stage.models) or UNKNOWN for stage in stages]


def number(value: float | None) -> str:
    """Return a number with three digits that count, or a dash."""
    if value is None:
        return UNKNOWN
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def pair(one: float | None, other: float | None) -> str:
    return f"{number(one)} / {number(other)}"


def mebibytes(size_bytes: int | None) -> str:
    return UNKNOWN if size_bytes is None else f"{size_bytes / MIB:.0f}"
