"""The segmenter: contract suite, losses and targets by hand, regions, odd recordings."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from common import checkpoint
from common.datasets import Clip
from common.domain import ArtifactKind, Region
from common.errors import AudioEmpty, WeightsInvalid
from common.masks import MASK_BANDS, MASK_HOP_S, EmbeddingReader, MaskReader
from common.mel import mel_edges_hz
from common.params import SegmentParams
from common.soundscapes import Cast, PlacedEvent, Soundscape
from common.stage_io import StageInput, StageOutput
from common.training import FitConfig, fit
from services.segmenter.config import CHUNK_SAMPLES, HOP_SAMPLES, OVERLAP_SAMPLES, SegmenterConfig
from services.segmenter.data import (
    BatchMaker,
    ExampleMaker,
    Powers,
    Spectra,
    targets_of,
    weights_of,
)
from services.segmenter.infer import LoadedSegmenter, load, process, segment, windows_of
from services.segmenter.losses import ClassLoss, SegmenterLoss, WeightedBceLoss, presence_loss
from services.segmenter.model import Segmenter, front_end
from services.segmenter.regions import RegionFinder

RATE = 32_000
SMALL = SegmenterConfig(
    heights=(3, 3), inner=(8, 8), outer=(16, 16), dilated_from=1, contrast_frames=11
)


class ArrayBank:
    """A ClipBank of one siren and one rain, both synthetic."""

    sample_rate = RATE

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        time_s = np.arange(RATE) / RATE
        self.clips = [
            Clip(Path(f"{label}.wav"), label, "us8k", 1, label, index)
            for index, label in enumerate(("siren", "rain"))
        ]
        self._arrays = [
            (0.4 * np.sin(2 * np.pi * 1500.0 * time_s)).astype(np.float32),
            0.1 * rng.standard_normal(2 * RATE).astype(np.float32),
        ]

    def waveform(self, clip: Clip) -> np.ndarray:
        return self._arrays[clip.index].copy()


def batches(config: SegmenterConfig, batch_size: int = 2) -> BatchMaker:
    bank = ArrayBank()
    cast = Cast((bank.clips[0],), (bank.clips[1],))
    return BatchMaker(ExampleMaker(bank, cast, config, 0), config, batch_size, fresh_per_batch=2)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> LoadedSegmenter:
    """A small network with chance weights, stored and loaded again."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    checkpoint.save(path, SMALL.to_json(), Segmenter(SMALL))
    return load("cpu", path)


@pytest.fixture(scope="module")
def shipped() -> LoadedSegmenter:
    return load("cpu")


def noise(samples: int, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(samples)
    return (0.1 * rng.standard_normal((channels, samples))).astype(np.float32)


def run(
    loaded: LoadedSegmenter, folder: Path, waveform: np.ndarray, rate: int = RATE
) -> tuple[StageOutput, StageInput]:
    """Process a waveform (C, n)."""
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / "in.wav", waveform.T, rate, subtype="FLOAT")
    scratch = folder / "scratch"
    scratch.mkdir()
    item = StageInput("in.wav", folder / "in.wav", SegmentParams(), {}, scratch)
    return process(loaded, item), item


# Contract suite


