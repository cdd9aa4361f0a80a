"""The Kubernetes manifests: valid, restricted, and every reference in them leads somewhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from common.broker import SOFT_SHUTDOWN_S
from common.domain import SERVICE_OF
from common.metrics import MULTIPROC_DIR
from common.settings import Settings
from services.gateway.__main__ import FINISH_S, SHUTDOWN_S
from tests.deployment import ROOT, example_variables, read_compose, stages
from tests.kubernetes_schemas import CUSTOM
from tests.manifests import (
    COMPONENT,
    RENDERER,
    Rendered,
    containers,
    copy_with_secrets,
    matches,
    render,
)

pytestmark = pytest.mark.skipif(RENDERER is None, reason="neither kubectl nor kustomize is here")

WORKERS = set(SERVICE_OF.values())
PROCESSES = WORKERS | {"gateway", "dispatcher", "ingester"}
STORES = {"postgres", "redis", "s3"}
FIELDS = {f"SOUNDMILL_{name.upper()}" for name in Settings.model_fields}
APPLY_LIMIT_BYTES = 262_144  # of the annotation in which `kubectl apply` keeps an object


@pytest.fixture(scope="module")
def deploy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_with_secrets(tmp_path_factory.mktemp("manifests"))


@pytest.fixture(scope="module")
def small(deploy: Path) -> Rendered:
    return render(deploy / "kubernetes" / "overlays" / "small")


@pytest.fixture(scope="module")
def production(deploy: Path) -> Rendered:
    return render(deploy / "kubernetes" / "overlays" / "production")


@pytest.fixture(scope="module")
def gpu(deploy: Path) -> Rendered:
    """The overlay for production with the component for GPUs switched on, as its comment says."""
    folder = deploy / "kubernetes" / "overlays" / "gpu"
    shutil.copytree(deploy / "kubernetes" / "overlays" / "production", folder)
    kustomization = folder / "kustomization.yaml"
    text = kustomization.read_text()
    assert "  # - ../../components/gpu" in text
    kustomization.write_text(text.replace("  # - ../../components/gpu", "  - ../../components/gpu"))
    return render(folder)


@pytest.fixture(params=["small", "production", "gpu"])
def overlay(request: pytest.FixtureRequest) -> Rendered:
    found: Rendered = request.getfixturevalue(request.param)
    return found


def test_objects_fit_the_schemas(overlay: Rendered, tmp_path: Path) -> None:
    """Those of Kubernetes itself strictly; custom ones by what their documentation says."""
    parts = [part for part in overlay.text.split("\n---\n") if _kind(part) not in CUSTOM]
    path = tmp_path / "core.yaml"
    path.write_text("\n---\n".join(parts))
    command = [Path(sys.executable).parent / "kubernetes-validate", "--strict", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    said = (done.stdout + done.stderr).splitlines()
    assert (
        len([line for line in said if " passed for resource " in line]) == len(parts) == len(said)
    )
    for found in overlay.of(*CUSTOM):
        jsonschema.validate(found, CUSTOM[found["kind"]])


def test_everything_is_in_one_namespace_that_is_restricted(overlay: Rendered) -> None:
    (namespace,) = overlay.of("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [found for found in overlay.objects if found is not namespace]
    assert {found["metadata"]["namespace"] for found in others} == {namespace["metadata"]["name"]}


def test_every_process_is_there(small: Rendered, production: Rendered) -> None:
    assert set(small.pods()) == PROCESSES | STORES | {"migrate"}
    assert set(production.pods()) == PROCESSES | {"migrate"}
    for name in ("gateway", "dispatcher"):
        assert production.one("Deployment", name)["spec"]["replicas"] >= 2
        assert small.one("Deployment", name)["spec"]["replicas"] == 1


def test_pods_fit_the_restricted_profile(overlay: Rendered) -> None:
    for name, template in overlay.pods().items():
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert all({"emptyDir", "persistentVolumeClaim"} & set(v) for v in spec.get("volumes", []))
        for container in containers(template):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name


def test_pods_are_bounded(overlay: Rendered) -> None:
    for name, template in overlay.pods().items():
        for container in containers(template):
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
            assert "memory" in container["resources"]["limits"], name
        for volume in template["spec"].get("volumes", []):
            assert "sizeLimit" in volume["emptyDir"], name


def test_selectors_pick_what_they_mean(overlay: Rendered) -> None:
    pods = {name: t["metadata"]["labels"] for name, t in overlay.pods().items()}
    for found in overlay.of("Deployment", "StatefulSet"):
        selector = found["spec"]["selector"]
        picked = {name for name, labels in pods.items() if matches(selector, labels)}
        assert picked == {found["metadata"]["name"]}
    for found in overlay.of("Service"):
        selector = {"matchLabels": found["spec"]["selector"]}
        picked = {name for name, labels in pods.items() if matches(selector, labels)}
        assert picked == {found["metadata"]["name"]}
    budgets = overlay.of("PodDisruptionBudget")
    assert {budget["metadata"]["name"] for budget in budgets} == PROCESSES
    for found in budgets:
        picked = {n for n, labels in pods.items() if matches(found["spec"]["selector"], labels)}
        assert picked == {found["metadata"]["name"]}
        assert found["spec"]["maxUnavailable"] == 1  # else one replica would block a drain
    for found in overlay.of("NetworkPolicy"):
        selector = found["spec"]["podSelector"]
        assert any(matches(selector, labels) for labels in pods.values())


def test_no_pod_is_reached_but_by_what_is_named(overlay: Rendered) -> None:
    policies = overlay.of("NetworkPolicy")
    for name, template in overlay.pods().items():
        labels = template["metadata"]["labels"]
        mine = [p["spec"] for p in policies if matches(p["spec"]["podSelector"], labels)]
        assert any("Ingress" in policy["policyTypes"] for policy in mine), name
        open_ports = {
            port["port"]
            for policy in mine
            for rule in policy.get("ingress", [])
            for port in rule["ports"]
            if not rule.get("from")
        }
        assert open_ports == ({8420} if name == "gateway" else set())


def test_services_and_probes_lead_to_ports_that_exist(overlay: Rendered) -> None:
    for found in overlay.of("Service"):
        container = overlay.main(found["spec"]["selector"][COMPONENT])
        names = {port["name"]: port["containerPort"] for port in container["ports"]}
        for port in found["spec"]["ports"]:
            assert names[port.get("targetPort", port["name"])] == port["port"]
    for name in PROCESSES:
        container = overlay.main(name)
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness")}
        assert {probe["path"] for probe in probes.values()} == {"/health"}
        ready = container["readinessProbe"]["httpGet"]
        assert ready["path"] == "/ready"
        for probe in (ready, *probes.values()):
            assert ports[probe["port"]] == (8420 if name == "gateway" else 9464)
        template = overlay.pods()[name]
        told = template["metadata"]["annotations"]["prometheus.io/port"]
        assert int(told) == ports[ready["port"]]


def test_variables_are_settings(overlay: Rendered) -> None:
    given: dict[str, str] = {}
    for name in PROCESSES | {"migrate"}:
        for container in containers(overlay.pods()[name]):
            for source in container["envFrom"]:
                kind, reference = next(iter(source.items()))
                kinds = {"configMapRef": "ConfigMap", "secretRef": "Secret"}
                held = overlay.one(kinds[kind], reference["name"])
                given |= held["data"]
            given |= {each["name"]: each["value"] for each in container.get("env", [])}
    assert set(given) - FIELDS == {"SERVICE"}
    for secret in ("DATABASE_URL", "REDIS_URL", "S3_ACCESS_KEY", "S3_SECRET_KEY"):
        assert f"SOUNDMILL_{secret}" in given
        settings = overlay.one("ConfigMap", "soundmill-settings")["data"]
        assert f"SOUNDMILL_{secret}" not in settings
    assert given["SOUNDMILL_METRICS_PORT"] == "9464"


def test_secrets_of_stores_exist_and_are_examples(small: Rendered) -> None:
    held = small.one("Secret", "soundmill-stores")
    for name in STORES:
        for variable in small.main(name)["env"]:
            if "valueFrom" in variable:
                reference = variable["valueFrom"]["secretKeyRef"]
                assert reference["name"] == held["metadata"]["name"]
                assert reference["key"] in held["data"]


def test_no_secret_lies_in_the_repository() -> None:
    overlays = ROOT / "deploy" / "kubernetes" / "overlays"
    for example in overlays.glob("*/*.env.example"):
        assert "change-me" in example.read_text()
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "deploy/kubernetes/overlays/*/*.env" in ignored


def test_containers_run_what_compose_runs(overlay: Rendered) -> None:
    services = read_compose(variables=example_variables())["services"]
    for name, template in overlay.pods().items():
        (container,) = template["spec"]["containers"]
        given = container.get("command") or container.get("args")
        assert given == services[name].get("command"), name
        if name in STORES:
            assert container["image"] == services[name]["image"]
        else:
            target = services[name]["build"]["target"]
            assert f"soundmill-{target}" in container["image"]
        user = int(services[name]["user"].split(":")[0])
        assert template["spec"]["securityContext"]["runAsUser"] == user
    for name in WORKERS:
        environment = {each["name"]: each["value"] for each in overlay.main(name)["env"]}
        assert environment["SERVICE"] == name


def test_images_bear_the_version_of_the_project(overlay: Rendered) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name in PROCESSES | {"migrate"}:
        for container in containers(overlay.pods()[name]):
            assert container["image"].endswith(f":{version}")


def test_what_processes_write_is_mounted(overlay: Rendered) -> None:
    for name, template in overlay.pods().items():
        volumes = {volume["name"] for volume in template["spec"].get("volumes", [])}
        claims = overlay.of("StatefulSet")
        volumes |= {
            claim["metadata"]["name"]
            for found in claims
            if found["metadata"]["name"] == name
            for claim in found["spec"]["volumeClaimTemplates"]
        }
        for container in containers(template):
            mounts = {m["mountPath"]: m["name"] for m in container.get("volumeMounts", [])}
            assert set(mounts.values()) <= volumes
            if container["name"] == "main" and name in WORKERS:
                worker = stages()["worker"].environment
                written = {worker[MULTIPROC_DIR], worker["SOUNDMILL_SCRATCH_DIR"], "/tmp"}
                assert written == set(mounts)


def test_grace_periods_are_longer_than_what_processes_take(overlay: Rendered) -> None:
    grace_s = {
        name: template["spec"]["terminationGracePeriodSeconds"]
        for name, template in overlay.pods().items()
        if name != "migrate"
    }
    assert all(grace_s[worker] >= SOFT_SHUTDOWN_S + 5 for worker in WORKERS)
    pause_s = int(overlay.main("gateway")["lifecycle"]["preStop"]["exec"]["command"][1])
    assert grace_s["gateway"] > pause_s + FINISH_S + SHUTDOWN_S
    assert grace_s["dispatcher"] > Settings.model_fields["webhook_timeout_s"].default


def test_pods_wait_for_the_schema_with_the_image_that_can_tell(overlay: Rendered) -> None:
    job = overlay.main("migrate")
    for name in PROCESSES:
        (waiting,) = overlay.pods()[name]["spec"]["initContainers"]
        assert waiting["image"] == job["image"]
        assert waiting["envFrom"] == job["envFrom"]
        assert "common.migrate --check" in waiting["command"][-1]


def test_rules_and_dashboards_are_those_of_the_repository(overlay: Rendered, deploy: Path) -> None:
    held: dict[str, str] = {}
    for found in overlay.of("ConfigMap"):
        assert len(json.dumps(found)) < APPLY_LIMIT_BYTES
        if not found["metadata"]["name"].startswith("soundmill-settings"):
            held |= found["data"]
    files = [*deploy.glob("prometheus/rules/*.yml"), *deploy.glob("grafana/dashboards/*.json")]
    assert held == {path.name: path.read_text() for path in files}


def test_rules_become_objects_of_prometheus_operator(deploy: Path) -> None:
    printed = subprocess.run(
        [deploy / "kubernetes" / "prometheus-rules"], capture_output=True, text=True, check=True
    ).stdout
    found = list(YAML(typ="safe").load_all(printed))
    files = sorted(deploy.glob("prometheus/rules/*.yml"))
    assert [each["spec"] for each in found] == [YAML(typ="safe").load(path) for path in files]
    for each in found:
        jsonschema.validate(each, CUSTOM["PrometheusRule"])


def test_prometheus_operator_sees_each_process_once_as_its_job(production: Rendered) -> None:
    seen = []
    for monitor in production.of("PodMonitor"):
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["relabelings"][0]["targetLabel"] == "job"
        label = COMPONENT.replace(".", "_").replace("/", "_")
        source = [f"__meta_kubernetes_pod_label_{label}"]
        assert endpoint["relabelings"][0]["sourceLabels"] == source
        for name, template in production.pods().items():
            if matches(monitor["spec"]["selector"], template["metadata"]["labels"]):
                ports = {port["name"] for port in production.main(name)["ports"]}
                assert endpoint["port"] in ports
                seen.append(name)
    assert sorted(seen) == sorted(PROCESSES)


def test_gpus_go_to_workers_alone(gpu: Rendered, production: Rendered) -> None:
    for name, template in gpu.pods().items():
        (container,) = template["spec"]["containers"]
        limits = container["resources"]["limits"]
        if name not in WORKERS:
            assert template == production.pods()[name]
            continue
        assert limits["nvidia.com/gpu"] == "1"
        assert container["image"].startswith("registry.example.org/soundmill-worker-cuda:")
        assert {"name": "SOUNDMILL_DEVICE", "value": "cuda"} in container["env"]
        assert template["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"
        strategy = gpu.one("Deployment", name)["spec"]["strategy"]["rollingUpdate"]
        assert strategy["maxSurge"] == 0


def _kind(part: str) -> str:
    found = re.search(r"(?m)^kind: (\w+)$", part)
    assert found is not None, part
    return found[1]
