"""The Compose files: valid, hardened, and every reference in them leads somewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from common.broker import SOFT_SHUTDOWN_S
from common.domain import SERVICE_OF
from common.metrics import MULTIPROC_DIR
from common.settings import Settings
from services.gateway.__main__ import FINISH_S, SHUTDOWN_S
from tests.deployment import (
    COMPOSE,
    COMPOSE_GPU,
    ENV_EXAMPLE,
    ROOT,
    example_variables,
    read_compose,
    stages,
)

TOOLS = Path(sys.executable).parent
WORKERS = set(SERVICE_OF.values())
OURS = WORKERS | {"gateway", "dispatcher", "ingester", "migrate"}
STORES = {"postgres", "redis", "s3"}
METRICS_PORT = 9464
FIELDS = {f"SOUNDMILL_{name.upper()}" for name in Settings.model_fields}

# What an engine answers that holds no containers, pods, networks or volumes.
STUB = """#!/bin/sh
case "$*" in *version*|-v) echo "podman version 5.4.0" ;; *) echo "[]" ;; esac
"""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return read_compose(variables=example_variables())


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]
    return found


@pytest.fixture(scope="module")
def podman_compose(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that runs podman-compose on files, with a stub in the engine's place."""
    folder = tmp_path_factory.mktemp("stub")
    (folder / "podman").write_text(STUB)
    (folder / "podman").chmod(0o755)
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONWARNINGS": "ignore"}

    def run(arguments: list[str], *files: Path) -> subprocess.CompletedProcess[str]:
        command = [TOOLS / "podman-compose", "--env-file", ENV_EXAMPLE]
        command += [part for file in files for part in ("--file", file)]
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, env=env, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.mark.parametrize("path", [COMPOSE, COMPOSE_GPU], ids=lambda path: path.name)
def test_compose_files_fit_the_schema(path: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_variables_are_those_of_the_example() -> None:
    text = COMPOSE.read_text() + COMPOSE_GPU.read_text()
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", text))
    assert used == set(example_variables())


def test_secrets_have_no_default_and_every_other_variable_has_one() -> None:
    with_default = set(re.findall(r"\$\{(\w+):-", COMPOSE.read_text() + COMPOSE_GPU.read_text()))
    required = set(re.findall(r"\$\{(\w+):\?", COMPOSE.read_text()))
    assert with_default | required == set(example_variables())
    assert not with_default & required
    assert {name for name in required if not name.endswith(("_PASSWORD", "_KEY"))} == set()


def test_no_secret_is_part_of_a_command_line() -> None:
    secrets = {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "S3_SECRET_KEY", "GRAFANA_PASSWORD"}
    for name, service in read_compose()["services"].items():
        for key in ("command", "entrypoint", "labels"):
            assert not set(re.findall(r"\$\{(\w+)", str(service.get(key, "")))) & secrets, name
        assert not set(re.findall(r"\$\{(\w+)", str(service.get("healthcheck")))) & secrets, name


def test_who_is_waited_for_exists_and_can_be_healthy(services: dict[str, Any]) -> None:
    for service in services.values():
        for name, how in service.get("depends_on", {}).items():
            assert name in services
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[name]
            elif how["condition"] == "service_completed_successfully":
                assert services[name]["restart"] != "unless-stopped"  # that would never complete


def test_long_running_services_have_health_checks(services: dict[str, Any]) -> None:
    assert {name for name, s in services.items() if "healthcheck" not in s} == {"migrate"}
    for name in OURS - {"migrate", "gateway"}:
        assert services[name]["healthcheck"]["test"] == ["CMD", "python", "/opt/healthcheck.py"]
    assert "127.0.0.1:8420/ready" in str(services["gateway"]["healthcheck"]["test"])


def test_every_container_is_hardened(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"cap_add", "privileged", "network_mode", "pid"} & set(service), name
        assert int(service["user"].split(":")[0]) > 0, name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        assert any(mount.startswith("/tmp:size=") for mount in service["tmpfs"]), name


def test_every_container_is_bounded(services: dict[str, Any]) -> None:
    for name, service in services.items():
        limits = service["deploy"]["resources"]["limits"]
        assert limits.keys() == {"cpus", "memory", "pids"}, name
        assert "reservations" in service["deploy"]["resources"] or name == "migrate"


def test_restarts(services: dict[str, Any]) -> None:
    restarts = {name: service["restart"] for name, service in services.items()}
    assert restarts.pop("migrate") == "on-failure"
    assert set(restarts.values()) == {"unless-stopped"}


def test_grace_periods_are_longer_than_what_processes_take(services: dict[str, Any]) -> None:
    grace_s = {
        name: int(service["stop_grace_period"].removesuffix("s"))
        for name, service in services.items()
        if name != "migrate"
    }
    assert all(grace_s[worker] >= SOFT_SHUTDOWN_S + 5 for worker in WORKERS)
    assert grace_s["gateway"] >= FINISH_S + SHUTDOWN_S
    webhook_timeout_s = Settings.model_fields["webhook_timeout_s"].default
    assert grace_s["dispatcher"] > webhook_timeout_s


def test_only_people_reach_in_and_only_on_loopback(services: dict[str, Any]) -> None:
    ports = {name: s["ports"] for name, s in services.items() if "ports" in s}
    assert set(ports) == {"gateway", "prometheus", "grafana"}
    published = [port for each in ports.values() for port in each]
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert len({port.split(":")[1] for port in published}) == len(published)


def test_who_is_in_which_network(compose: dict[str, Any], services: dict[str, Any]) -> None:
    internal = {name for name, n in compose["networks"].items() if (n or {}).get("internal")}
    members = {
        network: {name for name, s in services.items() if network in s["networks"]}
        for network in compose["networks"]
    }
    assert internal == {"back", "metrics"}
    assert members["front"] == {"gateway"}
    assert members["out"] == {"dispatcher", "ingester"}
    assert members["back"] == OURS | STORES
    assert members["metrics"] == (OURS - {"migrate"}) | {"prometheus"}
    assert members["watch"] == {"prometheus", "grafana"}


def test_images_are_built_from_stages_that_exist_or_pinned(services: dict[str, Any]) -> None:
    for name, service in services.items():
        if "build" in service:
            assert service["build"]["target"] in stages()
            assert (ROOT / service["build"]["dockerfile"]).exists()
        else:
            assert re.search(r":v?\d+\.\d+[\w.-]*$", service["image"]), name
    assert {services[name]["build"]["target"] for name in WORKERS} == {"worker"}
    assert {services[name]["build"]["target"] for name in OURS - WORKERS} == {"gateway"}


def test_volumes_are_declared_and_mounted_files_exist(
    compose: dict[str, Any], services: dict[str, Any]
) -> None:
    used = set()
    for service in services.values():
        for volume in service.get("volumes", []):
            source, _, target = volume.partition(":")
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
                assert target.endswith(":ro")
            elif target:
                used.add(source)
    assert used == set(compose["volumes"])


def test_what_processes_write_is_a_volume_or_in_memory(services: dict[str, Any]) -> None:
    worker = stages()["worker"].environment
    for name in WORKERS:
        in_memory = {mount.split(":")[0] for mount in services[name]["tmpfs"]}
        assert worker[MULTIPROC_DIR] in in_memory
    for name in OURS - {"migrate"}:  # every one is ready only where it could write there
        assert worker["SOUNDMILL_SCRATCH_DIR"] in services[name]["volumes"], name


def test_settings_that_are_given_exist(services: dict[str, Any]) -> None:
    for name in OURS:
        given = set(services[name]["environment"])
        assert {variable for variable in given if variable.startswith("SOUNDMILL_")} <= FIELDS
        assert given - FIELDS <= ({"SERVICE"} if name in WORKERS else set())
        assert services[name]["environment"].get("SERVICE", name) == name


def test_every_process_can_be_watched(services: dict[str, Any]) -> None:
    for name in OURS - {"migrate", "gateway"}:
        assert services[name]["environment"]["SOUNDMILL_METRICS_HOST"] == "0.0.0.0"
        assert services[name]["environment"]["SOUNDMILL_METRICS_PORT"] == str(METRICS_PORT)
    config = YAML(typ="safe").load(ROOT / "deploy" / "prometheus" / "prometheus.yml")
    targets = {
        job["job_name"]: (each["names"], each["port"])
        for job in config["scrape_configs"]
        for each in job.get("dns_sd_configs", [])
    }
    expected = {name: ([name], METRICS_PORT) for name in OURS - {"migrate", "gateway"}}
    assert targets == expected | {"gateway": (["gateway"], 8420)}


def test_the_merged_files_are_what_an_engine_is_told(podman_compose: Any) -> None:
    """As podman-compose merges them: CUDA in the workers alone, everything else as it was."""
    plain = YAML(typ="safe").load(podman_compose(["config"], COMPOSE).stdout)["services"]
    merged = YAML(typ="safe").load(podman_compose(["config"], COMPOSE, COMPOSE_GPU).stdout)
    for name, service in merged["services"].items():
        if name not in WORKERS:
            assert service == plain[name]
            continue
        resources = service["deploy"]["resources"]
        (device,) = resources["reservations"].pop("devices")
        assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
        assert resources["reservations"] == plain[name]["deploy"]["resources"]["reservations"]
        assert service["image"] != plain[name]["image"]
        assert "TORCH_BACKEND=cu130" in json.dumps(service["build"]).replace('": "', "=")
        environment = dict(service["environment"])
        assert environment.pop("SOUNDMILL_DEVICE") == "cuda"
        assert environment == plain[name]["environment"]


def test_an_engine_is_told_every_bound(podman_compose: Any) -> None:
    """The command lines that podman would get: nothing that counts is dropped on the way."""
    told = podman_compose(["--dry-run", "--verbose", "up", "--detach"], COMPOSE).stderr
    lines = re.findall(r"podman create --name=soundmill_(\w+)_1 (.*(?:\n(?!INFO).*)*)", told)
    assert {name for name, _ in lines} == OURS | STORES | {"prometheus", "grafana"}
    for name, line in lines:
        for flag in ("--read-only", "--cap-drop ALL", "--pids-limit", "-m ", "--cpus", "-u "):
            assert flag in line, f"{name} without {flag}"
        assert "--security-opt no-new-privileges:true" in line
        assert "--log-opt=max-size=10m" in line
        assert ("-p 127.0.0.1:" in line) == (name in {"gateway", "prometheus", "grafana"})