@pytest.mark.parametrize("n_frames", [1, 31, 33, 501])
def test_keeps_length(n_frames: int) -> None:
    model = Segmenter(SegmenterConfig()).eval()
    with torch.inference_mode():
        found = model(torch.randn(2, MASK_BANDS, n_frames))
        assert found.mask_logits.shape == (2, MASK_BANDS, n_frames)
        assert found.embedding.shape == (2, 8, MASK_BANDS // 2, -(-n_frames // 2))
        assert found.side_logits == ()
        assert found.presence_logits is None
        assert model.class_logits(found.embedding).shape[1] == len(model.config.labels)
    assert 300_000 < sum(weight.numel() for weight in model.parameters()) < 650_000


def test_overfits_one_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batch = {
        "features": torch.randn(2, MASK_BANDS, 64),
        "mask": torch.zeros(2, MASK_BANDS, 64),
        "weight": torch.ones(2, MASK_BANDS, 64),
        "class_mask": torch.zeros(2, len(SMALL.labels), 64, 32),
    }
    for item, (bands, label) in enumerate(((slice(20, 60), 3), (slice(70, 120), 7))):
        batch["features"][item, bands, 16:40] += 4.0
        batch["mask"][item, bands, 16:40] = 1.0
        batch["class_mask"][item, label, bands.start // 2 : bands.stop // 2, 8:20] = 1.0
    loss = SegmenterLoss()
    model = Segmenter(SMALL)
    before = {name: value.item() for name, value in loss(model, batch).items()}
    config = FitConfig(steps=150, lr=1e-2, ema_decay=0.9)
    result = fit(model, iter(lambda: batch, None), loss, config, tmp_path)
    after = {name: value.item() for name, value in loss(result.ema_model.train(), batch).items()}
    assert after["dice"] < 0.25 * before["dice"]
    assert after["bce"] < 0.5 * before["bce"]
    assert after["class"] < 0.3 * before["class"]


def test_gradients_are_finite_even_for_silence_and_overload() -> None:
    model = Segmenter(SegmenterConfig())
    waveforms = torch.stack([torch.zeros(40_960), 8.0 * torch.sign(torch.randn(40_960))])
    features = front_end()(waveforms)[..., :64]
    batch = {
        "features": features,
        "mask": torch.rand(2, MASK_BANDS, 64),
        "weight": torch.ones(2, MASK_BANDS, 64),
        "class_mask": torch.rand(2, len(model.config.labels), 64, 32),
    }
    SegmenterLoss()(model, batch)["total"].backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name


def test_checkpoint_round_trip_and_folded_norms(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Segmenter(SMALL)
    features = torch.randn(4, MASK_BANDS, 64)
    model.train()(features)  # moves the running statistics away from their start
    checkpoint.save(tmp_path / "w.safetensors", SMALL.to_json(), model)
    loaded = load("cpu", tmp_path / "w.safetensors")
    assert loaded.config == SMALL
    with torch.inference_mode():
        expected, found = model.eval()(features), loaded.model(features)
    torch.testing.assert_close(found.mask_logits, expected.mask_logits, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.embedding, expected.embedding, atol=1e-4, rtol=1e-3)


def test_foreign_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(WeightsInvalid):
        load("cpu", path)
    checkpoint.save(path, {"unknown": 1}, Segmenter(SMALL))
    with pytest.raises(WeightsInvalid, match="another model"):
        load("cpu", path)
    wider = dataclasses.replace(SMALL, outer=(16, 32))
    checkpoint.save(path, wider.to_json(), Segmenter(SMALL))
    with pytest.raises(WeightsInvalid):
        load("cpu", path)


# Losses and targets


def test_weighted_bce_by_hand() -> None:
    logits = torch.tensor([0.0, 0.0, 20.0])
    loss = WeightedBceLoss()(logits, torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, 3.0, 4.0]))
    assert loss.item() == pytest.approx(np.log(2.0) / 2.0, abs=1e-6)


def test_class_loss_by_hand() -> None:
    logits = torch.full((1, 2, 1, 2), -20.0)
    target = torch.zeros(1, 2, 1, 2)
    weight = torch.ones(1, 1, 2)
    assert ClassLoss()(logits, target, weight).item() == pytest.approx(0.0, abs=1e-6)
    target[0, 1] = 1.0
    # cross-entropy: 20 nats in both pixels; Dice: extent 2, no overlap, smoothed by 1: 1 - 1 / 3
    assert ClassLoss()(logits, target, weight).item() == pytest.approx(20.0 + 2.0 / 3.0, abs=1e-4)


def test_presence_loss_by_hand() -> None:
    class_mask = torch.zeros(1, 2, 3, 4)
    class_mask[0, 1, 2, 3] = 0.9  # class 1 sounds in the second of two cells
    logits = torch.tensor([[[0.0, 0.0], [-20.0, 20.0]]])
    # class 0: ln 2 in both cells; class 1 is right
    assert presence_loss(logits, class_mask).item() == pytest.approx(np.log(2.0), abs=1e-6)


def scape_of(
    events: tuple[PlacedEvent, ...], background_labels: tuple[str, ...] = ()
) -> Soundscape:
    background = noise(RATE)[0]
    mixture = background + sum(event.stem for event in events)
    return Soundscape(RATE, mixture, background, background_labels, events)


def test_event_powers_equal_those_of_the_whole_stem() -> None:
    for start, length in ((0, 500), (7777, 3000), (30_000, 2000)):
        segment_of = noise(length)[0]
        onset_s, offset_s = start / RATE, (start + length) / RATE
        event = PlacedEvent(("dog",), onset_s, offset_s, 0.0, segment_of, start, RATE)
        powers = Spectra()(scape_of((event,)))
        whole = front_end().power(torch.from_numpy(event.stem[None]))[0]
        torch.testing.assert_close(powers.events[0], whole, atol=1e-4, rtol=1e-3)


def test_targets_by_hand() -> None:
    dog = PlacedEvent(("dog",), 0.0, 1.0, 0.0, noise(100)[0], 0, RATE)
    scape = scape_of((dog, dog), ("rain",))
    power = torch.zeros(MASK_BANDS, 4)
    power[:, 0] = 0.5
    background = torch.full((MASK_BANDS, 4), 3.0)
    powers = Powers(background + 2 * power, background, (power, power))
    labels = ("dog", "rain", "siren")
    targets = targets_of(scape, powers, labels)
    assert targets.mask[0, 0].item() == pytest.approx(0.5, abs=1e-4)  # sqrt(1 / 4)
    assert targets.mask[0, 1].item() == 0.0
    assert set(targets.class_masks) == {0, 1}
    # over two by two pixels: 1 of 7
    assert targets.class_masks[0][0, 0].item() == pytest.approx((1 / 7) ** 0.5, abs=1e-4)
    assert targets.class_masks[1][0, 0].item() == pytest.approx((6 / 7) ** 0.5, abs=1e-4)


def test_small_events_weigh_more() -> None:
    click, long = torch.zeros(MASK_BANDS, 200), torch.zeros(MASK_BANDS, 200)
    click[:, 20:23] = 1.0
    long[:, 50:150] = 1.0
    dog = PlacedEvent(("dog",), 0.0, 1.0, 0.0, noise(100)[0], 0, RATE)
    powers = Powers(click + long + 1e-3, torch.full_like(click, 1e-3), (click, long))
    weight = weights_of(targets_of(scape_of((dog, dog)), powers, ("dog",)))
    assert weight[64, 21].item() == pytest.approx(3000 / (3 * MASK_BANDS), rel=1e-3)
    assert weight[64, 25].item() == weight[64, 21].item()  # its surroundings
    assert weight[64, 40].item() == 1.0
    assert weight[64, 100].item() == 0.5


def test_batches_fit_together() -> None:
    batch = next(batches(SegmenterConfig(), 3))
    assert batch["features"].shape == batch["mask"].shape == batch["weight"].shape
    assert batch["class_mask"].shape[:2] == (3, 20)
    assert all(torch.isfinite(tensor).all() for tensor in batch.values())
    for name in ("mask", "class_mask"):
        assert 0.0 <= batch[name].min() <= batch[name].max() <= 1.0


# Regions


def band_mask(n_frames: int, *parts: tuple[int, int, float]) -> np.ndarray:
    mask = np.zeros((MASK_BANDS, n_frames), np.float32)
    for first, stop, value in parts:
        mask[40:50, first:stop] = value
    return mask


def find(mask: np.ndarray, params: SegmentParams, step: int) -> list[Region]:
    finder = RegionFinder(params)
    for start in range(0, mask.shape[1], step):
        finder.add(mask[:, start : start + step])
    return finder.finish(mask.shape[1] * MASK_HOP_S)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_hysteresis_by_hand(step: int) -> None:
    mask = band_mask(
        300,
        (50, 60, 0.4), (60, 70, 0.9),  # starts low, rises: one region
        (100, 110, 0.4),  # never rises: none
        (200, 210, 0.9), (215, 220, 0.8),  # 0.1 s apart: merged
        (295, 300, 0.9),  # open at the end
    )  # fmt: skip
    edges_hz = mel_edges_hz(MASK_BANDS, 0.0, 16_000.0)
    regions = find(mask, SegmentParams(margin_s=0.05), step)
    times = [(region.onset_s, region.offset_s) for region in regions]
    assert times == [(0.94, 1.44), (3.94, 4.44), (5.84, 6.0)]
    assert regions[0].low_hz == pytest.approx(edges_hz[40], abs=0.1)
    assert regions[0].high_hz == pytest.approx(edges_hz[51], abs=0.1)
    assert regions[0].confidence == pytest.approx(0.65, abs=1e-4)


def test_regions_never_overlap() -> None:
    rng = np.random.default_rng(0)
    mask = np.repeat(rng.random((1, 400)), MASK_BANDS, axis=0).astype(np.float32)
    for gap_s, margin_s in ((0.0, 0.0), (0.0, 0.1), (0.2, 0.1)):
        regions = find(mask, SegmentParams(merge_gap_s=gap_s, margin_s=margin_s), 50)
        assert regions
        for one, two in itertools.pairwise(regions):
            assert one.offset_s < two.onset_s
    assert find(band_mask(10), SegmentParams(), 10) == []


# Streaming


@pytest.mark.parametrize(
    "samples",
    [1, HOP_SAMPLES, CHUNK_SAMPLES, CHUNK_SAMPLES + 1, 2 * CHUNK_SAMPLES - OVERLAP_SAMPLES + 641],
)
def test_pieces_add_up(small: LoadedSegmenter, samples: int) -> None:
    pieces = list(segment(small, windows_of([noise(samples)])))
    n_frames = sum(piece.mask.shape[1] for piece in pieces)
    assert n_frames == samples // HOP_SAMPLES + 1
    assert sum(piece.embedding.shape[2] for piece in pieces) == -(-n_frames // 2)


def test_batched_windows_give_the_same(small: LoadedSegmenter) -> None:
    audio = noise(3 * CHUNK_SAMPLES)
    audio[:, CHUNK_SAMPLES : 2 * CHUNK_SAMPLES + 10] = 0.0
    one, many = (
        np.concatenate([p.mask for p in segment(variant, windows_of([audio]))], axis=1)
        for variant in (small, dataclasses.replace(small, batch_size=4))
    )
    np.testing.assert_allclose(one, many, atol=1e-5)


def test_chunked_is_near_whole(shipped: LoadedSegmenter) -> None:
    audio = noise(2 * CHUNK_SAMPLES)
    audio[:, ::4000] += 0.8
    chunked = np.concatenate([p.mask for p in segment(shipped, windows_of([audio]))], axis=1)
    with torch.inference_mode():
        features = shipped.front_end(torch.from_numpy(audio))
        whole = torch.sigmoid(shipped.model(features).mask_logits)[0].numpy()
    assert np.abs(chunked - whole).mean() < 0.01


# Recordings


def test_outputs_of_a_recording(shipped: LoadedSegmenter, tmp_path: Path) -> None:
    rate = 44_100
    waveform = 0.1 * noise(5 * rate, 2)
    time_s = np.arange(rate) / rate
    waveform[:, 2 * rate : 3 * rate] += 0.3 * np.sin(2 * np.pi * 1200.0 * time_s)
    output, item = run(shipped, tmp_path, waveform.astype(np.float32), rate)
    assert output.audio.duration_s == pytest.approx(5.0)
    assert output.audio.channels == 2
    assert set(item.phases.seconds) == {"decode", "infer", "encode"}
    with MaskReader(output.files[ArtifactKind.MASK].path) as mask:
        assert mask.n_frames == 251
        tone, before = mask.read(2.2, 2.8), mask.read(0.5, 1.5)
        band = int(np.argmin(np.abs(mask.centres_hz - 1200.0)))
        assert tone[band].mean() > before[band].mean() + 0.3
        density = mask.frames(0, 251).mean()
        assert output.result["density"] == pytest.approx(density, abs=3e-3)
    with EmbeddingReader(output.files[ArtifactKind.EMBEDDING].path) as embedding:
        assert embedding.n_frames == 126
        assert embedding.labels == shipped.config.labels
        assert embedding.class_mask("siren", 0.0, 5.0).shape == (64, 125)
    regions = json.loads(output.files[ArtifactKind.REGIONS].path.read_text())["regions"]
    assert output.result["regions"] == len(regions) >= 1
    for region in regions:
        checked = Region(**region)
        assert 0.0 <= checked.onset_s < checked.offset_s <= 5.0
        assert 0.0 <= checked.low_hz < checked.high_hz <= 16_000.0
        assert 0.0 <= checked.confidence <= 1.0


@pytest.mark.parametrize(
    ("name", "waveform", "rate"),
    [
        ("one sample", np.full((1, 1), 0.5, np.float32), 48_000),
        ("shorter than a window", noise(300), 8_000),
        ("constant", np.full((1, 48_000), 0.9, np.float32), 48_000),
        ("clipped", np.sign(noise(48_000)), 48_000),
        ("64 channels", noise(8_000, 64), 16_000),
        ("lowest rate", noise(4_000), 2_000),
        ("high rate", noise(96_000), 192_000),
        ("not finite", np.where(np.arange(16_000) % 100 == 0, np.nan, noise(16_000)), 16_000),
    ],
)
def test_odd_recordings(
    shipped: LoadedSegmenter, tmp_path: Path, name: str, waveform: np.ndarray, rate: int
) -> None:
    output, _ = run(shipped, tmp_path, waveform, rate)
    n_analysed = round(waveform.shape[1] * 32_000 / rate)
    with MaskReader(output.files[ArtifactKind.MASK].path) as mask:
        assert mask.n_frames == n_analysed // HOP_SAMPLES + 1, name
        assert np.isfinite(mask.frames(0, mask.n_frames)).all()
    assert 0.0 <= output.result["density"] <= 1.0


def test_silence_is_exactly_nothing(shipped: LoadedSegmenter, tmp_path: Path) -> None:
    silent, _ = run(shipped, tmp_path / "silent", np.zeros((1, 30 * RATE), np.float32))
    assert silent.result == {"regions": 0, "density": 0.0}
    with EmbeddingReader(silent.files[ArtifactKind.EMBEDDING].path) as embedding:
        for label in embedding.labels:
            assert embedding.class_mask(label, 0.0, 30.0).max() < 0.5
    partly = np.concatenate([noise(5 * RATE), np.zeros((1, 10 * RATE), np.float32)], axis=1)
    output, _ = run(shipped, tmp_path / "partly", partly)
    with MaskReader(output.files[ArtifactKind.MASK].path) as mask:
        assert not mask.read(5.1, 15.0).any()


def test_no_samples(shipped: LoadedSegmenter, tmp_path: Path) -> None:
    with pytest.raises(AudioEmpty):
        run(shipped, tmp_path, np.zeros((1, 0), np.float32))
    assert not list((tmp_path / "scratch").iterdir())
