"""Reads the deployment files as an engine would: Compose files with their variables, the stages of
the Dockerfile."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = ROOT / "docker-compose.yml"
COMPOSE_GPU = ROOT / "docker-compose.gpu.yml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
ENV_EXAMPLE = ROOT / ".env.example"

_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?::?([-?])([^}]*))?\})")


def example_variables() -> dict[str, str]:
    """Return what ``.env.example`` sets."""
    lines = ENV_EXAMPLE.read_text().splitlines()
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    return {name: value for name, _, value in pairs}


def filled_in(text: str, variables: dict[str, str]) -> str:
    """Return a text of a Compose file with its variables replaced.

    Raises:
        KeyError: a variable has neither a value nor a default.
    """

    def value(match: re.Match[str]) -> str:
        dollar, name, kind, default = match.groups()
        if dollar:
            return "$"
        if variables.get(name):
            return variables[name]
        if kind == "-":
            return str(default)
        raise KeyError(name)

    return _VARIABLE.sub(value, text)


def read_compose(path: Path = COMPOSE, variables: dict[str, str] | None = None) -> dict[str, Any]:
    """Return a Compose file with anchors merged, and variables too where they are given."""
    content: dict[str, Any] = YAML(typ="safe").load(path)
    return content if variables is None else _fill(content, variables)


def _fill(node: Any, variables: dict[str, str]) -> Any:
    if isinstance(node, str):
        return filled_in(node, variables)
    if isinstance(node, dict):
        return {key: _fill(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [_fill(value, variables) for value in node]
    return node


@dataclass(frozen=True)
class Stage:
    """What an image made from a stage of the Dockerfile says by itself."""

    environment: dict[str, str] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    user: str = ""
    ports: frozenset[int] = frozenset()


def stages() -> dict[str, Stage]:
    """Return the stages of the Dockerfile by name, each with what it takes from its base."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE.read_text()))
    found: dict[str, Stage] = {}
    name = ""
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = found.get(base, Stage())
        elif word == "ENV":
            given = dict(pair.split("=", 1) for pair in shlex.split(rest))
            found[name] = _with(found[name], environment=found[name].environment | given)
        elif word == "CMD":
            found[name] = _with(found[name], command=json.loads(rest))
        elif word == "USER":
            found[name] = _with(found[name], user=rest)
        elif word == "EXPOSE":
            found[name] = _with(found[name], ports=frozenset(map(int, rest.split())))
    return found


def _with(stage: Stage, **changes: Any) -> Stage:
    return Stage(**{**stage.__dict__, **changes})
