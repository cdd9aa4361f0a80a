"""Scrape configs, rules, alerts, runbooks and dashboards: each against what there really is."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

from client.cli import app
from common.domain import SERVICE_OF, RunState, Stage
from tests.promql import WrongQuery, exposed, filled, labels_of

ROOT = Path(__file__).parent.parent
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
RUNBOOKS = ROOT / "docs" / "runbooks"
SERVICES = {"gateway", "dispatcher", "ingester", *SERVICE_OF.values()}
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
RULE_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
GRID_COLUMNS = 24
RANGED = re.compile(r"\[(\d+)([mh])")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is missing (Debian: prometheus; .ci/run installs it where it may)",
)


def read_yaml(path: Path) -> Any:
    return YAML(typ="safe").load(path)


@cache
def rules() -> tuple[dict[str, Any], ...]:
    files = (read_yaml(PROMETHEUS / "rules" / f"{name}.yml") for name in ("recording", "alerts"))
    return tuple(rule for file in files for group in file["groups"] for rule in group["rules"])


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


@cache
def documented() -> dict[str, tuple[str, frozenset[str]]]:
    """Type and labels of every metric in the table of docs/metrics.md."""
    row = re.compile(
        r"^\| `(soundmill_\w+)` \| (counter|gauge|histogram) \|([^|]*)\|", re.MULTILINE
    )
    rows = row.findall((ROOT / "docs" / "metrics.md").read_text())
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


@cache
def series() -> dict[str, frozenset[str]]:
    """Every series that Prometheus holds, with its labels: scraped, then recorded."""
    known = exposed(documented())
    for rule in rules():
        if "record" in rule:
            known[rule["record"]] = labels_of(rule["expr"], known) or frozenset()
    return known


def panels(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["panels"]
    return found


SHOWN = {
    f"{path.stem}: {panel['title']}": panel
    for path in DASHBOARDS
    for panel in panels(path)
    if panel["type"] != "row"
}


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@cache
def commands() -> frozenset[str]:
    """The words that may follow `soundmill`."""
    group: Any = typer.main.get_command(app)
    return frozenset(group.commands)


# Prometheus


@needs_promtool
def test_config_beside_compose_is_valid() -> None:
    promtool("check", "config", PROMETHEUS / "prometheus.yml")


@needs_promtool
def test_config_beside_an_embedded_stack_is_valid(tmp_path: Path) -> None:
    text = (PROMETHEUS / "embedded.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(text.replace("rules/", f"{PROMETHEUS}/rules/"))
    targets = [{"targets": ["127.0.0.1:9464"], "labels": {"job": "segmenter"}}]
    (tmp_path / "metrics-targets.json").write_text(json.dumps(targets))
    promtool("check", "config", tmp_path / "prometheus.yml")


@needs_promtool
@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_rules_give_what_was_worked_out_by_hand(path: Path) -> None:
    promtool("test", "rules", path)


def test_every_service_is_scraped_under_its_name() -> None:
    jobs = read_yaml(PROMETHEUS / "prometheus.yml")["scrape_configs"]
    assert {job["job_name"] for job in jobs} == {*SERVICES, "prometheus"}
    for job in jobs[1:]:
        (names,) = job["dns_sd_configs"]
        assert names["names"] == [job["job_name"]]
        assert names["port"] == (8420 if job["job_name"] == "gateway" else 9464)


def test_every_recorded_series_is_tested() -> None:
    text = (PROMETHEUS / "tests" / "recording.yml").read_text()
    for rule in rules():
        if "record" in rule:
            assert re.search(rf"expr: .*{rule['record']}\b", text), rule["record"]


def test_every_alert_is_seen_firing_and_silent() -> None:
    fired, silent = set(), set()
    cases = [case for path in RULE_TESTS for case in read_yaml(path)["tests"]]
    for case in cases:
        for check in case.get("alert_rule_test", []):
            severities = [alert["exp_labels"]["severity"] for alert in check["exp_alerts"]]
            fired |= {(check["alertname"], severity) for severity in severities}
            if not severities:
                silent.add(check["alertname"])
    assert fired == {(alert["alert"], alert["labels"]["severity"]) for alert in alerts()}
    assert silent == {alert["alert"] for alert in alerts()}


def test_queries_of_rules_ask_for_what_there_is() -> None:
    for rule in rules():
        labels = labels_of(rule["expr"], series())
        assert labels is not None
        said = " ".join(rule.get("annotations", {}).values())
        assert set(re.findall(r"\$labels\.(\w+)", said)) <= labels, rule["alert"]


def test_alerts_say_what_is_wrong_and_how_bad_that_is() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
        assert len(alert["annotations"]["summary"]) <= 80
        waits = "for" in alert or RANGED.search(alert["expr"])
        assert waits, f"{alert['alert']} fires at the first sample"


def test_few_alerts_wake_somebody() -> None:
    paging = {alert["alert"] for alert in alerts() if alert["labels"]["severity"] == "page"}
    assert len(paging) <= 5


# Runbooks


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    names = {alert["alert"] for alert in alerts()}
    for alert in alerts():
        base = '{{ or $externalLabels.runbooks "docs/runbooks" }}'
        assert alert["annotations"]["runbook_url"] == f"{base}/{alert['alert']}.md"
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == {*names, "README"}
    index = (RUNBOOKS / "README.md").read_text()
    assert set(re.findall(r"\]\((\w+)\.md\)", index)) == names


@pytest.mark.parametrize("path", sorted(RUNBOOKS.glob("*.md")), ids=lambda path: path.stem)
def test_runbooks_name_what_exists(path: Path) -> None:
    text = path.read_text()
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (path.parent / link).is_file(), link
    for name in re.findall(r"`soundmill ([a-z]+)", text) + re.findall(
        r"^soundmill ([a-z]+)", text, re.M
    ):
        assert name in commands(), name
    known = {re.sub(r"_(bucket|sum|count)$", "", name) for name in series()} | set(series())
    for name in re.findall(r"\bsoundmill(?:_\w+|:[\w:]+)", text):
        assert name in known, name
    for query in re.findall(r"^```promql\n(.*?)^```", text, re.M | re.S):
        for line in query.strip().splitlines():
            labels_of(line, series())
    titles = {panel["title"] for path in DASHBOARDS for panel in panels(path)}
    for title in re.findall(r'panel "([^"]+)"', " ".join(text.split())):
        assert title in titles, title


@pytest.mark.parametrize("alert", sorted({alert["alert"] for alert in alerts()}))
def test_runbooks_answer_the_same_questions(alert: str) -> None:
    text = (RUNBOOKS / f"{alert}.md").read_text()
    assert text.startswith(f"# {alert}\n")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings == ["What it means", "Who is hurt", "Look first", "What to do", "Over when"]


# Grafana


def test_dashboards_are_as_generated(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-B", GRAFANA, tmp_path], check=True)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text() for path in DASHBOARDS}, (
        "run: python deploy/grafana"
    )


def test_grafana_finds_dashboards_and_their_source() -> None:
    provisioning = GRAFANA / "provisioning"
    (source,) = read_yaml(provisioning / "datasources" / "prometheus.yml")["datasources"]
    (provider,) = read_yaml(provisioning / "dashboards" / "soundmill.yml")["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    wanted = {"type": "prometheus", "uid": source["uid"]}
    for name, panel in SHOWN.items():
        assert panel["datasource"] == wanted, name
        assert all(target["datasource"] == wanted for target in panel["targets"]), name


def test_dashboards_are_what_people_look_for() -> None:
    boards = [json.loads(path.read_text()) for path in DASHBOARDS]
    titles = {"Archive operations", "Stages and devices", "Reliability"}
    assert {board["title"] for board in boards} == titles
    assert len({board["uid"] for board in boards}) == len(boards)
    assert all(board["time"] == {"from": "now-6h", "to": "now"} for board in boards)
    assert not any("id" in board for board in boards)  # Grafana gives these itself


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_lie_side_by_side(path: Path) -> None:
    numbers = [panel["id"] for panel in panels(path)]
    assert len(set(numbers)) == len(numbers)
    for panel in panels(path):
        place = panel["gridPos"]
        assert 0 <= place["x"] <= GRID_COLUMNS - place["w"], panel["title"]
    for one, other in itertools.combinations(panels(path), 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (one["title"], other["title"])


@pytest.mark.parametrize("name", SHOWN)
def test_panels_say_what_they_show_and_what_nothing_means(name: str) -> None:
    panel = SHOWN[name]
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"]
    assert 0 < len(defaults["noValue"]) <= 20
    seen, _, absent = panel["description"].partition(" No data: ")
    assert seen.endswith(".")
    assert absent.endswith(".")
    assert panel["targets"]


@pytest.mark.parametrize("name", SHOWN)
def test_queries_of_panels_ask_for_what_there_is(name: str) -> None:
    panel = SHOWN[name]
    for target in panel["targets"]:
        labels = labels_of(filled(target["expr"]), series()) or frozenset()
        legend = target["legendFormat"]
        if target["format"] == "table":
            assert target["instant"]
            assert set(columns(panel)) == labels
        else:
            assert legend != "__auto" or not labels, "series without a name in words"
            assert set(re.findall(r"\{\{(\w+)\}\}", legend)) == (labels if labels else set())
        counted = re.findall(r"(?<!\w)(rate|increase)\((\w+?)(?:\{|\[)", target["expr"])
        assert all(
            metric.endswith(("_total", "_bucket", "_sum", "_count")) for _, metric in counted
        )
        bare = re.sub(r"(rate|increase)\([^)]*\)", "", target["expr"].replace(r"\|", ""))
        assert not re.search(r"soundmill_\w+_total", bare), "a counter without a rate"


@needs_promtool
def test_prometheus_itself_understands_every_panel(tmp_path: Path) -> None:
    queries = [filled(query["expr"]) for panel in SHOWN.values() for query in panel["targets"]]
    asked = [{"record": "panel", "labels": {"n": str(n)}, "expr": q} for n, q in enumerate(queries)]
    file = tmp_path / "panels.yml"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": asked}]}))
    promtool("check", "rules", file)


def columns(panel: dict[str, Any]) -> list[str]:
    """The labels of a table, or of a chart that is made of one."""
    (transformation,) = panel["transformations"]
    options = transformation["options"]
    if transformation["id"] == "groupingToMatrix":
        return [options["rowField"], options["columnField"]]
    return [name for name in options["indexByName"] if name != "Value"]


def test_choices_of_dashboards_are_those_there_are() -> None:
    words = {"stage": {stage.value for stage in Stage}, "job": SERVICES}
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        for variable in board["templating"]["list"]:
            assert set(variable["query"].split(",")) == words[variable["name"]]
            assert f"${variable['name']}" in json.dumps(board["panels"])


def test_every_state_has_its_colour() -> None:
    chart = next(panel for panel in SHOWN.values() if panel["type"] == "barchart")
    coloured = {override["matcher"]["options"] for override in chart["fieldConfig"]["overrides"]}
    assert coloured == {state.value for state in RunState}


@pytest.mark.parametrize(
    "query",
    [
        "soundmill_stage_runz",
        'soundmill_stage_runs{stat="ready"}',
        "sum by (model) (soundmill_stage_runs)",
        "soundmill_stage_runs / soundmill_jobs",
        "soundmill_stage_runs / on (model) soundmill_model_info",
        "histogram_quantile(0.5, sum by (stage) (rate(soundmill_attempt_seconds_bucket[5m])))",
        "sum(soundmill_jobs",
    ],
)
def test_queries_that_match_nothing_are_found(query: str) -> None:
    with pytest.raises(WrongQuery):
        labels_of(query, series())
