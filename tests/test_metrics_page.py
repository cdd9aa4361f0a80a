"""docs/metrics.md tells what the processes tell: no more, no less, with the same labels."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from common.db import make_engine, make_sessions
from common.domain import Priority, RunState, Stage
from common.migrate import migrate
from common.settings import Settings
from common.storage import measure
from common.tables import Job, Recording, StageRun
from tests.servers import RedisServer, free_port

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(soundmill_\w+)` \| (counter|gauge|histogram) \| ([^|]*) \| (.+) \|$")
EVERYBODY = "every process"
PATIENCE_S = 120.0
OF_HISTOGRAMS = ("le",)

# What a worker's processes register, each of it used once; a GPU is at hand in few places.
WORKER = """
from prometheus_client import CollectorRegistry
from common import metrics, runs, stage_metrics
from common.checks.observe import CheckMetrics
from common.checks.start import checker_of
from common.db import DATABASE_ERRORS
from common.domain import Stage
from common.settings import get_settings
from common.storage import open_store

settings = get_settings()
open_store(settings).prepare()
metrics.start_counting("enhancer")
stage_metrics.start([Stage.ENHANCE])
stage_metrics.note_model(Stage.ENHANCE, "d" * 64, "cpu", 1.0)
stage_metrics.WORKER_DEATHS.labels("enhance", "SIGKILL")
stage_metrics.DEVICE_MEMORY.labels("enhance", "used")
registry = CollectorRegistry()
registry.register(stage_metrics.ProcessMemory("enhance"))
registry.register(CheckMetrics(checker_of(settings, "enhancer")))
print(metrics.expose(registry, metrics.REGISTRY).body.decode())
"""


@dataclass(frozen=True)
class Told:
    """A metric as the page or a process has it; labels None where no series is there to look at."""

    kind: str
    labels: frozenset[str] | None


def sections() -> dict[str, dict[str, Told]]:
    """Return the metrics of the page by who tells them."""
    found: dict[str, dict[str, Told]] = {}
    teller = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## Told by "):
            teller = line.removeprefix("## Told by ").partition(":")[0].removeprefix("the ")
        elif row := ROW.match(line):
            name, kind, labels, _ = row.groups()
            of_teller = found.setdefault(teller, {})
            assert name not in of_teller, f"{name} is there twice"
            of_teller[name] = Told(kind, frozenset(re.findall(r"`(\w+)`", labels)))
        else:
            assert not line.startswith("| `soundmill_"), f"not understood: {line}"
    return found


def read(page: str) -> dict[str, Told]:
    """Return our metrics of a scraped page."""
    found = {}
    for family in text_string_to_metric_families(page):
        if not family.name.startswith("soundmill_"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {frozenset(sample.labels) - {*OF_HISTOGRAMS} for sample in family.samples}
        assert len(labels) <= 1, f"{name} has series of different labels"
        found[name] = Told(family.type, labels.pop() if labels else None)
    return found


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Settings:
    """A database with one failed run, so that its code is there to be told."""
    shared_redis.reset()
    settings = Settings(
        home=tmp_path_factory.mktemp("home"), redis_url=SecretStr(shared_redis.url), embedded=True
    )
    engine = make_engine(settings)
    migrate(engine)
    with make_sessions(engine).begin() as session:
        job = Job(name="test", stages=[Stage.SEGMENT.value], recordings=1)
        session.add(job)
        session.flush()
        recording = Recording(
            job_id=job.id, position=0, name="a", object_key="a", size_bytes=1, sha256="0" * 64
        )
        session.add(recording)
        session.flush()
        session.add(
            StageRun(
                job_id=job.id,
                recording_id=recording.id,
                stage=Stage.SEGMENT.value,
                state=RunState.FAILED.value,
                priority=Priority.BULK.value,
                position=0,
                audio_s=1.0,
                error_code="audio_empty",
            )
        )
    engine.dispose()
    (settings.home / "objects").mkdir()
    return settings


def environment(settings: Settings, port: int) -> dict[str, str]:
    ours = {
        "SOUNDMILL_HOME": str(settings.home),
        "SOUNDMILL_REDIS_URL": settings.redis_url.get_secret_value(),
        "SOUNDMILL_EMBEDDED": "true",
        "SOUNDMILL_PORT": str(port),
        "SOUNDMILL_METRICS_PORT": str(port),
    }
    return {**os.environ, **ours}


@contextmanager
def process(settings: Settings, service: str, port: int) -> Iterator[None]:
    log = settings.home / f"{service}.log"
    command = [sys.executable, "-m", f"services.{service}"]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, env=environment(settings, port), cwd=ROOT, stderr=output) as run,
    ):
        try:
            yield
            assert run.poll() is None, log.read_text()
        finally:
            run.send_signal(signal.SIGTERM)


def scrape(port: int, waited_for: str) -> str:
    """Return the page of a process once it tells a metric."""
    deadline = time.monotonic() + PATIENCE_S
    page = ""
    while f"\n{waited_for}" not in page:
        assert time.monotonic() < deadline, page or "nothing listens"
        time.sleep(0.05)
        try:
            page = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        except httpx.TransportError:
            continue
    return page


@pytest.fixture(scope="module")
def told(settings: Settings) -> dict[str, dict[str, Told]]:
    """What each kind of process really tells."""
    waited_for = {
        "gateway": "soundmill_http_requests_total{",  # of the scrape before
        "dispatcher": "soundmill_jobs_late",
        "ingester": "soundmill_sources_read_total{",
    }
    ports = {service: free_port() for service in waited_for}
    with ExitStack() as stack:
        for service, port in ports.items():
            stack.enter_context(process(settings, service, port))
        found = {service: read(scrape(ports[service], waited_for[service])) for service in ports}
    worker = subprocess.run(
        [sys.executable, "-c", WORKER],
        env=environment(settings, 0),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert worker.returncode == 0, worker.stderr
    return found | {"workers": read(worker.stdout)}


@pytest.mark.parametrize("teller", ["gateway", "dispatcher", "ingester", "workers"])
def test_the_page_tells_what_the_process_tells(
    told: dict[str, dict[str, Told]], teller: str
) -> None:
    page = sections()
    expected = page[EVERYBODY] | page[teller]
    assert told[teller].keys() == expected.keys()
    for name, metric in told[teller].items():
        assert metric.kind == expected[name].kind, name
        if metric.labels is not None:
            assert metric.labels == expected[name].labels, name


def test_every_label_was_looked_at(told: dict[str, dict[str, Told]]) -> None:
    """Where one process has no series of a metric yet, another has."""
    seen = {name for metrics in told.values() for name, metric in metrics.items() if metric.labels}
    page = {name: metric for metrics in sections().values() for name, metric in metrics.items()}
    assert seen == {name for name, metric in page.items() if metric.labels}


def test_no_metric_has_two_tellers() -> None:
    names = [name for metrics in sections().values() for name in metrics]
    assert len(names) == len(set(names))


def test_the_values_of_labels_are_complete() -> None:
    values = {
        name: re.findall(r"`(\w+)`", text)
        for name, text in re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    }
    assert values["stage"] == [stage.value for stage in Stage]
    assert values["priority"] == [priority.value for priority in Priority]
    assert values["operation"] == list(measure.OPERATIONS)
    for metrics in sections().values():
        for metric in metrics.values():
            unknown = (metric.labels or set()) - values.keys()
            own = {"service", "version", "method", "route", "status", "way", "outcome"}
            assert unknown <= own | {"phase", "process", "reason", "code"}
