"""What Prometheus says about a run agrees with what the database says, query by query.

The whole system runs as a user starts it, watched by a real Prometheus with the shipped
configuration and rules. Every query of every panel, every recording rule and everything that an
alert looks at is compared with an oracle (``tests.e2e.panels``) that knows nothing of metrics.

The arithmetic. ``rate`` over a window W sees samples S = 0.5 s apart. Nothing is counted around
both ends of the window, so the increase from its first sample to its last, at least W - S apart, is
that of the run; extrapolated to W it is too large by a factor of W / (W - S) at most, less where a
counter began at zero. W is a minute at least, so that makes 0.8 % of the 2 % that are allowed. Each
bucket of a histogram is extrapolated for itself, so that the rank of a quantile is as inexact.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import httpx
import pytest

from client.home import Home
from common.domain import SERVICE_OF, Stage
from tests.e2e import alert_parts, oracles, panels, shipped, watched_run
from tests.e2e.conftest import Stack, start, stop
from tests.e2e.truth import Expected, Oracle, Truth
from tests.prometheus_server import MISSING, PrometheusServer, Sample, find
from tests.receiver import receiver

TOLERANCE = 0.02
SHORTEST_WINDOW_S = 60.0
MARGIN_S = 2.0  # at the beginning of the window: nothing is counted
READY_IN_S = 4.0  # until rules with another window are evaluated
SETTLED_S = 60.0
RESTARTED = Stage.CLASSIFY
PROVOKED = {"DeadlineInDanger"}
OF_THE_MACHINE = {"DiskSpaceLow"}  # whose disk may be as full as it likes


@dataclass(frozen=True)
class Watched:
    """A run that is over, and the Prometheus that watched it."""

    server: PrometheusServer
    truth: Truth

    def ask(self, expression: str) -> list[Sample]:
        """Return the value of an expression at the end of the run."""
        return self.server.query(expression, at=self.truth.until)


def targets(home: Home) -> dict[str, list[str]]:
    """Return the addresses that the stack tells, by job."""
    found: dict[str, list[str]] = {}
    for group in json.loads((home.folder / "metrics-targets.json").read_text()):
        found.setdefault(group["labels"]["job"], []).extend(group["targets"])
    return found


class Watching:
    """Prometheus beside a stack, and conditions to wait for."""

    def __init__(self, server: PrometheusServer, stack: Stack) -> None:
        self.server = server
        self.stack = stack

    def scraped_since(self, moment: float, times: int = 2) -> None:
        """Wait until everything has been scraped so often, without a miss, since a moment."""

        def enough() -> bool:
            window = shipped.duration(time.time() - moment)
            found = self.server.query(f"sum_over_time(up[{window}])")
            return bool(found) and all(sample.value >= times for sample in found)

        self.stack.until(enough)

    def settled(self) -> None:
        """Wait until what is gathered now and then tells what the database holds."""
        self.stack.until(lambda: all(self._same(*pair) for pair in GATHERED), SETTLED_S)

    def _same(self, expression: str, sql: str) -> bool:
        said = {
            (*sorted(sample.labels.values()), sample.value)
            for sample in self.server.query(expression)
        }
        held = {(*sorted(row[:-1]), row[-1]) for row in self.stack.rows(sql)}
        return said == held


GATHERED = (
    (
        "max by (stage, state) (soundmill_stage_runs) > 0",
        "SELECT stage, state, count(*) FROM stage_run GROUP BY 1, 2",
    ),
    ("max by (state) (soundmill_jobs) > 0", "SELECT state, count(*) FROM job GROUP BY 1"),
    (
        "max(soundmill_webhook_deliveries_pending)",
        "SELECT count(*) FROM webhook_delivery WHERE state = 'pending'",
    ),
    ("vector(0)", "SELECT count(*) FROM garbage"),
)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A run with something of everything, watched from before its beginning until after its end."""
    binary = find()
    if binary is None:
        pytest.skip(MISSING)
    home = Home.at(tmp_path_factory.mktemp("home"))
    server = PrometheusServer(binary)
    try:
        with receiver() as hook, pytest.MonkeyPatch.context() as patch:
            settings = {**watched_run.SETTINGS, "egress_allow": hook.authority}
            for name, value in settings.items():
                patch.setenv(f"SOUNDMILL_{name.upper()}", value)
            state = start(home)
            try:
                with httpx.Client(base_url=state.url, timeout=60, trust_env=False) as http:
                    stack = Stack(home, state, http)
                    yield watch(server, watched_run.Run(stack, hook))
            finally:
                stop(home)
    finally:
        server.close()


def watch(server: PrometheusServer, run: watched_run.Run) -> Watched:
    """Walk through the run; return what is to be compared."""
    watching = Watching(server, run.stack)
    rules = server.folder / "rules"
    shipped.write_rules(rules, window_s=None)
    addresses = targets(run.stack.home)
    config = shipped.config({**addresses, "prometheus": [server.address]}, rules)
    server.start(config)
    watching.scraped_since(time.time())
    run.warm_up()
    watching.settled()

    watching.scraped_since(time.time())
    since = time.time()  # nothing is counted for a while from here
    watching.scraped_since(since, times=math.ceil(MARGIN_S / shipped.INTERVAL_S))
    run.main_job()
    watching.scraped_since(time.time())
    run.restart_worker(RESTARTED)
    run.stack.until(lambda: all_up(server))
    run.second_job()
    run.broken_job()
    run.waiting_job()
    run.late_job()
    run.given_up_jobs()
    run.stack.until(lambda: time.time() > since + SHORTEST_WINDOW_S)
    watching.settled()
    watching.scraped_since(time.time())

    until = rules_over_the_run(server, config, since)
    run.stack.until(lambda: time.time() >= until)
    watching.scraped_since(until)
    return Watched(
        server,
        Truth(
            run.stack,
            run.told,
            since=since,
            until=until,
            targets=addresses,
            server=server,
        ),
    )


