"""The contract of every network of the classifier, and what is particular to each."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.signal import get_window
from torch import Tensor, nn

from common import checkpoint
from common.features import LOG_FLOOR
from services.classifier.config import (
    Config,
    HybridSettings,
    NetworkSettings,
    ResNetSettings,
    StrideCnnSettings,
    VggSlatSettings,
)
from services.classifier.losses import PresenceLoss
from services.classifier.model import Classifier, build, front_end, network_of, restored
from services.classifier.networks.cells import on_cells
from services.classifier.networks.hybrid import Hybrid
from services.classifier.networks.vgg_slat import VggSlat
from tests.models.networks import SMALL, SMALL_VGG


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=SMALL.values(), ids=SMALL.keys())
def model(request: pytest.FixtureRequest) -> Classifier:
    torch.manual_seed(0)
    return build(request.param)


def colours(n_items: int = 4, segments: int = 4) -> Tensor:
    """Noise whose loudest ten bands tell the class, (n_items, 64, 8 * segments)."""
    logmel = torch.randn(n_items, 64, 8 * segments, generator=torch.Generator().manual_seed(0))
    for b in range(n_items):
        logmel[b, 10 * b : 10 * b + 10] += 6.0
    return logmel


def lived_in(model: Classifier) -> Classifier:
    """Return the model in eval mode, its norms with means and deviations of their own."""
    with torch.no_grad():
        for _ in range(3):
            model(3 + 2 * colours(segments=16))
    return model.eval()


# The contract


def n_weights(architecture: str, settings: NetworkSettings) -> int:
    """Return the weights of the network alone, by counting."""
    network = network_of(Config(architecture=architecture, network=settings))
    return sum(weight.numel() for weight in network.parameters())


def taught(model: Classifier) -> list[nn.Parameter]:
    """Return the weights that are trained together: all but those of a texture."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def test_sizes_by_hand() -> None:
    heads = 2 * (64 * 20 + 20)
    kernels = 25 * 1 * 8 + 9 * (8 * 16 + 16 * 32 + 32 * 64)
    biases_and_norms = 3 * (8 + 16 + 32 + 64)
    assert n_weights("stride_cnn", StrideCnnSettings()) == kernels + biases_and_norms + heads
    widths = (1, 16, 16, 32, 32, 64, 64, 128, 128, 256, 256, 512)
    kernels = 9 * sum(a * b for a, b in itertools.pairwise(widths)) + 4 * 512 * 1024
    norms = 2 * (sum(widths[1:]) + 1024)
    assert n_weights("vgg_slat", VggSlatSettings()) == kernels + norms + 1024 * 20 + 20
    # the known size of a ResNet-18 without its head, less a stem of 7 x 7 x 3 for one of 3 x 3
    heads = 2 * (512 * 20 + 20)
    wanted = 11_176_512 - 64 * (7 * 7 * 3 - 3 * 3) + heads
    assert n_weights("resnet", ResNetSettings(width=64)) == wanted
    assert 0.6e6 < n_weights("resnet", ResNetSettings()) < 0.8e6
    # of 64 deviations, 7 lags of 16 + 16 + 1, 2 moments and 15 + ... + 1 pairs of 16 groups
    texture = (64 + 7 * 33 + 2 * 16 + 120) * 256 + 256 + 256 * 20 + 20
    assert 0.5e6 < n_weights("hybrid", HybridSettings()) - texture < 0.6e6


@pytest.mark.parametrize("n_samples", [1, 100, 2560, 2561, 40_000])
def test_features_are_filled_up_to_whole_segments(n_samples: int) -> None:
    config = SMALL["stride_cnn"]
    logmel = build(config).features(torch.zeros(2, n_samples))
    assert logmel.shape == (2, 64, 8 * math.ceil(n_samples / config.segment_samples))


def test_one_score_per_segment(model: Classifier) -> None:
    model.eval()
    for n_segments in (1, 2, 3, 7, 8, 13, 15, 16, 17, 31, 64):
        with torch.inference_mode():
            scores = model(torch.randn(2, 64, 8 * n_segments))
        assert scores.clip.shape == (2, 4)
        assert scores.segments.shape == (2, 4, n_segments)
        assert scores.embedding.shape[::2] == (2, n_segments)
        assert all(logits.shape == (2, 4) for logits in scores.branches)


