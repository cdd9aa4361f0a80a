"""The gateway as a process: health, readiness, metrics, start, end, imports."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from common.db import make_engine
from common.migrate import migrate
from common.settings import Settings
from tests.gateway.conftest import STACKS, Gateway, problem
from tests.servers import RedisServer, free_port

CHECKS = ("database", "schema", "redis", "redis_policy", "store", "clock", "disk")


def until_ready(gateway: Gateway, ready: bool) -> httpx.Response:
    """Return the first answer of /ready that is so: it is a few seconds old at most."""
    deadline = time.monotonic() + 30
    while (answer := gateway.client.get("/ready")).is_success is not ready:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)
    return answer


@STACKS
def test_health_and_readiness(gateway: Gateway, redis_server: RedisServer) -> None:
    assert gateway.get("/health") == {"status": "ok"}
    well = dict.fromkeys(CHECKS, "ok")
    assert gateway.get("/ready") == {"status": "ready", "checks": well}
    redis_server.kill()
    document = problem(until_ready(gateway, False), 503, "not_ready")
    assert document["checks"] == well | {
        "redis": f"nothing listens at 127.0.0.1:{redis_server.port}",
        "redis_policy": "ok, but it cannot be told: Redis cannot be used",
    }
    assert "redis" in document["detail"]
    assert gateway.get("/health") == {"status": "ok"}
    redis_server.start()
    assert until_ready(gateway, True).json()["checks"] == well


@pytest.mark.parametrize(
    ("database_url", "store_options"), [("sqlite", "directory")], indirect=True
)
def test_readiness_names_what_is_missing(gateway: Gateway) -> None:
    shutil.rmtree(gateway.settings.home / "objects")
    with gateway.sessions.begin() as session:
        session.connection().exec_driver_sql("ALTER TABLE job RENAME TO gone")
    document = problem(until_ready(gateway, False), 503, "not_ready")
    wrong = {name for name, found in document["checks"].items() if found != "ok"}
    assert wrong == {"schema", "store"}
    assert document["checks"]["schema"] == "tables are missing: job"


@pytest.mark.parametrize(
    ("database_url", "store_options"), [("sqlite", "directory")], indirect=True
)
def test_metrics_of_the_checks(gateway: Gateway) -> None:
    found = dict(
        line.rsplit(" ", 1)
        for line in gateway.client.get("/metrics").text.splitlines()
        if line[:1] != "#"
    )
    assert {found[f'soundmill_ready{{check="{name}"}}'] for name in CHECKS} == {"1.0"}
    assert abs(float(found['soundmill_clock_skew_seconds{of="redis"}'])) < 5
    for place in ("scratch", "store", "database"):
        assert float(found[f'soundmill_disk_free_bytes{{place="{place}"}}']) > 0


@STACKS
def test_metrics(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    first, second = (gateway.upload(job_id, b"x" * 1000) for _ in range(2))
    gateway.get(f"/v1/recordings/{second}")
    gateway.client.get("/v1/jobs/nope")
    gateway.client.get("/somewhere/else")
    answer = gateway.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if line[:1] != "#")
    requests = "soundmill_http_requests_total"
    route = "/v1/jobs/{job_id}/recordings"
    assert found[f'{requests}{{method="POST",route="{route}",status="201"}}'] == "2.0"
    assert found[f'{requests}{{method="GET",route="/v1/jobs/{{job_id}}",status="404"}}'] == "1.0"
    assert found[f'{requests}{{method="GET",route="unmatched",status="404"}}'] == "1.0"
    assert found["soundmill_upload_bytes_total"] == "2000.0"
    assert found["soundmill_http_requests_in_progress"] == "1.0"
    assert found['soundmill_recordings_stored_total{way="raw"}'] == "2.0"
    assert "soundmill_stage_runs" not in answer.text  # the dispatcher counts them
    assert first not in answer.text
    assert job_id not in answer.text


@STACKS
def test_recordings_by_the_way_they_came(gateway: Gateway) -> None:
    def stored() -> dict[str, float]:
        text = gateway.client.get("/metrics").text
        found = re.findall(r'soundmill_recordings_stored_total\{way="(\w+)"\} (\S+)', text)
        return {way: float(number) for way, number in found}

    assert stored() == {"form": 0, "raw": 0, "multipart": 0}
    files = [("file", (f"{number}.wav", b"RIFF")) for number in range(3)]
    assert gateway.client.post("/v1/jobs", files=files).status_code == 201
    assert stored() == {"form": 3, "raw": 0, "multipart": 0}
    job_id = gateway.new_job()
    gateway.upload(job_id)
    refused = gateway.client.post(
        f"/v1/jobs/{job_id}/recordings",
        params={"name": "a.wav"},
        content=b"x",
        headers={"X-Content-SHA256": "0" * 64},
    )
    assert refused.status_code == 422
    assert stored() == {"form": 3, "raw": 1, "multipart": 0}
    wanted = {"name": "a.wav", "size_bytes": 4}
    upload_id = gateway.client.post("/v1/uploads", json=wanted).json()["id"]
    part = gateway.client.put(f"/v1/uploads/{upload_id}/parts/1", content=b"RIFF")
    assert part.is_success, part.text
    for _ in range(2):  # completing again changes nothing
        assert gateway.client.post(f"/v1/uploads/{upload_id}/complete").is_success
    assert stored() == {"form": 3, "raw": 1, "multipart": 1}


@STACKS
def test_the_description_of_the_interface(gateway: Gateway) -> None:
    document = gateway.get("/v1/openapi.json")
    assert "/v1/jobs/{job_id}/recordings" in document["paths"]
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}


class GatewayProcess:
    """``python -m services.gateway`` as a process of its own."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.port = settings.port
        self.url = f"http://127.0.0.1:{settings.port}"
        self.log = log
        env = {name: value for name, value in os.environ.items() if name[:10] != "SOUNDMILL_"}
        for name in settings.model_fields_set:
            value = getattr(settings, name)
            secret = getattr(value, "get_secret_value", None)
            env[f"SOUNDMILL_{name.upper()}"] = str(secret() if secret else value)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.gateway"], env=env, stderr=output
            )

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{self.url}/health").raise_for_status()
            except httpx.HTTPError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.05)
            else:
                return

    def memory_bytes(self) -> int:
        """Return the highest resident memory so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024


@pytest.fixture
def process_settings(gateway_settings: Settings) -> Settings:
    """Settings of a process with a database that is ready for it."""
    engine = make_engine(gateway_settings)
    migrate(engine)
    engine.dispose()
    return gateway_settings.model_copy(update={"port": free_port(), "max_upload_bytes": 1 << 30})


@STACKS
def test_a_large_body_is_never_whole_in_memory(process_settings: Settings, tmp_path: Path) -> None:
    size, block = 300 << 20, os.urandom(1 << 20)
    gateway = GatewayProcess(process_settings, tmp_path / "log")
    try:
        gateway.wait_until_up()
        with httpx.Client(base_url=gateway.url, timeout=300) as client:
            job_id = client.post("/v1/jobs", json={}).json()["id"]
            path = f"/v1/jobs/{job_id}/recordings?name=a.wav"
            client.post(path, content=block).raise_for_status()  # everything is loaded now
            before = gateway.memory_bytes()
            answer = client.post(path, content=(block for _ in range(size // len(block))))
            assert answer.json()["size_bytes"] == size
            head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'

            def form():
                yield head
                for _ in range(size // len(block)):
                    yield block
                yield b"\r\n--b--\r\n"

            headers = {"Content-Type": "multipart/form-data; boundary=b"}
            answer = client.post("/v1/jobs", content=form(), headers=headers)
            assert answer.status_code == 201, answer.text
            grown = gateway.memory_bytes() - before
    finally:
        gateway.process.terminate()
        assert gateway.process.wait(30) == 0
    print(f"memory grew by {grown / (1 << 20):.1f} MiB")
    # To S3, three parts of 8 MiB are on their way while the next is read and put together; what the
    # allocator keeps for the threads that send them comes on top.
    assert grown < 100 << 20 < size


@pytest.mark.parametrize(
    ("database_url", "store_options"), [("sqlite", "directory")], indirect=True
)
def test_start_end_and_one_log_line_per_request(process_settings: Settings, tmp_path: Path) -> None:
    gateway = GatewayProcess(process_settings, tmp_path / "log")
    try:
        gateway.wait_until_up()
        httpx.get(f"{gateway.url}/v1/jobs/nope")
        # A sender in the middle of its body does not keep the process from ending.
        with socket.create_connection(("127.0.0.1", gateway.port)) as sender:
            job_id = httpx.post(f"{gateway.url}/v1/jobs", json={}).json()["id"]
            request = f"POST /v1/jobs/{job_id}/recordings?name=a HTTP/1.1\r\nHost: localhost\r\n"
            sender.sendall(f"{request}Content-Length: 1000\r\n\r\nsome".encode())
            time.sleep(0.5)
            started = time.monotonic()
            gateway.process.send_signal(signal.SIGTERM)
            answer = sender.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"shutting_down"' in answer
        assert gateway.process.wait(40) == 0
        assert time.monotonic() - started < 30
    finally:
        gateway.process.kill()
        gateway.process.wait()
    text = gateway.log.read_text()
    assert text.count("/v1/jobs/nope") == 1
    assert "Traceback" not in text
    assert [p for p in (tmp_path / "objects").rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    ("database_url", "store_options"), [("sqlite", "directory")], indirect=True
)
def test_a_port_in_use_is_said_so(process_settings: Settings, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = process_settings.model_copy(update={"port": taken.getsockname()[1]})
        gateway = GatewayProcess(settings, tmp_path / "log")
        assert gateway.process.wait(60) == os.EX_UNAVAILABLE
        text = gateway.log.read_text()
        assert f"cannot listen on 127.0.0.1:{settings.port}: the port is in use" in text
        assert "SOUNDMILL_PORT" in text
        assert "Traceback" not in text


def test_it_imports_neither_models_nor_other_services() -> None:
    code = "import sys, services.gateway.__main__; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "services.gateway.app" in found
    heavy = {"torch", "torchaudio", "numpy", "scipy", "soundfile", "soxr", "av", "celery"}
    assert not heavy & set(found)
    others = {m for m in found if m.startswith("services.")} - {"services.gateway"}
    assert all(m.startswith("services.gateway.") for m in others)
