"""Is it well? What a process leans on, looked at with real questions.

``Checker`` asks database, Redis, object store and disks side by side and keeps the answer for a few
seconds: readiness and metrics of every process come from it, ``start.require`` and ``soundmill
doctor`` too. A secret is never part of an answer.
"""

from __future__ import annotations

from common.checks.base import Check as Check
from common.checks.base import Clock as Clock
from common.checks.base import Disk as Disk
from common.checks.base import Report as Report
from common.checks.base import Status as Status
from common.checks.checker import ALL_PARTS as ALL_PARTS
from common.checks.checker import Checker as Checker
from common.checks.checker import run as run
