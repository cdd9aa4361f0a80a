"""What this machine allows a process to do."""

from __future__ import annotations

import resource
from collections.abc import Iterator

from client.doctor.sections import warning
from common.checks import Check
from common.checks.base import ok

FEW_DESCRIPTORS = 1024  # uploads, downloads and their connections to the store take two each


def checks() -> Iterator[Check]:
    """Yield the limits of this process: those of the others are most likely the same."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= FEW_DESCRIPTORS:
        yield ok("open_files", "any number" if limit == resource.RLIM_INFINITY else f"{limit:,}")
    else:
        advice = "Raise it: `ulimit -n 65536`, LimitNOFILE in systemd, ulimits in Compose."
        yield warning("open_files", f"at most {limit:,}, which a busy gateway uses up", advice)
