"""Writes the dashboards: ``python deploy/grafana``, after a change to the Python files beside it.

A folder may be named to write to; else it is ``dashboards`` beside this file.
"""

import json
import sys
from pathlib import Path

import operations
import reliability
import stages

BOARDS = {
    "archive-operations": operations.BOARD,
    "stages-and-devices": stages.BOARD,
    "reliability": reliability.BOARD,
}

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "dashboards"
for name, board in BOARDS.items():
    text = json.dumps(board.json(), indent=2, ensure_ascii=False)
    (folder / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
