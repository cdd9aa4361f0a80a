"""Where Prometheus finds the processes of a stack: their ports, and the file that lists them.

The file is in the format of Prometheus' ``file_sd_configs``, which reads it again when it changes.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from client.children import Child
from client.home import StackState

LOOPBACK = "127.0.0.1"
PORT_VARIABLE = "SOUNDMILL_METRICS_PORT"


def free_ports(count: int) -> list[int]:
    """Return loopback ports that were free a moment ago, each another."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server((LOOPBACK, 0))) for _ in range(count)]
        return [int(probe.getsockname()[1]) for probe in probes]


def watched_at(port: int) -> dict[str, str]:
    """Return the settings of a process that serves its metrics on a loopback port."""
    return {"SOUNDMILL_METRICS_HOST": LOOPBACK, PORT_VARIABLE: str(port)}


def targets(state: StackState, children: Iterable[Child]) -> list[dict[str, Any]]:
    """Return where the processes of a stack serve their metrics, named by their service."""
    found = []
    for child in children:
        service = child.name.partition("-")[0]
        port = child.environment.get(PORT_VARIABLE)
        if child.name == "gateway":
            address = state.url.removeprefix("http://")
        elif port is not None:
            address = f"{LOOPBACK}:{port}"
        else:
            continue
        found.append({"targets": [address], "labels": {"job": service}})
    return found
