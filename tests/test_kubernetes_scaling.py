"""Scaling: what KEDA asks exists, and its thresholds follow from what was measured."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from common.domain import SERVICE_OF, Stage
from tests.deployment import ROOT
from tests.manifests import RENDERER, Rendered, copy_with_secrets, render

WORK_PER_POD_S = 600.0
ROUNDING = 0.1  # of thresholds, and of what another measurement may change
RULES = ROOT / "deploy" / "prometheus" / "rules" / "recording.yml"


def triggers() -> dict[str, dict[str, str]]:
    """Return what KEDA asks, by the Deployment that it scales."""
    path = ROOT / "deploy" / "kubernetes" / "components" / "keda" / "scaled-objects.yaml"
    found: dict[str, dict[str, str]] = {}
    for each in YAML(typ="safe").load_all(path):
        (trigger,) = each["spec"]["triggers"]
        found[each["spec"]["scaleTargetRef"]["name"]] = trigger["metadata"]
    return found


def measured_factors() -> dict[str, float]:
    """Return processor time over duration of a recording of a minute, from docs/operations.md."""
    text = (ROOT / "docs" / "operations.md").read_text()
    found = {}
    for stage, service in SERVICE_OF.items():
        row = re.search(rf"^\| {service} \| ([\d.]+) \| ([\d.]+) \|", text, re.MULTILINE)
        assert row is not None
        found[str(stage)] = float(row[1]) / 60 + float(row[2]) / 3600
    return found


def test_a_pod_has_ten_minutes_of_work() -> None:
    for stage, factor in measured_factors().items():
        threshold = float(triggers()[SERVICE_OF[Stage(stage)]]["threshold"])
        assert threshold * factor == pytest.approx(WORK_PER_POD_S, rel=ROUNDING)


def test_the_page_shows_the_same_arithmetic() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    rows = re.findall(
        r"^\| (\w+) \| ([\d.]+) / 60 \+ ([\d.]+) / 3,600 = ([\d.]+) \| ([\d,]+) \| (\d+) \|$",
        text,
        re.MULTILINE,
    )
    assert {row[0] for row in rows} == set(Stage)
    for stage, per_recording, per_hour, factor, exact, threshold in rows:
        computed = float(per_recording) / 60 + float(per_hour) / 3600
        assert measured_factors()[stage] == pytest.approx(computed, rel=ROUNDING)
        assert float(factor) == pytest.approx(computed, abs=5e-6)
        assert float(exact.replace(",", "")) == pytest.approx(WORK_PER_POD_S / computed, abs=50)
        assert threshold == triggers()[SERVICE_OF[Stage(stage)]]["threshold"]


def test_each_worker_is_scaled_by_its_own_stage() -> None:
    asked = triggers()
    assert set(asked) == {*SERVICE_OF.values(), "ingester"}
    for stage, service in SERVICE_OF.items():
        assert asked[service]["query"] == f'soundmill:backlog_audio_seconds{{stage="{stage}"}}'


def test_what_is_asked_exists() -> None:
    recorded = {
        rule["record"]
        for group in YAML(typ="safe").load(RULES)["groups"]
        for rule in group["rules"]
    }
    told = (ROOT / "services" / "dispatcher" / "observe.py").read_text() + "".join(
        path.read_text() for path in (ROOT / "services" / "dispatcher").glob("census*.py")
    )
    for metadata in triggers().values():
        for name in re.findall(r"soundmill[:_][\w:]+", metadata["query"]):
            if ":" in name:
                assert name in recorded
            else:
                assert f'"{name.removeprefix("soundmill_")}"' in told


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_queries_are_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"test:{name}", "expr": metadata["query"]}
        for name, metadata in triggers().items()
    ]
    path = tmp_path / "rules.yml"
    YAML().dump({"groups": [{"name": "test", "rules": rules}]}, path)
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(RENDERER is None, reason="neither kubectl nor kustomize is here")
def test_the_number_of_pods_is_left_to_keda(tmp_path: Path) -> None:
    deploy = copy_with_secrets(tmp_path)
    production: Rendered = render(deploy / "kubernetes" / "overlays" / "production")
    scaled: dict[str, dict[str, Any]] = {
        each["spec"]["scaleTargetRef"]["name"]: each["spec"]
        for each in production.of("ScaledObject")
    }
    for found in production.of("Deployment"):
        name = found["metadata"]["name"]
        assert ("replicas" in found["spec"]) == (name not in scaled)
    for name, spec in scaled.items():
        least = 1 if name == "ingester" else 2
        assert least == spec["minReplicaCount"] < spec["maxReplicaCount"]
        assert spec["triggers"][0]["metadata"]["ignoreNullValues"] == "false"
