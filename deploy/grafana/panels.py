"""Panels and dashboards as Grafana reads them (classic JSON, schema 42: Grafana 12 and later).

A panel says what it shows in which unit, and what it means when there is nothing to show.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

COLUMNS = 24
SCHEMA_VERSION = 42
DATASOURCE = {"type": "prometheus", "uid": "soundmill-prometheus"}

STAGES = ("segment", "classify", "enhance", "restore")
SERVICES = (
    "gateway",
    "dispatcher",
    "ingester",
    "segmenter",
    "classifier",
    "enhancer",
    "restorer",
)
STATE_COLOURS = {
    "blocked": "super-light-blue",
    "ready": "light-blue",
    "dispatched": "blue",
    "running": "dark-blue",
    "succeeded": "green",
    "failed": "red",
    "quarantined": "purple",
    "skipped": "orange",
    "cancelled": "text",
}
PER_STAGE = "{{stage}}"


@dataclass(frozen=True)
class Query:
    """One question to Prometheus. ``legend`` names its series in words."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """What one panel shows.

    ``about`` says what is seen, ``absent`` what it means that nothing is, ``no_value`` the same in
    a word or two. ``warn_at`` and ``bad_at`` colour values from there on.
    """

    title: str
    unit: str
    about: str
    absent: str
    no_value: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    decimals: int | None = None
    maximum: float | None = None
    warn_at: float | None = None
    bad_at: float | None = None
    falling: bool = False  # small values are the bad ones
    columns: tuple[tuple[str, str], ...] = ()  # of a table: label and heading, in order
    heading: str = ""  # of a table: what the value is

    @property
    def at_one_moment(self) -> bool:
        """Whether only the newest values are asked for, as a table."""
        return self.kind in ("table", "barchart")

    def json(self, number: int, x: int, y: int) -> dict[str, Any]:
        """Return the panel at a place of the dashboard."""
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": f"{self.about} No data: {self.absent}",
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "targets": [self._target(*numbered) for numbered in enumerate(self.queries)],
            "transformations": self._transformations(),
            "fieldConfig": {"defaults": self._defaults(), "overrides": self._overrides()},
            "options": self._options(),
        }

    def _target(self, number: int, query: Query) -> dict[str, Any]:
        moment = self.at_one_moment or "$__range" in query.expr
        return {
            "refId": chr(ord("A") + number),
            "datasource": DATASOURCE,
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "editorMode": "code",
            "format": "table" if self.at_one_moment else "time_series",
            "instant": moment,
            "range": not moment,
        }

    def _defaults(self) -> dict[str, Any]:
        steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
        limits = [(self.warn_at, "orange"), (self.bad_at, "red")]
        if self.falling:
            steps = [{"color": "red", "value": None}]
            limits = [(self.bad_at, "orange"), (self.warn_at, "green")]
        steps += [{"color": colour, "value": at} for at, colour in limits if at is not None]
        limited = len(steps) > 1
        defaults: dict[str, Any] = {
            "unit": self.unit,
            "noValue": self.no_value,
            "color": {"mode": "palette-classic"},
            "thresholds": {"mode": "absolute", "steps": steps},
        }
        if self.kind in ("timeseries", "barchart"):
            defaults["min"] = 0
        if self.kind in ("stat", "bargauge"):
            defaults["color"] = {"mode": "thresholds"}
        if self.decimals is not None:
            defaults["decimals"] = self.decimals
        if self.maximum is not None:
            defaults["max"] = self.maximum
        if self.kind == "timeseries":
            defaults["custom"] = {
                "drawStyle": "line",
                "lineWidth": 1,
                "fillOpacity": 60 if self.stacked else 10,
                "showPoints": "never",
                "spanNulls": False,
                "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
                "thresholdsStyle": {"mode": "dashed" if limited else "off"},
            }
        if self.kind == "barchart":
            defaults["custom"] = {"fillOpacity": 80, "lineWidth": 0}
        if self.kind == "state-timeline":
            defaults["color"] = {"mode": "thresholds"}
            defaults["custom"] = {"fillOpacity": 80, "lineWidth": 0}
            words = {
                "0": {"text": "not ready", "color": "red", "index": 0},
                "1": {"text": "ready", "color": "green", "index": 1},
            }
            defaults["mappings"] = [{"type": "value", "options": words}]
        return defaults

    def _overrides(self) -> list[dict[str, Any]]:
        """Give every state of a stage run its colour, wherever it is seen."""
        by_state = self.kind == "barchart" or any(q.legend == "{{state}}" for q in self.queries)
        return [
            {
                "matcher": {"id": "byName", "options": state},
                "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
            }
            for state, colour in STATE_COLOURS.items()
            if by_state
        ]

    def _transformations(self) -> list[dict[str, Any]]:
        if self.kind == "barchart":
            options = {"rowField": "stage", "columnField": "state", "valueField": "Value"}
            return [{"id": "groupingToMatrix", "options": {**options, "emptyValue": "zero"}}]
        if self.kind == "table":
            labels = [label for label, _ in self.columns]
            names = {**dict(self.columns), "Value": self.heading}
            order = {name: place for place, name in enumerate([*labels, "Value"])}
            return [
                {
                    "id": "organize",
                    "options": {
                        "excludeByName": {"Time": True},
                        "indexByName": order,
                        "renameByName": names,
                    },
                }
            ]
        return []

    def _options(self) -> dict[str, Any]:
        legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
        tooltip = {"mode": "multi", "sort": "desc"}
        newest = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        options: dict[str, dict[str, Any]] = {
            "timeseries": {"legend": legend, "tooltip": tooltip},
            "stat": {
                "reduceOptions": newest,
                "colorMode": "value",
                "graphMode": "none",
                "justifyMode": "auto",
                "orientation": "auto",
                "textMode": "auto",
            },
            "bargauge": {
                "reduceOptions": newest,
                "displayMode": "basic",
                "orientation": "horizontal",
                "showUnfilled": True,
            },
            "barchart": {
                "legend": legend,
                "tooltip": tooltip,
                "orientation": "horizontal",
                "stacking": "normal",
                "showValue": "never",
                "xField": "stage\\state",
            },
            "state-timeline": {
                "legend": legend,
                "tooltip": {"mode": "single"},
                "showValue": "never",
                "mergeValues": True,
                "rowHeight": 0.8,
            },
            "table": {
                "showHeader": True,
                "cellHeight": "sm",
                "sortBy": [{"displayName": self.heading, "desc": True}],
            },
        }
        return options[self.kind]


@dataclass(frozen=True)
class Section:
    """A row of the dashboard: panels that answer one question, laid out in lines of 24 columns."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """A choice at the top of a dashboard: one or several of known words, or all of these."""

    name: str
    label: str
    words: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        """Return the variable; at first all are chosen."""
        return {
            "name": self.name,
            "label": self.label,
            "type": "custom",
            "query": ",".join(self.words),
            "options": [],
            "current": {"text": ["All"], "value": ["$__all"]},
            "multi": True,
            "includeAll": True,
            "hide": 0,
            "skipUrlSync": False,
        }


STAGE = Variable("stage", "Stage", STAGES)
JOB = Variable("job", "Service", SERVICES)


@dataclass(frozen=True)
class Dashboard:
    """A page of Grafana."""

    uid: str
    title: str
    about: str
    sections: tuple[Section, ...]
    variables: tuple[Variable, ...] = field(default=())

    def json(self) -> dict[str, Any]:
        """Return the dashboard, its panels laid out from the top left."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.about,
            "tags": ["soundmill"],
            "schemaVersion": SCHEMA_VERSION,
            "editable": False,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-6h", "to": "now"},
            "timezone": "browser",
            "annotations": {"list": [_alerts()]},
            "links": [_others()],
            "templating": {"list": [variable.json() for variable in self.variables]},
            "panels": self._panels(),
        }

    def _panels(self) -> list[dict[str, Any]]:
        placed: list[dict[str, Any]] = []
        top = 0
        for section in self.sections:
            placed.append(_heading(section.title, len(placed) + 1, top))
            top, x, height = top + 1, 0, 0
            for panel in section.panels:
                if x + panel.width > COLUMNS:
                    top, x, height = top + height, 0, 0
                placed.append(panel.json(len(placed) + 1, x, top))
                x, height = x + panel.width, max(height, panel.height)
            top += height
        return placed


def _heading(title: str, number: int, y: int) -> dict[str, Any]:
    place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
    return {
        "id": number,
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": place,
        "panels": [],
    }


def _alerts() -> dict[str, Any]:
    """Marks in every graph where an alert fired."""
    return {
        "name": "Alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "tagKeys": "severity,stage,job",
        "step": "60s",
    }


def _others() -> dict[str, Any]:
    """Links to the other dashboards of Soundmill."""
    return {
        "title": "Soundmill",
        "type": "dashboards",
        "tags": ["soundmill"],
        "asDropdown": False,
        "includeVars": False,
        "keepTime": True,
        "targetBlank": False,
    }
