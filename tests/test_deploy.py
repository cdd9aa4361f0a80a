"""The deployment files: valid, and every reference in them leads somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from common.settings import Settings

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    content: dict[str, Any] = YAML(typ="safe").load(COMPOSE)
    return content


def test_compose_file_fits_the_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(COMPOSE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_variable_has_a_default_or_is_in_the_example() -> None:
    example = (ROOT / ".env.example").read_text()
    known = set(re.findall(r"^(\w+)=", example, re.MULTILINE))
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE.read_text()))
    assert used == known


def test_who_is_waited_for_exists_and_can_be_healthy(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for service in services.values():
        for name, how in service.get("depends_on", {}).items():
            assert name in services
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[name]


def test_long_running_services_have_health_checks(compose: dict[str, Any]) -> None:
    without = {name for name, s in compose["services"].items() if "healthcheck" not in s}
    assert without == {"migrate"}


def test_images_are_built_from_stages_that_exist(compose: dict[str, Any]) -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE.read_text(), re.MULTILINE))
    targets = {s["build"]["target"] for s in compose["services"].values() if "build" in s}
    assert targets == {"gateway", "worker"}
    assert targets <= stages


def test_images_do_not_run_as_root() -> None:
    assert "USER 10001" in DOCKERFILE.read_text()


def test_named_volumes_are_declared(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source, _, target = volume.partition(":")
            assert source.startswith("/") if not target else source in compose["volumes"]


def test_only_the_gateway_is_published_and_only_on_loopback(compose: dict[str, Any]) -> None:
    ports = {name: s["ports"] for name, s in compose["services"].items() if "ports" in s}
    assert list(ports) == ["gateway"]
    assert all(port.startswith("127.0.0.1:") for port in ports["gateway"])


def test_settings_that_are_given_exist(compose: dict[str, Any]) -> None:
    fields = {f"SOUNDMILL_{name.upper()}" for name in Settings.model_fields}
    for service in compose["services"].values():
        given = {name for name in service.get("environment", {}) if name.startswith("SOUNDMILL_")}
        assert given <= fields


def test_copied_files_are_not_ignored() -> None:
    """The build context leaves out everything but what it names."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    for name in " ".join(copies).split():
        assert name in kept
        assert (ROOT / name).exists()
