"""The restorer: its two models, the rule of removal, regions and streaming."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from common import checkpoint
from common.domain import Event
from common.errors import WeightsInvalid
from common.labels import LABELS
from common.training import FitConfig, fit
from services.restorer import infer
from services.restorer.config import (
    INPAINTER_FILE,
    RAYLEIGH_LOG_STD,
    RECOGNISER_FILE,
    InpainterConfig,
    RecogniserConfig,
)
from services.restorer.fill import Expected, gain_of, restore_channel
from services.restorer.infer import LoadedRestorer
from services.restorer.listen import probabilities
from services.restorer.losses import FillLoss, PartiallyLabelledBce, recogniser_target
from services.restorer.model import Fill, Inpainter, Recogniser, heard
from services.restorer.prior import interpolate_in_time, known_weight
from services.restorer.regions import plan_windows, wanted_regions
from services.restorer.spectrum import (
    Grid,
    analyse,
    position_noise,
    settle_phase,
    standardised_log,
    synthesise,
)
from services.restorer.stream import cut

TINY_RECOGNISER = RecogniserConfig(channels=(16, 16, 16, 16), hidden=8, threshold=0.0)
TINY_INPAINTER = InpainterConfig(width=4, deep_width=4, dilations=(1, 2))
LABEL = "siren"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Recogniser


def test_recogniser_has_one_output_per_label_and_none() -> None:
    model = Recogniser(TINY_RECOGNISER).eval()
    log_mel = model.features(torch.zeros(3, 16_000))
    assert log_mel.shape == (3, 64, 51)
    logits = model(log_mel)
    assert logits.shape == (3, len(LABELS) + 1)
    assert heard(logits).shape == (3, len(LABELS))


def test_recogniser_overfits_one_batch_with_finite_gradients(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Recogniser(replace(TINY_RECOGNISER, hidden=16))
    waveforms = torch.randn(6, 16_000, generator=_generator()) * 0.1
    time = torch.arange(16_000) / 32_000
    for index in range(6):
        waveforms[index] += torch.sin(2 * math.pi * 400 * 2**index * time)
    target = torch.nn.functional.one_hot(torch.arange(6), len(LABELS) + 1).float()
    with torch.no_grad():
        log_mel = model.features(waveforms)
    bce = PartiallyLabelledBce()

    def losses(module: Recogniser, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"total": bce(module(batch), target, torch.ones_like(target))}

    first = losses(model, log_mel)["total"]
    first.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
    model.dropout.p = 0.0
    result = fit(model, iter([log_mel] * 60), losses, FitConfig(60, lr=1e-2), tmp_path)
    assert result.steps == 60
    model.eval()
    assert losses(model, log_mel)["total"].item() < 0.2 * first.item()


def test_recogniser_hears_any_length() -> None:
    model = Recogniser(TINY_RECOGNISER).eval()
    for samples in (0, 1, 100, 40_000, 300_001):
        values = probabilities(model, np.zeros(samples, np.float32))
        assert values.shape == (len(LABELS),)
        assert np.isfinite(values).all()


def test_heard_needs_the_label_and_that_there_is_something() -> None:
    logits = torch.full((1, len(LABELS) + 1), -20.0)
    logits[0, 2] = 20.0
    assert heard(logits)[0, 2].item() == pytest.approx(1.0)
    logits[0, -1] = 20.0
    assert heard(logits)[0, 2].item() == pytest.approx(0.0, abs=1e-6)


# Inpainter


def _prior(shape: tuple[int, int, int]) -> Fill:
    return Fill(torch.randn(shape, generator=_generator(1)), torch.zeros(shape))


@pytest.mark.parametrize("bins_frames", [(257, 50), (513, 33), (33, 7), (9, 1)])
def test_untrained_inpainter_returns_the_prior(bins_frames: tuple[int, int]) -> None:
    model = Inpainter(TINY_INPAINTER).eval()
    shape = (2, *bins_frames)
    prior = _prior(shape)
    replaced = torch.ones(shape)
    fill = model(torch.zeros(shape), replaced, prior, replaced, torch.zeros(2))
    torch.testing.assert_close(fill.mean, prior.mean)
    torch.testing.assert_close(fill.log_variance, prior.log_variance)


def test_inpainter_does_not_see_what_it_replaces() -> None:
    model = Inpainter(TINY_INPAINTER).eval()
    torch.nn.init.normal_(model.head.weight, generator=_generator())
    shape = (1, 64, 40)
    replaced = torch.zeros(shape)
    replaced[:, 10:50, 10:30] = 1.0
    prior = _prior(shape)
    level = torch.randn(shape, generator=_generator(2))
    other = torch.where(replaced > 0, level + 5.0, level)
    fills = [model(x, replaced, prior, replaced, torch.zeros(1)).mean for x in (level, other)]
    torch.testing.assert_close(fills[0], fills[1])


def test_inpainter_overfits_one_batch_with_finite_gradients(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Inpainter(replace(TINY_INPAINTER, width=12, deep_width=16))
    shape = (2, 64, 32)
    target = torch.linspace(-1, 1, 64)[None, :, None].expand(shape).contiguous()
    replaced = torch.zeros(shape)
    replaced[:, :, 8:24] = 1.0
    prior = Fill(torch.zeros(shape), torch.zeros(shape))
    loss = FillLoss()

    def losses(module: Inpainter, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        fill = module(batch, replaced, prior, replaced, torch.zeros(2))
        return loss(fill, batch, replaced)

    first = losses(model, target)["total"]
    first.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
    fit(model, iter([target] * 120), losses, FitConfig(120, lr=1e-2), tmp_path)
    assert losses(model, target)["total"].item() < first.item() - 1.0


# Losses


def test_partially_labelled_bce_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, 50.0]])
    target = torch.tensor([[1.0, 0.0, 0.0]])
    known = torch.tensor([[1.0, 1.0, 0.0]])
    assert PartiallyLabelledBce()(logits, target, known).item() == pytest.approx(math.log(2.0))


def test_fill_loss_by_hand() -> None:
    # error 2, variance 1: 2 nats; every patch is off by 2 nepers
    zeros = torch.zeros(1, 16, 16)
    losses = FillLoss(level_weight=0.5)(Fill(zeros + 2.0, zeros), zeros, torch.ones(1, 16, 16))
    assert losses["likelihood"].item() == pytest.approx(2.0)
    assert losses["level"].item() == pytest.approx(2.0, rel=1e-3)
    assert losses["total"].item() == pytest.approx(3.0, rel=1e-3)


def test_fill_loss_sees_only_the_holes() -> None:
    zeros, weight = torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)
    weight[:, :, :8] = 1.0
    mean = zeros.clone()
    mean[:, :, 8:] = 9.0
    losses = FillLoss()(Fill(mean, zeros), zeros, weight)
    assert losses["total"].item() == pytest.approx(0.0, abs=1e-6)


def test_recogniser_target_leaves_the_faint_out() -> None:
    target, known = recogniser_target(torch.tensor([0.0, -8.0, -15.0, -25.0, -100.0]))
    assert target.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert known.tolist() == [1.0, 1.0, 0.0, 1.0, 1.0]


# Spectrum


@pytest.mark.parametrize(
    ("rate", "n_fft"), [(2_000, 64), (8_000, 256), (32_000, 1024), (44_100, 1400), (48_000, 1536)]
)
def test_grid_sizes(rate: int, n_fft: int) -> None:
    grid = Grid(rate)
    assert grid.n_fft == n_fft
    assert grid.n_fft == 4 * grid.hop_length
    assert grid.freqs_hz[-1] == pytest.approx(rate / 2)


def test_synthesis_undoes_analysis() -> None:
    grid = Grid(8_000)
    waveform = torch.randn(2, grid.n_fft + 40 * grid.hop_length, generator=_generator())
    again = synthesise(analyse(waveform, grid), grid)
    inner = slice(grid.n_fft, -grid.n_fft)
    torch.testing.assert_close(again[:, inner], waveform[:, inner], rtol=1e-4, atol=1e-5)


def test_noise_depends_on_position_alone() -> None:
    whole = position_noise(-1000, 140_000, stream=0)
    assert whole.shape == (141_000,)
    part = position_noise(65_000, 70_000, stream=0)
    assert torch.equal(whole[66_000:71_000], part)
    assert not torch.equal(part, position_noise(65_000, 70_000, stream=1))
    assert whole.std().item() == pytest.approx(1.0, abs=0.02)


def test_standardised_log_of_noise() -> None:
    grid = Grid(16_000)
    noise = analyse(position_noise(0, 160_000, stream=0), grid)[:, 4:-4]
    values = standardised_log(noise, grid)
    assert values.mean().item() == pytest.approx(0.0, abs=0.03)
    assert values.std().item() == pytest.approx(1.0, abs=0.03)


def test_phase_repair_finds_the_phase_of_a_missing_frame() -> None:
    grid = Grid(8_000)
    time = torch.arange(grid.n_fft + 20 * grid.hop_length) / grid.sample_rate
    truth = analyse(torch.sin(2 * math.pi * 500 * time), grid)
    replaced = torch.zeros(truth.shape, dtype=torch.bool)
    replaced[10] = True
    start = torch.where(replaced, truth.abs().to(truth.dtype), truth)
    settled = settle_phase(start, replaced, grid, rounds=20)
    assert torch.equal(settled[~replaced], truth[~replaced])
    peak = 16  # the bin of 500 Hz
    assert (settled[10, peak] - truth[10, peak]).abs() < 0.05 * truth[10, peak].abs()


# Prior and fill


def test_interpolation_between_two_levels() -> None:
    level = np.zeros((20, 101), np.float32)
    level[:, 51:] = 2.0
    weight = np.ones_like(level)
    weight[:, 41:60] = 0.0
    prior = interpolate_in_time(level, weight, hop_s=0.008)
    assert prior.mean[5, 50] == pytest.approx(1.0, abs=0.15)
    assert prior.mean[5, 42] < 0.6
    assert prior.mean[5, 58] > 1.4


def test_interpolation_without_any_known_bin() -> None:
    level = np.tile(np.linspace(0, 1, 11, dtype=np.float32), (4, 1))
    prior = interpolate_in_time(level, np.zeros_like(level), hop_s=0.008)
    np.testing.assert_allclose(prior.mean, 0.1, atol=1e-6)
    np.testing.assert_allclose(np.exp(prior.log_variance), RAYLEIGH_LOG_STD**2, rtol=1e-5)


def test_interpolation_where_a_frequency_is_never_known() -> None:
    level = np.full((40, 50), 3.0, np.float32)
    weight = np.ones_like(level)
    level[10:14], weight[10:14] = 99.0, 0.0
    prior = interpolate_in_time(level, weight, hop_s=0.008)
    np.testing.assert_allclose(prior.mean[10:14], 3.0, atol=1e-3)


def test_gain_rule() -> None:
    mask = torch.tensor([0.0, 0.29, 0.6, 0.8, 1.0])
    expected = torch.tensor([1.0, 1.0, 0.8, 0.6, 0.0])
    torch.testing.assert_close(gain_of(mask), expected)
    assert known_weight(mask.numpy()).tolist() == pytest.approx([1.0, 1.0, 0.05, 0.05, 0.0])


def test_restoring_leaves_free_bins_and_bounds_the_others() -> None:
    grid = Grid(8_000)
    waveform = torch.randn(grid.n_fft + 30 * grid.hop_length, generator=_generator())
    spectrum = analyse(waveform, grid)
    mask = torch.zeros(spectrum.shape)
    mask[10:20, 30:60] = 1.0
    mask[5:8] = 0.6
    expected = Expected(torch.full(mask.shape, 9.0), torch.full(mask.shape, 0.5))
    restored = restore_channel(spectrum, mask, expected, grid, first_frame=0)
    assert torch.equal(restored[mask < 0.3], spectrum[mask < 0.3])
    torch.testing.assert_close(restored[5:8], 0.8 * spectrum[5:8])
    louder = restored.abs() - spectrum.abs()
    assert louder.max() < 1e-3  # never louder than event and background together


# Regions and streaming


def _event(onset_s: float, offset_s: float, label: str = LABEL) -> Event:
    return Event(label, onset_s, offset_s, 0.9)


def test_regions_are_chosen_and_merged() -> None:
    events = [_event(3.0, 4.0), _event(1.0, 2.0), _event(2.05, 2.5), _event(1.0, 9.0, "rain")]
    assert [(r.onset_s, r.offset_s) for r in wanted_regions(events, [LABEL])] == [
        (1.0, 2.5),
        (3.0, 4.0),
    ]
    assert wanted_regions([_event(2.0, 2.0)], [LABEL]) == []


def test_windows_cover_regions_in_order() -> None:
    grid = Grid(8_000)
    windows = plan_windows([_event(20.0, 45.0), _event(1.0, 2.0)], grid, window_s=10.0)
    assert [window.adjoins for window in windows] == [False, False, True, True]
    assert windows[0].first_frame * grid.hop_s == pytest.approx(0.9, abs=0.01)
    assert windows[1].first_frame * grid.hop_s == pytest.approx(19.9, abs=0.01)
    assert windows[-1].stop_frame * grid.hop_s >= 45.1
    for before, after in pairwise(windows[1:]):
        assert before.stop_frame == after.first_frame
    assert all(w.stop_frame - w.first_frame <= 10.0 / grid.hop_s + 1 for w in windows)


def test_cut_returns_spans_of_a_stream() -> None:
    stream = np.arange(100, dtype=np.float32)[None]
    blocks = (stream[:, start : start + 7] for start in range(0, 100, 7))
    spans = [(50, 60), (5, 20), (10, 12), (95, 105), (200, 202)]
    parts = dict(cut(blocks, spans))
    for index in range(3):
        np.testing.assert_array_equal(parts[index][0], np.arange(*spans[index]))
    np.testing.assert_array_equal(parts[3][0], [95, 96, 97, 98, 99, 0, 0, 0, 0, 0])
    assert not parts[4].any()


# Weights


def _loaded(threshold: float = 0.0) -> LoadedRestorer:
    """Untrained models; with threshold 0 every region is confirmed, and heard again."""
    torch.manual_seed(0)
    config = replace(TINY_RECOGNISER, threshold=threshold)
    models = Recogniser(config).eval(), Inpainter(TINY_INPAINTER).eval()
    return LoadedRestorer(*models, "cpu", "0" * 64)


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    before = _loaded(threshold=0.4)
    checkpoint.save(tmp_path / RECOGNISER_FILE, asdict(before.recogniser.config), before.recogniser)
    checkpoint.save(tmp_path / INPAINTER_FILE, asdict(before.inpainter.config), before.inpainter)
    after = infer.load("cpu", tmp_path)
    assert after.recogniser.config == before.recogniser.config
    assert after.inpainter.config == before.inpainter.config
    log_mel = torch.randn(1, 64, 40, generator=_generator())
    assert torch.equal(after.recogniser(log_mel), before.recogniser(log_mel))
    assert len(after.digest) == 64


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(WeightsInvalid):
        infer.load("cpu", tmp_path)
    model = _loaded()
    config = asdict(replace(model.recogniser.config, hidden=5))
    checkpoint.save(tmp_path / RECOGNISER_FILE, config, model.recogniser)
    checkpoint.save(tmp_path / INPAINTER_FILE, asdict(model.inpainter.config), model.inpainter)
    with pytest.raises(WeightsInvalid):
        infer.load("cpu", tmp_path)


def test_shipped_weights_load() -> None:
    loaded = infer.load("cpu")
    assert loaded.recogniser.config.labels == LABELS
    assert 0.0 < loaded.recogniser.config.threshold < 1.0
    assert not loaded.inpainter.training
