"""The hostile collection: each case is answered as documented and nothing is left behind."""

from __future__ import annotations

import pytest

from common.domain import JobEventKind, SourceKind, SourceState
from services.ingester import bombs
from tests.ingester.conftest import STACKS, Bench
from tests.ingester.hostile import ENTRY_CASES, GOOD, LAST, SOURCE_CASES


@STACKS
@pytest.mark.parametrize("case", ENTRY_CASES)
def test_one_wrong_entry_costs_only_itself(bench: Bench, case: str) -> None:
    wrong = ENTRY_CASES[case]
    source_id = bench.stored(bench.job(), SourceKind.ARCHIVE, wrong.make(), format=wrong.form)
    bench.read()

    assert bench.row(source_id).state == SourceState.DONE.value
    assert bench.rejections(source_id) == {wrong.name: wrong.code}
    recordings = bench.recordings(source_id)
    assert [r.name for r in recordings] == ["good.wav", "last.wav"]
    objects = bench.objects()
    assert [objects[r.object_key] for r in recordings] == [GOOD, LAST]
    assert bench.job_of(source_id).rejected == 1
    bench.nothing_left_behind()


@STACKS
@pytest.mark.parametrize("case", SOURCE_CASES)
def test_a_wrong_archive_fails_and_keeps_what_came_before(
    bench: Bench, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bombs, "HARMLESS_BYTES", 1 << 20)  # so that the bombs may be small
    wrong = SOURCE_CASES[case]
    job_id = bench.job()
    source_id = bench.stored(job_id, SourceKind.ARCHIVE, wrong.make(), format=wrong.form)
    bench.read()

    source = bench.row(source_id)
    assert (source.state, source.error_code) == (SourceState.FAILED.value, wrong.code)
    assert source.error_detail
    assert source.finished_at is not None
    assert len(bench.recordings(source_id)) == wrong.before
    assert bench.rejections(source_id) == {}
    (event,) = bench.events(job_id)
    assert event.kind == JobEventKind.SOURCE_FAILED.value
    assert event.data["error_code"] == wrong.code
    bench.nothing_left_behind()
