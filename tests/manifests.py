"""Kubernetes manifests as ``kubectl kustomize`` makes them, with the example's secrets."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.deployment import ROOT

KUBERNETES = Path("kubernetes")
COMPONENT = "app.kubernetes.io/component"
RENDERER = shutil.which("kubectl") or shutil.which("kustomize")


@dataclass(frozen=True)
class Rendered:
    """All objects of an overlay."""

    text: str

    @cached_property
    def objects(self) -> list[dict[str, Any]]:
        return [found for found in YAML(typ="safe").load_all(self.text) if found]

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        """Return the objects of some kinds."""
        return [found for found in self.objects if found["kind"] in kinds]

    def one(self, kind: str, name: str) -> dict[str, Any]:
        """Return one object; a name may lack the hash at its end."""
        names = {found["metadata"]["name"]: found for found in self.of(kind)}
        (found,) = [v for k, v in names.items() if k == name or k.rpartition("-")[0] == name]
        return found

    def pods(self) -> dict[str, dict[str, Any]]:
        """Return the pod templates by component."""
        kinds = ("Deployment", "StatefulSet", "Job")
        templates = [found["spec"]["template"] for found in self.of(*kinds)]
        return {template["metadata"]["labels"][COMPONENT]: template for template in templates}

    def main(self, component: str) -> dict[str, Any]:
        """Return the container of a component's pods."""
        (container,) = self.pods()[component]["spec"]["containers"]
        found: dict[str, Any] = container
        return found


def copy_with_secrets(folder: Path) -> Path:
    """Copy the deployment files and do what the overlays ask people to do; return the copy."""
    deploy = folder / "deploy"
    shutil.copytree(ROOT / "deploy", deploy, ignore=shutil.ignore_patterns("__pycache__"))
    for example in deploy.glob("kubernetes/overlays/*/*.env.example"):
        shutil.copyfile(example, example.with_suffix(""))
    return deploy


def render(folder: Path) -> Rendered:
    """Return what Kustomize makes of a folder."""
    assert RENDERER is not None
    verb = "kustomize" if Path(RENDERER).name == "kubectl" else "build"
    done = subprocess.run([RENDERER, verb, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # it warns of what is deprecated
    return Rendered(done.stdout)


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Return whether a label selector picks something with these labels."""
    wanted = selector.get("matchLabels", {})
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        (labels.get(each["key"]) in each["values"]) == (each["operator"] == "In")
        for each in selector.get("matchExpressions", [])
    )


def containers(template: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the containers of a pod, those that run first included."""
    yield from template["spec"].get("initContainers", [])
    yield from template["spec"]["containers"]
