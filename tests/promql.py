"""What a query of Prometheus asks for: the labels of its answer, checked all the way down.

Queries are parsed by ``promql_parser``, not by Prometheus. Every label that one names must be one
that the series has which it is asked of: a label that does not exist is no error to Prometheus, but
matches nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import promql_parser as promql

TARGET = frozenset({"job", "instance"})  # what Prometheus adds to every series it scrapes
FROM_ELSEWHERE = {
    "up": TARGET,
    "ALERTS": frozenset({"alertname", "alertstate", "severity", "stage", "job"}),
    "process_resident_memory_bytes": TARGET,
}
GRAFANA = {"$__rate_interval": "1m", "$__range": "1h", "$stage": ".*", "$job": ".*"}

Series = Mapping[str, frozenset[str]]
Labels = frozenset[str] | None  # None: a number, not a vector


class WrongQuery(AssertionError):
    """A query that cannot give what it is meant to."""


def filled(expr: str) -> str:
    """Return a query of a panel as Prometheus gets it, with everything chosen."""
    for name, value in GRAFANA.items():
        expr = expr.replace(name, value)
    if "$" in expr:
        raise WrongQuery(f"an unknown variable: {expr}")
    return expr


def exposed(metrics: Mapping[str, tuple[str, Iterable[str]]]) -> dict[str, frozenset[str]]:
    """Return the series, with their labels, of metrics given by their type and labels."""
    series = dict(FROM_ELSEWHERE)
    for name, (kind, of_its_own) in metrics.items():
        labels = TARGET | frozenset(of_its_own)
        if kind == "histogram":
            series[f"{name}_bucket"] = labels | {"le"}
            series[f"{name}_sum"] = series[f"{name}_count"] = labels
        else:
            series[name] = labels
    return series


def labels_of(expr: str, series: Series) -> Labels:
    """Return the labels of what a query answers.

    Raises:
        WrongQuery: It names a series or a label that does not exist, or matches vectors whose
            labels differ.
    """
    try:
        return _read(promql.parse(expr), series)
    except (ValueError, WrongQuery) as error:
        raise WrongQuery(f"{error}, in {expr}") from None


def _read(node: Any, series: Series) -> Labels:
    match node:
        case promql.NumberLiteral():
            return None
        case promql.ParenExpr() | promql.SubqueryExpr():
            return _read(node.expr, series)
        case promql.MatrixSelector():
            return _read(node.vector_selector, series)
        case promql.VectorSelector():
            if node.name not in series:
                raise WrongQuery(f"nobody exposes {node.name}")
            matched = {matcher.name for matcher in node.matchers.matchers}
            return _having(matched, series[node.name], node.name)
        case promql.AggregateExpr():
            return _aggregated(node, series)
        case promql.Call():
            return _called(node, series)
        case promql.BinaryExpr():
            return _combined(node, series)
    raise WrongQuery(f"{type(node).__name__} is not read here")


def _aggregated(node: Any, series: Series) -> Labels:
    inner = _vector(node.expr, series)
    if node.modifier is None:
        return inner if str(node.op) in ("topk", "bottomk") else frozenset()
    if node.modifier.type != promql.AggModifierType.By:
        raise WrongQuery("it says which labels go, not which stay")
    by = frozenset(node.modifier.labels)
    _having(by, inner, "what is aggregated")
    return by


def _called(node: Any, series: Series) -> Labels:
    match node.func.name:
        case "vector":
            return frozenset()
        case "absent":
            _vector(node.args[0], series)
            return frozenset()
        case "label_replace":
            return _vector(node.args[0], series) | {node.args[1].val}
        case "histogram_quantile":
            return _having({"le"}, _vector(node.args[1], series), "a histogram") - {"le"}
    return _vector(node.args[0], series)


def _combined(node: Any, series: Series) -> Labels:
    left, right, operator = _read(node.lhs, series), _read(node.rhs, series), str(node.op)
    if left is None or right is None:
        return right if left is None else left
    if operator == "or":
        return left | right
    matching = node.modifier.matching if node.modifier else None
    if matching is None:
        if left != right:
            raise WrongQuery(f"{sorted(left)} never match {sorted(right)}")
        return left
    if matching.type != promql.LabelModifierType.Include:
        raise WrongQuery("it says which labels are ignored, not which are matched")
    on = frozenset(matching.labels)
    _having(on, left, "the left side")
    _having(on, right, "the right side")
    return left if operator in ("and", "unless") else on


def _vector(node: Any, series: Series) -> frozenset[str]:
    labels = _read(node, series)
    if labels is None:
        raise WrongQuery("a number where series are needed")
    return labels


def _having(wanted: Iterable[str], labels: frozenset[str], whose: str) -> frozenset[str]:
    if missing := set(wanted) - labels:
        raise WrongQuery(f"{whose} has no label {', '.join(sorted(missing))}")
    return labels
