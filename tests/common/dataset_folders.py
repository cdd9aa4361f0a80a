"""Tiny data sets in the published layouts, with the published file names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

RATE = 8_000


def tone(hz: float, seconds: float = 0.2) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)


def write_wav(path: Path, hz: float = 440.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(hz), RATE)


def write_table(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


ESC_ROWS = [
    "1-100032-A-0.wav,1,0,dog,True,100032,A",
    "2-117271-A-0.wav,2,0,dog,True,117271,A",
    "1-17367-A-10.wav,1,10,rain,True,17367,A",
    "2-102567-A-36.wav,2,36,vacuum_cleaner,False,102567,A",
    "1-19872-A-36.wav,1,36,vacuum_cleaner,False,19872,A",
    "2-82367-A-10.wav,2,10,rain,True,82367,A",
]


def esc50(root: Path, rows: list[str] = ESC_ROWS) -> Path:
    """Six clips, three classes, two folds; four clips are of ESC-10."""
    write_table(
        root / "meta" / "esc50.csv", "filename,fold,target,category,esc10,src_file,take", *rows
    )
    for number, row in enumerate(rows):
        write_wav(root / "audio" / row.split(",")[0], 200.0 + 10 * number)
    return root


US8K_ROWS = [
    "100032-3-0-0.wav,100032,0.0,0.317551,1,5,3,dog_bark",
    "100263-2-0-117.wav,100263,58.5,62.5,1,5,2,children_playing",
    "77751-3-0-1.wav,77751,0.0,1.0,1,10,3,dog_bark",
    "77751-3-0-2.wav,77751,1.0,2.0,2,10,3,dog_bark",
    "74458-2-0-0.wav,74458,0.0,4.0,1,10,2,children_playing",
]


def us8k(root: Path) -> Path:
    """Five clips, two classes, folds 5 and 10; one recording is that of an ESC clip."""
    write_table(
        root / "metadata" / "UrbanSound8K.csv",
        "slice_file_name,fsID,start,end,salience,fold,classID,class",
        *US8K_ROWS,
    )
    for number, row in enumerate(US8K_ROWS):
        name, fold = row.split(",")[0], row.split(",")[5]
        write_wav(root / "audio" / f"fold{fold}" / name, 500.0 + 10 * number)
    return root


def fsd50k(root: Path, metadata: bool = True) -> Path:
    """Two clips of train, one of val, one of eval; labels smeared upwards as published."""
    truth = root / "FSD50K.ground_truth"
    write_table(
        truth / "dev.csv",
        "fname,labels,mids,split",
        '64760,"Electric_guitar,Guitar,Music","/m/02sgy,/m/0342h,/m/04rlf",train',
        '16399,"Bark,Dog","/m/05tny_,/m/0bt9lr",train',
        '345111,"Electric_guitar,Guitar,Music","/m/02sgy,/m/0342h,/m/04rlf",val',
    )
    write_table(truth / "eval.csv", "fname,labels,mids", '37199,"Bark,Dog","/m/05tny_,/m/0bt9lr"')
    write_table(
        truth / "vocabulary.csv",
        "0,Bark,/m/05tny_",
        "1,Dog,/m/0bt9lr",
        "2,Electric_guitar,/m/02sgy",
        "3,Guitar,/m/0342h",
        "4,Music,/m/04rlf",
    )
    for number, name in enumerate(("64760", "16399", "345111")):
        write_wav(root / "FSD50K.dev_audio" / f"{name}.wav", 800.0 + 10 * number)
    write_wav(root / "FSD50K.eval_audio" / "37199.wav", 900.0)
    if metadata:
        folder = root / "FSD50K.metadata"
        folder.mkdir()
        dev = {"64760": "casual", "16399": "kennel", "345111": "casual"}
        facts = {name: {"title": "a", "uploader": who} for name, who in dev.items()}
        (folder / "dev_clips_info_FSD50K.json").write_text(json.dumps(facts))
        facts = {"37199": {"title": "b", "uploader": "other"}}
        (folder / "eval_clips_info_FSD50K.json").write_text(json.dumps(facts))
    return root
