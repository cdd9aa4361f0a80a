"""Shapes of the custom resources that we use, written down from their documentation.

They hold only the fields that our manifests may use and refuse all others; they are no substitute
for the real definitions, which come with KEDA (``keda.sh/v1alpha1``) and with Prometheus Operator
(``monitoring.coreos.com/v1``).
"""

from __future__ import annotations

from typing import Any

TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
NUMBER_AS_TEXT = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?$"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def fields(required: list[str], **properties: Any) -> dict[str, Any]:
    """Return the shape of an object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def some(items: dict[str, Any]) -> dict[str, Any]:
    """Return the shape of a list that is not empty."""
    return {"type": "array", "items": items, "minItems": 1}


def resource(api_version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Return the shape of a whole object."""
    metadata = fields(["name"], name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS)
    return fields(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": api_version},
        kind={"const": kind},
        metadata=metadata,
        spec=spec,
    )


PROMETHEUS_TRIGGER = fields(
    ["type", "metadata"],
    type={"const": "prometheus"},
    name=TEXT,
    metricType={"enum": ["AverageValue", "Value"]},
    metadata=fields(
        ["serverAddress", "query", "threshold"],
        serverAddress={"type": "string", "pattern": "^https?://"},
        query=TEXT,
        threshold=NUMBER_AS_TEXT,
        activationThreshold=NUMBER_AS_TEXT,
        ignoreNullValues={"enum": ["true", "false"]},
    ),
)

SCALING_RULES = fields(
    [],
    stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
    selectPolicy={"enum": ["Max", "Min", "Disabled"]},
    policies=some(
        fields(
            ["type", "value", "periodSeconds"],
            type={"enum": ["Pods", "Percent"]},
            value={"type": "integer", "minimum": 1},
            periodSeconds={"type": "integer", "minimum": 1, "maximum": 1800},
        )
    ),
)

SCALED_OBJECT = resource(
    "keda.sh/v1alpha1",
    "ScaledObject",
    fields(
        ["scaleTargetRef", "triggers"],
        scaleTargetRef=fields(["name"], apiVersion=TEXT, kind=TEXT, name=TEXT),
        pollingInterval=COUNT,
        cooldownPeriod=COUNT,
        minReplicaCount=COUNT,
        maxReplicaCount=COUNT,
        advanced=fields(
            [],
            horizontalPodAutoscalerConfig=fields(
                [], behavior=fields([], scaleUp=SCALING_RULES, scaleDown=SCALING_RULES)
            ),
        ),
        triggers=some(PROMETHEUS_TRIGGER),
    ),
)

SELECTOR = fields(
    [],
    matchLabels=TEXTS,
    matchExpressions=some(
        fields(
            ["key", "operator"],
            key=TEXT,
            operator={"enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
            values=some(TEXT),
        )
    ),
)

POD_MONITOR = resource(
    "monitoring.coreos.com/v1",
    "PodMonitor",
    fields(
        ["selector", "podMetricsEndpoints"],
        selector=SELECTOR,
        podMetricsEndpoints=some(
            fields(
                ["port"],
                port=TEXT,
                path={"type": "string", "pattern": "^/"},
                interval={"type": "string", "pattern": r"^\d+s$"},
                relabelings=some(fields([], sourceLabels=some(TEXT), targetLabel=TEXT)),
            )
        ),
    ),
)

PROMETHEUS_RULE = resource(
    "monitoring.coreos.com/v1",
    "PrometheusRule",
    fields(
        ["groups"],
        groups=some(
            fields(
                ["name", "rules"],
                name=TEXT,
                interval=TEXT,
                rules=some(
                    {
                        **fields(
                            ["expr"],
                            record=TEXT,
                            alert=TEXT,
                            expr=TEXT,
                            labels=TEXTS,
                            annotations=TEXTS,
                            **{"for": TEXT, "keep_firing_for": TEXT},
                        ),
                        "oneOf": [{"required": ["record"]}, {"required": ["alert"]}],
                    }
                ),
            )
        ),
    ),
)

CUSTOM = {
    "ScaledObject": SCALED_OBJECT,
    "PodMonitor": POD_MONITOR,
    "PrometheusRule": PROMETHEUS_RULE,
}
