"""A real Prometheus for tests: Debian's package, or ``PROMETHEUS_BIN``.

It keeps its data in one folder of its own, listens on a free loopback port, and ends with the test
run even when that is killed. Where there is none, ``find`` says so and tests are skipped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.servers import Process, ServerFailed, free_port, new_folder

TIMEOUT_S = 60.0
MISSING = (
    "there is no Prometheus here: install Debian's package (apt-get install"
    " --no-install-recommends prometheus) or name a binary with PROMETHEUS_BIN"
)


def find() -> Path | None:
    """Return the path of the Prometheus server, or None where it is not installed."""
    found = os.environ.get("PROMETHEUS_BIN") or shutil.which("prometheus")
    return Path(found) if found else None


@dataclass(frozen=True)
class Sample:
    """One value of one series."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Series:
    """The values of one series over time, each with its time in seconds since 1970."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


class QueryFailed(RuntimeError):
    """Prometheus refused an expression; the message holds its reason."""


class PrometheusServer:
    """A Prometheus with the configuration that its caller hands in."""

    def __init__(self, binary: Path) -> None:
        self.folder = new_folder("prometheus")
        self.config = self.folder / "prometheus.yml"
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"
        self._binary = binary
        self._process: Process | None = None
        self._http = httpx.Client(base_url=self.url, timeout=TIMEOUT_S, trust_env=False)

    def start(self, config: str) -> None:
        """Start with a configuration (YAML); ready to be asked on return."""
        self.config.write_text(config)
        options = {
            "config.file": str(self.config),
            "storage.tsdb.path": str(self.folder / "data"),
            "web.listen-address": self.address,
            "log.level": "warn",
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        log = self.folder / "prometheus.log"
        self._process = Process(
            [self._binary, "--web.enable-lifecycle", *arguments], log, env=dict(os.environ)
        )
        self._process.wait_until(self._is_ready)

    def reload(self, config: str) -> None:
        """Go on with another configuration. Raises ServerFailed when it is refused."""
        self.config.write_text(config)
        answer = self._http.post("/-/reload")
        if not answer.is_success:
            raise ServerFailed(f"not reloaded: {answer.text}")

    def query(self, expression: str, at: float | None = None) -> list[Sample]:
        """Return the values of an instant query; a scalar has no labels.

        Args:
            at: Seconds since 1970; None is now.

        Raises:
            QueryFailed: when it is no expression, or cannot be worked out.
        """
        data = self._ask("/api/v1/query", query=expression, time=at)
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        return [Sample(found["metric"], float(found["value"][1])) for found in data["result"]]

    def query_range(self, expression: str, start: float, end: float, step_s: float) -> list[Series]:
        """Return the values of a query from ``start`` to ``end``. Raises QueryFailed."""
        data = self._ask("/api/v1/query_range", query=expression, start=start, end=end, step=step_s)
        return _series(data)

    def samples(self, selector: str, window: str, at: float) -> list[Series]:
        """Return what was scraped of series within a window, as it was. Raises QueryFailed."""
        return _series(self._ask("/api/v1/query", query=f"{selector}[{window}]", time=at))

    def rules(self) -> list[dict[str, Any]]:
        """Return the rules of all groups, as Prometheus tells them."""
        groups = self._ask("/api/v1/rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that are pending or firing."""
        found: list[dict[str, Any]] = self._ask("/api/v1/alerts")["alerts"]
        return found

    def targets(self) -> list[dict[str, Any]]:
        """Return the targets that are scraped, each with ``health`` and ``lastError``."""
        found: list[dict[str, Any]] = self._ask("/api/v1/targets", state="active")["activeTargets"]
        return found

    def close(self) -> None:
        """Stop and remove every file."""
        self._http.close()
        if self._process is not None:
            self._process.stop()
        shutil.rmtree(self.folder)

    def _ask(self, path: str, **params: Any) -> Any:
        given = {name: value for name, value in params.items() if value is not None}
        answer = self._http.get(path, params=given)
        if not answer.is_success:
            raise QueryFailed(f"{answer.json().get('error', answer.text)}: {given}")
        return answer.json()["data"]

    def _is_ready(self) -> bool:
        try:
            return self._http.get("/-/ready").is_success
        except httpx.HTTPError:
            return False


def _series(data: Any) -> list[Series]:
    return [
        Series(found["metric"], tuple((float(at), float(v)) for at, v in found["values"]))
        for found in data["result"]
    ]
