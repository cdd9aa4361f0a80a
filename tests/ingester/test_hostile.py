"""The hostile collection: each case is answered as documented and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.domain import JobEventKind, SourceKind, SourceState
from services.ingester import bombs
from tests.ingester.conftest import STACKS, Bench
from tests.ingester.hostile import ENTRY_CASES, GOOD, LAST, SOURCE_CASES


@STACKS
def test_one_wrong_entry_costs_only_itself(bench: Bench) -> None:
    ids = {
        case: bench.stored(bench.job(), SourceKind.ARCHIVE, wrong.make(), format=wrong.form)
        for case, wrong in ENTRY_CASES.items()
    }
    bench.read()
    objects = bench.objects()
    for case, source_id in ids.items():
        wrong = ENTRY_CASES[case]
        found = bench.rejections(source_id)
        assert (case, found) == (case, {wrong.name: wrong.code})
        assert (case, bench.row(source_id).state) == (case, SourceState.DONE.value)
        recordings = bench.recordings(source_id)
        assert [r.name for r in recordings] == ["good.wav", "last.wav"]
        assert [objects[r.object_key] for r in recordings] == [GOOD, LAST]
        assert bench.job_of(source_id).rejected == 1
    bench.nothing_left_behind()


@STACKS
def test_a_wrong_archive_fails_and_keeps_what_came_before(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bombs, "HARMLESS_BYTES", 1 << 20)  # so that the bombs may be small
    ids = {
        case: bench.stored(bench.job(), SourceKind.ARCHIVE, wrong.make(), format=wrong.form)
        for case, wrong in SOURCE_CASES.items()
    }
    bench.read()
    for case, source_id in ids.items():
        wrong = SOURCE_CASES[case]
        source = bench.row(source_id)
        found = (source.state, source.error_code, len(bench.recordings(source_id)))
        assert (case, *found) == (case, SourceState.FAILED.value, wrong.code, wrong.before)
        assert source.error_detail
        assert source.finished_at is not None
        assert bench.rejections(source_id) == {}
        (event,) = bench.events(source.job_id)
        assert event.kind == JobEventKind.SOURCE_FAILED.value
        assert event.data["error_code"] == wrong.code
    bench.nothing_left_behind()


def test_every_code_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sources.md").read_text()
    cases = [*ENTRY_CASES.values(), *SOURCE_CASES.values()]
    assert {case.code for case in cases if f"| `{case.code}` |" not in page} == set()
