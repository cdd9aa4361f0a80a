"""Who may import whom: proven by the code's own imports and by what a process really loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WORKERS = ["segmenter", "classifier", "enhancer", "restorer"]
SERVICES = ["gateway", "ingester", "dispatcher", *WORKERS]
LAYERS = [
    {"domain", "errors", "labels", "names", "text", "weights_header"},
    {"settings", "logs", "forking", "metrics", "monitor", "params", "sources", "traces"},
    {"draining", "scratch", "shared_metrics", "timesheet", "wording"},
    {
        "db",
        "tables",
        "storage",
        "broker",
        "messages",
        "migrate",
        "migrations",
        "stage_io",
        "results",
    },
    {"quotas", "keys", "addresses", "egress", "garbage", "webhooks", "backup"},
    {"checks", "jobs", "runs", "spans"},
    {"release", "sharing"},
    {"ends", "stage_traces"},
    {"stage_metrics"},
    {"keeper"},
    {"shard"},
    {"stage"},
    {"worker"},
]
SIGNAL_PACKAGES = {"datasets"}
"""Packages of the signal side; every other package of common is in LAYERS or used by none of it."""
MODEL_FILES = ["config", "model", "train", "evaluate", "infer", "tasks"]


def imported_modules(path: Path) -> set[str]:
    """Return the dotted names that a file imports anywhere, functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def python_files(*parts: str) -> list[Path]:
    files = sorted(ROOT.joinpath(*parts).rglob("*.py"))
    assert files, parts
    return files


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_imports_no_other_service(service: str) -> None:
    for path in python_files("services", service):
        others = {
            name
            for name in imported_modules(path)
            if name.startswith("services.") and name.split(".")[1] != service
        }
        assert not others, f"{path.relative_to(ROOT)} imports {others}"


@pytest.mark.parametrize("package", ["common", "client"])
def test_common_and_client_import_no_service(package: str) -> None:
    for path in python_files(package):
        found = {name for name in imported_modules(path) if name.split(".")[0] == "services"}
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_the_layers_of_common_look_only_downwards() -> None:
    level = {module: number for number, layer in enumerate(LAYERS) for module in layer}
    signal_side = {path.stem for path in (ROOT / "common").glob("*.py")} - set(level)
    signal_side |= SIGNAL_PACKAGES
    packages = [path for name in SIGNAL_PACKAGES for path in python_files("common", name)]
    for path in [*(ROOT / "common").glob("*.py"), *packages]:
        used = {n.split(".")[1] for n in imported_modules(path) if n.startswith("common.")}
        if path.stem in level and path not in packages:
            above = {m for m in used if m in level and level[m] > level[path.stem]}
            assert not above, f"common/{path.name} imports upwards: {above}"
            assert not used & signal_side, f"common/{path.name} imports {used & signal_side}"
        else:
            allowed = signal_side | {"domain", "errors", "labels", "names", "weights_header"}
            allowed |= {"settings", "stage_io", "params"}
            assert used <= allowed, f"common/{path.name} imports {used - allowed}"


@pytest.mark.parametrize("worker", WORKERS)
def test_a_worker_serves_without_its_trainer(worker: str) -> None:
    imports = imported_modules(ROOT / "services" / worker / "infer.py")
    banned = {f"services.{worker}.{name}" for name in ("train", "evaluate", "data", "tasks")}
    assert not imports & (banned | {"common.training", "common.datasets", "common.soundscapes"})


def test_no_torch_is_loaded() -> None:
    """Gateway, dispatcher, client and the parents of the workers load no torch."""
    modules = [
        "services.gateway.__main__",
        "services.dispatcher.__main__",
        "services.ingester.__main__",
        "client.cli",
        *[f"services.{worker}.tasks" for worker in WORKERS],
    ]
    script = """
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
    found = {"torch", "torchaudio", "av", "soundfile", "scipy"} & set(sys.modules)
    if found:
        sys.exit(f"{module} loads {found}")
"""
    command = [sys.executable, "-c", script, *modules]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_four_workers_look_alike() -> None:
    """Their task files are the same but for the name."""
    texts = {
        (ROOT / "services" / worker / "tasks.py").read_text().replace(worker, "WORKER")
        for worker in WORKERS
    }
    assert len(texts) == 1
    for worker in WORKERS:
        names = {path.name for path in (ROOT / "services" / worker).iterdir()}
        expected = {f"{name}.py" for name in MODEL_FILES} | {"MODEL_CARD.md", "weights"}
        assert expected <= names, f"{worker} lacks {expected - names}"
