"""Images of a deployment: what they copy exists, they do not run as root, tools find no fault."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.metrics import MULTIPROC_DIR
from common.settings import Settings
from tests.deployment import DOCKERFILE, ROOT, stages

TOOLS = Path(sys.executable).parent


def test_hadolint_finds_no_fault_in_the_dockerfile() -> None:
    done = subprocess.run([TOOLS / "hadolint", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_images_do_not_run_as_root() -> None:
    assert {stages()[name].user for name in ("gateway", "worker")} == {"10001:10001"}


def test_the_base_is_pinned_to_a_release() -> None:
    assert re.search(r"^ARG PYTHON=3\.\d+\.\d+-slim-\w+$", DOCKERFILE.read_text(), re.MULTILINE)
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert {base for base in bases if ":" in base} == {"python:${PYTHON}"}


def test_the_gateways_image_is_made_without_the_workers_packages() -> None:
    text = DOCKERFILE.read_text()
    gateway = text[text.index("AS build-gateway") : text.index("AS build-worker")]
    assert "worker" not in gateway
    assert "torch" not in gateway
    assert "COPY --from=build-worker" not in text[: text.index("FROM runtime AS worker")]


def test_what_images_set_is_known() -> None:
    fields = {f"SOUNDMILL_{name.upper()}" for name in Settings.model_fields}
    for stage in stages().values():
        assert {name for name in stage.environment if name.startswith("SOUNDMILL_")} <= fields
    assert MULTIPROC_DIR in stages()["worker"].environment
    assert MULTIPROC_DIR not in stages()["gateway"].environment  # it has one process


def test_folders_of_the_images_belong_to_their_user() -> None:
    made = re.search(
        r"mkdir (.*) && chown soundmill:soundmill (.*) \\$", DOCKERFILE.read_text(), re.M
    )
    assert made is not None
    assert made[1].split() == made[2].split()
    worker = stages()["worker"].environment
    assert {worker["SOUNDMILL_SCRATCH_DIR"], worker[MULTIPROC_DIR]} == set(made[1].split())


def test_a_tmpfs_over_a_folder_of_the_image_can_be_written() -> None:
    """It belongs to root, whoever the folder below belongs to, and has that folder's mode."""
    worker = stages()["worker"].environment
    assert f"chmod 1777 {worker[MULTIPROC_DIR]}" in DOCKERFILE.read_text()


def test_copied_files_are_not_ignored() -> None:
    """The build context leaves out everything but what it names."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    names = set(" ".join(copies).split())
    assert names == kept
    assert all((ROOT / name).exists() for name in names)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("name", ["prometheus.yml", "embedded.yml"])
def test_prometheus_accepts_its_configuration(name: str) -> None:
    command = ["promtool", "check", "config", ROOT / "deploy" / "prometheus" / name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
