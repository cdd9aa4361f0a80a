"""The shipped configuration, rules and dashboards, made to fit a short run on one machine.

Replaced are where targets are found, how often they are looked at, and the windows of range
selectors (``[5m]``) and of Grafana's variables (``$__rate_interval``), by one that fits the run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"
RULES = ROOT / "deploy" / "prometheus" / "rules"
DASHBOARDS = ROOT / "deploy" / "grafana" / "dashboards"

INTERVAL_S = 0.5
FIXED_WINDOW = re.compile(r"\[\s*\d+(?:ms|[smhdwy])\s*\]")
GRAFANA_WINDOW = re.compile(r"\$(?:__rate_interval|__interval|__range|\{__(?:rate_)?interval\})")
VARIABLE = re.compile(r"\$\{(\w+)(?::\w+)?\}|\$(\w+)")
REPLACED_OF_JOB = {"dns_sd_configs", "static_configs"}  # how its targets are found


@dataclass(frozen=True)
class Query:
    """A query of a dashboard."""

    dashboard: str  # its uid
    panel: str  # its title
    ref: str
    expression: str

    def over(self, window_s: float) -> str:
        """Return the expression with windows of another length."""
        return windowed(self.expression, window_s)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.dashboard, self.panel, self.ref


@dataclass(frozen=True)
class Rule:
    """A recording rule or an alert."""

    name: str
    expression: str
    severity: str  # "" for recording rules


def parse(text: str) -> Any:
    """Return what YAML says."""
    return YAML(typ="safe").load(text)


def duration(seconds: float) -> str:
    """Return seconds as Prometheus writes them."""
    return f"{max(1, round(seconds * 1000))}ms"


def windowed(expression: str, window_s: float) -> str:
    """Return an expression with windows of another length."""
    window = duration(window_s)
    return FIXED_WINDOW.sub(f"[{window}]", GRAFANA_WINDOW.sub(window, expression))


def config(targets: Mapping[str, Sequence[str]], rules: Path) -> str:
    """Return the shipped configuration for targets by job, with rules in another folder."""
    found = parse(CONFIG.read_text())
    assert set(found) == {"global", "rule_files", "scrape_configs"}, found
    made = deepcopy(found)
    for name in ("scrape_interval", "evaluation_interval"):
        assert name in found["global"]
        made["global"][name] = duration(INTERVAL_S)
    made["rule_files"] = [f"{rules}/{Path(pattern).name}" for pattern in found["rule_files"]]
    for job in made["scrape_configs"]:
        discovery = REPLACED_OF_JOB & set(job)
        assert len(discovery) == 1, job
        del job[discovery.pop()]
        job["static_configs"] = [{"targets": list(targets[job["job_name"]])}]
    text = StringIO()
    YAML(typ="safe").dump(made, text)
    return text.getvalue()


def write_rules(folder: Path, window_s: float | None) -> None:
    """Write the shipped rules, with windows of another length where one is given."""
    folder.mkdir(exist_ok=True)
    for path in sorted(RULES.glob("*.yml")):
        text = path.read_text()
        if window_s is not None:
            text = FIXED_WINDOW.sub(f"[{duration(window_s)}]", text)
        (folder / path.name).write_text(text)


def rules() -> list[Rule]:
    """Return all shipped rules, as they are."""
    return [
        Rule(
            name=rule.get("record") or rule["alert"],
            expression=rule["expr"],
            severity=rule.get("labels", {}).get("severity", ""),
        )
        for path in sorted(RULES.glob("*.yml"))
        for group in parse(path.read_text())["groups"]
        for rule in group["rules"]
    ]


def queries() -> list[Query]:
    """Return every query of every panel, with variables at "all"."""
    found = []
    for path in sorted(DASHBOARDS.glob("*.json")):
        dashboard = json.loads(path.read_text())
        values = {
            variable["name"]: f"({'|'.join(variable['query'].split(','))})"
            for variable in dashboard["templating"]["list"]
            if variable["type"] == "custom"
        }
        for panel in _panels(dashboard["panels"]):
            for target in panel.get("targets", []):
                expression = _filled(target["expr"], values)
                found.append(Query(dashboard["uid"], panel["title"], target["refId"], expression))
    return found


def _panels(panels: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for panel in panels:
        yield panel
        yield from _panels(panel.get("panels", []))


def _filled(expression: str, values: Mapping[str, str]) -> str:
    return VARIABLE.sub(lambda match: values.get(match[1] or match[2], match[0]), expression)