def test_overfits_one_batch(model: Classifier) -> None:
    logmel, present = colours(), torch.eye(4)
    in_time = present[..., None].expand(-1, -1, 4)
    loss = PresenceLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for _ in range(60):
        scores = model(logmel)
        total = loss(scores.clip, present) + loss(scores.segments, in_time)
        total = total + sum(loss(logits, present) for logits in scores.branches)
        optimizer.zero_grad()
        total.backward()
        assert all(w.grad is not None and w.grad.isfinite().all() for w in taught(model))
        optimizer.step()
        history.append(float(total.detach()))
    assert history[-1] < 0.2 * history[0]
    with torch.no_grad():
        for _ in range(20):
            model(logmel)  # until the norms have settled
    scores = model.eval()(logmel)
    assert scores.clip.argmax(1).tolist() == [0, 1, 2, 3]
    assert (scores.segments.argmax(1) == torch.arange(4)[:, None]).all()


@pytest.mark.parametrize("level", [math.log(LOG_FLOOR), 18.0], ids=["silence", "loud"])
def test_gradients_stay_finite(model: Classifier, level: float) -> None:
    for n_segments in (1, 5):
        model.zero_grad()
        logmel = torch.full((2, 64, 8 * n_segments), level, requires_grad=True)
        scores = model(logmel, torch.zeros(2, 4, n_segments))
        parts = (scores.clip, scores.segments, scores.embedding, *scores.branches)
        torch.stack([part.square().mean() for part in parts]).sum().backward()
        assert logmel.grad is not None
        assert logmel.grad.isfinite().all()
        assert all(w.grad is not None and w.grad.isfinite().all() for w in taught(model))


def test_all_ones_mask_is_no_mask(model: Classifier) -> None:
    lived_in(model)
    for n_segments in (1, 8, 19):
        logmel = colours(segments=n_segments)
        with torch.inference_mode():
            without, ones = model(logmel), model(logmel, torch.ones(4, 4, n_segments))
        torch.testing.assert_close(ones.clip, without.clip, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ones.segments, without.segments, atol=1e-4, rtol=1e-4)


def test_a_mask_moves_the_weight(model: Classifier) -> None:
    lived_in(model)
    logmel = torch.cat([colours(segments=24), colours(segments=24).flip(0)], dim=2)
    first = torch.cat([torch.ones(4, 4, 24), torch.zeros(4, 4, 24)], dim=2)
    with torch.inference_mode():
        plain, masked, other = model(logmel), model(logmel, first), model(logmel, 1 - first)
    assert not torch.allclose(masked.clip, plain.clip, atol=1e-4)
    assert not torch.allclose(masked.clip, other.clip, atol=1e-4)


def test_items_of_a_batch_do_not_touch(model: Classifier) -> None:
    lived_in(model)
    logmel, mask = colours(3, 9), torch.rand(3, 4, 9, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        together = model(logmel, mask)
        for b in range(3):
            alone = model(logmel[b : b + 1], mask[b : b + 1])
            for name in ("clip", "segments", "embedding"):
                wanted = getattr(together, name)[b : b + 1]
                torch.testing.assert_close(getattr(alone, name), wanted, atol=1e-5, rtol=1e-4)


def test_fusing_changes_nothing(model: Classifier) -> None:
    lived_in(model)
    logmel = colours(segments=20)
    with torch.inference_mode():
        before = model(logmel)
        model.fuse()
        after = model(logmel)
    torch.testing.assert_close(after.clip, before.clip, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.segments, before.segments, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.embedding, before.embedding, atol=1e-4, rtol=1e-4)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert norms == (4 if model.config.architecture == "stride_cnn" else 0)


def test_weights_file_round_trip(model: Classifier, tmp_path: Path) -> None:
    lived_in(model)
    config = replace(model.config, temperature=1.5, segment_shift=-0.5, event_threshold=0.3)
    checkpoint.save(tmp_path / "w.safetensors", config.to_dict(), model)
    twin = restored(checkpoint.load(tmp_path / "w.safetensors"))
    assert twin.config == config
    assert not twin.training
    logmel = colours()
    with torch.inference_mode():
        torch.testing.assert_close(twin(logmel).clip, model(logmel).clip)
        torch.testing.assert_close(twin(logmel).segments, model(logmel).segments)


@pytest.mark.parametrize("fused", [False, True])
def test_stages_give_maps(model: Classifier, fused: bool) -> None:
    lived_in(model)
    if fused:
        model.fuse()
    stages = model.network.feature_stages()
    shapes: list[torch.Size] = []
    for stage in stages.values():
        stage.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    with torch.inference_mode():
        model(colours(2, 16))
    assert len(shapes) == len(stages) >= 4
    assert all(len(shape) == 4 and shape[0] == 2 for shape in shapes)
    assert max(shape[3] for shape in shapes) == shapes[0][3]  # the first is the finest


# Each of the networks


def test_columns_are_read_between_their_centres() -> None:
    columns = torch.tensor([[[0.0, 10.0]]])  # at frames 3.5 and 19.5
    wanted = [0.0, 5.0, 10.0, 10.0]  # cells lie at 3.5, 11.5, 19.5 and 27.5
    assert on_cells(columns, 16, 3.5, 4)[0, 0].tolist() == wanted
    assert on_cells(columns[..., :1], 16, 100.0, 3)[0, 0].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("n_mels", "frames", "segments"),
    [(128, 896, 13), (64, 1000, 15), (64, 504, 7), (64, 128, 1), (64, 8, 1), (32, 136, 2)],
)
def test_vgg_slat_has_a_segment_per_64_frames(n_mels: int, frames: int, segments: int) -> None:
    config = replace(SMALL["vgg_slat"], n_mels=n_mels, n_fft=2048)
    model = build(config).eval()
    assert isinstance(model.network, VggSlat)
    seen: list[torch.Size] = []
    model.network.f2.register_forward_hook(lambda module, inputs, out: seen.append(out.shape))
    with torch.inference_mode():
        model(torch.randn(1, n_mels, frames))
    assert seen == [(1, 4, 1, segments)]
    assert tuple(model.network.f1[0].kernel_size) == (2, 2)


