"""What a layout's reader has read of a clip, before its files are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.datasets.clips import Clip, Dataset
from common.datasets.tables import DataFolder, shown
from common.errors import DatasetInvalid, DatasetMissing


@dataclass(frozen=True)
class Draft:
    """A clip as its table or its file name tells it. ``where`` says where, for messages."""

    path: Path
    labels: tuple[str, ...]
    fold: int
    source_id: str
    where: str
    uploader: str = ""
    place: str = ""


def clips_from(drafts: Sequence[Draft], files: DataFolder, dataset: Dataset) -> list[Clip]:
    """Return the clips of ``drafts``, numbered.

    Raises:
        DatasetMissing: there are none, or audio files are missing; says how many and the first.
        DatasetInvalid: a file is named twice, or a link leads out of the data set.
    """
    if not drafts:
        raise DatasetMissing(f"{files.root} holds no clips of the layout {dataset}")
    first: dict[Path, Draft] = {}
    for draft in drafts:
        before = first.setdefault(draft.path, draft)
        if before is not draft:
            raise DatasetInvalid(
                f"{draft.where}: the file {shown(draft.path.name)} is named a second time, first "
                f"in {before.where}"
            )
    check_files(drafts, files)
    return [
        Clip(
            path=draft.path,
            label=draft.labels[0],
            dataset=dataset,
            fold=draft.fold,
            source_id=draft.source_id,
            index=index,
            labels=draft.labels,
            uploader=draft.uploader,
            place=draft.place,
        )
        for index, draft in enumerate(drafts)
    ]


def check_files(drafts: Sequence[Draft], files: DataFolder) -> None:
    """Raise DatasetMissing where audio files are missing, naming how many and the first."""
    missing = [draft for draft in drafts if not files.holds(draft.path)]
    if missing:
        raise DatasetMissing(
            f"{len(missing)} of {len(drafts)} audio files are missing, the first is "
            f"{missing[0].path} ({missing[0].where})"
        )