def rules_over_the_run(server: PrometheusServer, config: str, since: float) -> float:
    """Have rules look at the whole run; return the moment at which their windows begin with it.

    They are evaluated twice a second with windows of one length, so those before and after that
    moment begin a little before and after the run, in its margin.
    """
    for _ in range(10):
        began = time.time()
        window_s = math.ceil((began + READY_IN_S - since) / shipped.INTERVAL_S) * shipped.INTERVAL_S
        shipped.write_rules(server.folder / "rules", window_s)
        server.reload(config)
        while time.time() < since + window_s:
            evaluated = {datetime.fromisoformat(rule["lastEvaluation"]) for rule in server.rules()}
            if min(evaluated).timestamp() > began + shipped.INTERVAL_S:
                return since + window_s
            time.sleep(0.05)
    pytest.fail("the rules were never evaluated in time")


def all_up(server: PrometheusServer) -> bool:
    """Whether everything answered when it was asked last."""
    return all(sample.value == 1.0 for sample in server.query("up"))


def disagreements(found: list[Sample], expected: Expected | Oracle, truth: Truth) -> list[str]:
    """Return in words where Prometheus and the truth differ."""
    if not isinstance(expected, Expected):
        expected = Expected(expected)
    if expected.absent:
        return [f"{sample} although {expected.absent}" for sample in found]
    said = {
        frozenset(
            (name, value) for name, value in sample.labels.items() if name != "__name__"
        ): sample.value
        for sample in found
        if not math.isnan(sample.value)  # a quantile of nothing
    }
    held = expected.oracle(truth)
    if not said:
        return ["no data"]
    if not expected.quiet and not any(held.values()):
        return ["the run has nothing of it: nothing is proven"]
    keys = {*said, *held}
    if expected.most is not None:
        assert len(said) == min(expected.most, len(held)), said
        keys = set(said)
    return [
        f"{dict(sorted(key))}: Prometheus says {said.get(key)}, in truth {held.get(key)}"
        for key in sorted(keys, key=sorted)
        if not agree(
            said.get(key, math.nan if held.get(key) else 0.0),
            held.get(key, 0.0),
            expected.slack(truth, key),
        )
    ]


def agree(said: float, held: float, slack: float) -> bool:
    """Whether a value is near enough. What the truth does not name has to be 0."""
    return abs(said - held) <= TOLERANCE * abs(held) + slack


QUERIES = shipped.queries()
RULES = shipped.rules()
ALERTS = [rule for rule in RULES if rule.severity]
RECORDED = [rule for rule in RULES if not rule.severity]


def test_everything_was_scraped_and_a_worker_was_seen_to_restart(watched: Watched) -> None:
    window = shipped.duration(watched.truth.window_s)
    services = {*watched.truth.targets, "prometheus"}
    assert {sample.labels["job"] for sample in watched.ask("up == 1")} == services
    assert not watched.ask("up == 0")
    missed = {sample.labels["job"] for sample in watched.ask(f"min_over_time(up[{window}]) == 0")}
    assert SERVICE_OF[RESTARTED] in missed
    assert all(target["health"] == "up" for target in watched.server.targets())


def test_every_query_has_an_oracle() -> None:
    assert {query.key for query in QUERIES} == set(panels.PANELS)
    assert {rule.name for rule in RECORDED} == set(oracles.RULES)


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: "/".join(query.key))
def test_every_panel_agrees_with_the_truth(watched: Watched, query: shipped.Query) -> None:
    found = watched.ask(query.over(watched.truth.window_s))
    assert not disagreements(found, panels.PANELS[query.key], watched.truth), query


@pytest.mark.parametrize("rule", RECORDED, ids=lambda rule: rule.name)
def test_every_recording_rule_agrees_with_the_truth(watched: Watched, rule: shipped.Rule) -> None:
    expected = oracles.RULES[rule.name]
    written = shipped.windowed(rule.expression, watched.truth.window_s)
    for expression in (rule.name, written):
        assert not disagreements(watched.ask(expression), expected, watched.truth), expression


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule.name}-{rule.severity}")
def test_every_alert_looks_at_the_truth(watched: Watched, rule: shipped.Rule) -> None:
    rest = shipped.FIXED_WINDOW.sub("[W]", " ".join(rule.expression.split()))
    looked_at = 0
    for part in sorted(alert_parts.PARTS, key=len, reverse=True):
        if part in rest:
            rest = rest.replace(part, "")
            expression = part.replace("[W]", f"[{shipped.duration(watched.truth.window_s)}]")
            found = watched.ask(expression)
            assert not disagreements(found, alert_parts.PARTS[part], watched.truth), expression
            looked_at += 1
    assert looked_at
    assert not re.search(r"soundmill|\bup\b", rest), rest


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule.name}-{rule.severity}")
def test_no_alert_has_a_reason_but_those_given(watched: Watched, rule: shipped.Rule) -> None:
    found = watched.ask(rule.expression)
    if rule.name not in OF_THE_MACHINE:
        assert bool(found) == (rule.name in PROVOKED), found


def test_alerts_do_not_fire_before_their_time(watched: Watched) -> None:
    told = {(alert["labels"]["alertname"], alert["state"]) for alert in watched.server.alerts()}
    told = {(name, state) for name, state in told if name not in OF_THE_MACHINE}
    assert told == {(name, "pending") for name in PROVOKED}
    rules = watched.server.rules()
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
    assert len(rules) == len(RULES)