def test_vgg_slat_pools_by_hand() -> None:
    """Segments of logits 1 and 3; the mask holds all of the first and none of the second."""
    logits = torch.tensor([[[[1.0, 3.0]]]])
    mask = torch.zeros(1, 4, 24)  # segments of cells 0 to 15 and 8 to 23
    mask[..., :16] = 1.0
    weights = (1.05, 0.55)  # cells 8 to 15 are in both
    by_maximum, by_mean = (
        VggSlat(SMALL["vgg_slat"], replace(SMALL_VGG, pooling=pooling))
        for pooling in ("max", "mean")
    )
    assert by_maximum._pooled(logits, None, 0).item() == pytest.approx(3.0)
    assert by_mean._pooled(logits, None, 0).item() == pytest.approx(2.0)
    wanted = 3.0 + math.log(weights[1] / weights[0])
    assert by_maximum._pooled(logits, mask, 0).item() == pytest.approx(wanted)
    wanted = (weights[0] * 1.0 + weights[1] * 3.0) / sum(weights)
    assert by_mean._pooled(logits, mask, 0).item() == pytest.approx(wanted)


def test_attention_is_what_the_hybrid_uses() -> None:
    """The layer's own sum over values, made from the attention that it tells, is its output."""
    torch.manual_seed(0)
    model = build(SMALL["hybrid"]).eval()
    assert isinstance(model.network, Hybrid)
    x = model.network_input(colours(2, 5))
    with torch.inference_mode():
        (attention,) = model.network.attentions(x)
        assert attention.shape == (2, 4, 20, 20)
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 4, 20))
        layer = model.network.patch.layers[0]
        cells = torch.randn(2, 20, 16)
        values = layer.qkv(layer.norm1(cells))[..., 32:].view(2, 20, 4, 4).transpose(1, 2)
        mixed = (layer.attention(cells) @ values).transpose(1, 2).reshape(2, 20, 16)
        wanted = cells + layer.out(mixed)
        wanted = wanted + layer.mlp(layer.norm2(wanted))
        torch.testing.assert_close(layer(cells), wanted, atol=1e-5, rtol=1e-4)


# From logits to probabilities


def test_probabilities_by_hand() -> None:
    config = replace(
        SMALL["stride_cnn"], temperature=2.0, segment_temperature=0.5, segment_shift=-1.0
    )
    logits = torch.tensor([[2 * math.log(3.0), 0.0, 0.0, 0.0]])
    several = build(config).probabilities(logits)[0].tolist()
    assert several == pytest.approx([3 / 4, 1 / 2, 1 / 2, 1 / 2])
    single = build(replace(config, multi_label=False))
    assert single.probabilities(logits)[0].tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    in_time = torch.full((1, 4, 2), 1.0 + 0.5 * math.log(4.0))
    for model in (build(config), single):
        assert model.segment_probabilities(in_time).flatten().tolist() == pytest.approx([0.8] * 8)


@pytest.mark.parametrize("window", ["hann", "hamming", "blackman"])
def test_windows_are_the_known_ones(window: str) -> None:
    front = front_end(replace(SMALL["resnet"], window=window))
    wanted = torch.from_numpy(get_window(window, 1024)).float()
    torch.testing.assert_close(front.window, wanted, atol=1e-5, rtol=1e-4)
