"""Maps of relevance, on small networks that learnt to hear bursts whose place is known."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from common.mel import mel_centres_hz
from services.classifier.config import Config, VggSlatSettings
from services.classifier.explain import attributions
from services.classifier.explain.attributions import grad_cam, integrated_gradients
from services.classifier.explain.faithfulness import (
    at_random,
    by_relevance,
    faithfulness,
    fills,
)
from services.classifier.explain.question import SILENCE, Question, Relevance
from services.classifier.explain.relevance import GAMMA, lrp
from services.classifier.explain.rollout import attended, attention_rollout, rolled_out
from services.classifier.explain.stages import feature_maps
from services.classifier.model import Classifier, build
from tests.models.explained import (
    BANDS_HZ,
    BURST_S,
    LABELS,
    NETWORKS,
    Scene,
    heard,
    scene,
    vgg_slat_as_trained,
)

Method = Callable[[Question], Relevance]
MAPPED = [
    pytest.param(architecture, method, id=f"{architecture}-{method.__name__}")
    for architecture in NETWORKS
    for method in (integrated_gradients, lrp if architecture == "vgg_slat" else grad_cam)
]

WITH_ROLLOUT = [*MAPPED, pytest.param("hybrid", attention_rollout, id="hybrid-rollout")]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def ask(architecture: str, sounds: Scene) -> Question:
    model = heard(architecture)
    logmel = model.features(torch.from_numpy(sounds.samples)[None])
    return Question(model, logmel, None, LABELS.index(sounds.label))


def density_in_burst(relevance: Relevance, sounds: Scene) -> float:
    """Return how many times denser the relevance is in the burst than over the whole clip."""
    n_bands, n_frames = relevance.values.shape
    low_hz, high_hz = BANDS_HZ[sounds.label]
    centres_hz = mel_centres_hz(n_bands, 0.0, 16_000.0)
    bands = (centres_hz > 0.8 * low_hz) & (centres_hz < 1.2 * high_hz)
    times_s = 0.01 * np.arange(n_frames) - sounds.onset_s
    frames = (times_s > -0.05) & (times_s < BURST_S + 0.05)
    for_it = np.maximum(relevance.values, 0.0)
    share = for_it[np.ix_(bands, frames)].sum() / for_it.sum()
    return float(share / (bands.mean() * frames.mean()))


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize(("architecture", "method"), MAPPED)
def test_relevance_lies_where_the_evidence_is(
    architecture: str, method: Method, label: str
) -> None:
    sounds = scene(label, seed=7001)
    density = density_in_burst(method(ask(architecture, sounds)), sounds)
    # Grad-CAM sees cells that are larger than a burst
    assert density > (2.0 if method is grad_cam else 4.0)


@pytest.mark.parametrize(("architecture", "method"), WITH_ROLLOUT)
def test_more_faithful_than_chance(architecture: str, method: Method) -> None:
    deletion, insertion = [], []
    for label in LABELS:
        question = ask(architecture, scene(label, seed=7002))
        fill = fills(question)["background"]
        found = faithfulness(question, by_relevance(method(question).values), fill)
        for seed in range(4):
            chance = faithfulness(question, at_random(question, seed), fill)
            deletion.append(chance.deletion - found.deletion)
            insertion.append(found.insertion - chance.insertion)
    assert np.mean(deletion) > 0.05
    assert np.mean(insertion) > 0.05


@pytest.mark.parametrize(("architecture", "method"), WITH_ROLLOUT)
def test_other_weights_give_another_map(
    architecture: str, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adebayo et al. 2018, "Sanity checks for saliency maps": randomised weights.

    A constant map of the random network says that no place matters, and so is another map than one
    that has found a burst: there the likeness is 0. But where most were constant, nothing would
    have been compared: random networks are given norms that fit, so that they do find something.
    """
    monkeypatch.setattr(attributions, "STEPS", (8, 16))  # which are enough to see where it lies
    questions = [ask(architecture, scene(label, 7030 + n)) for n in range(4) for label in LABELS]
    strangers = [of_random_weights(questions, seed) for seed in (5, 6)]
    likeness, constant = [], 0
    for question in questions:
        known = in_blocks(method(question))
        assert np.ptp(known) > 0.0
        for strange in strangers:
            other = in_blocks(method(replace(question, model=strange)))
            varies = bool(np.ptp(other) > 0.0)
            constant += not varies
            likeness.append(abs(spearmanr(known, other).statistic) if varies else 0.0)
    assert constant < len(likeness) / 2
    assert np.mean(likeness) < 0.4
    assert np.mean(np.array(likeness) < 0.6) > 0.8


def of_random_weights(questions: list[Question], seed: int) -> Classifier:
    """Return the network of these questions with fresh weights, its norms fitted to their sound."""
    known = questions[0].model
    torch.manual_seed(seed)
    strange = build(known.config).requires_grad_(False).eval()
    strange.bands.load_state_dict(known.bands.state_dict())
    for module in strange.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    strange.network.train()
    strange(torch.cat([question.logmel for question in questions]))
    return strange.eval()


def in_blocks(relevance: Relevance) -> np.ndarray:
    return relevance.values.reshape(16, 4, -1, 8).mean((1, 3)).ravel()


@pytest.mark.parametrize("architecture", NETWORKS)
def test_integrated_gradients_are_complete(architecture: str) -> None:
    question = ask(architecture, scene("low", seed=7004))
    relevance = integrated_gradients(question)
    with torch.no_grad():
        sound = question.model(question.logmel).clip[0, question.label]
        silence = question.model(torch.full_like(question.logmel, SILENCE)).clip[0, question.label]
    gain = float(sound - silence)
    assert relevance.values.sum() == pytest.approx(gain, rel=0.03)
    assert relevance.total == pytest.approx(gain, abs=1e-4)
    assert relevance.conservation_error == pytest.approx(
        abs(relevance.values.sum() / gain - 1.0), abs=1e-5
    )


@pytest.mark.parametrize("pooling", ["max", "mean"])
@pytest.mark.parametrize("clip_s", [0.2, 0.5, 1.28, 2.9])
def test_relevance_propagation_keeps_the_sum(pooling: str, clip_s: float) -> None:
    """Also where segments are pooled by their mean under a mask, and the end is filled up."""
    model = heard("vgg_slat")
    settings = replace(NETWORKS["vgg_slat"], pooling=pooling)
    assert isinstance(settings, VggSlatSettings)
    pooled = build(replace(model.config, network=settings)).eval().requires_grad_(False)
    pooled.load_state_dict(model.state_dict())
    logmel = pooled.features(torch.from_numpy(scene("high", 7005, clip_s, 0.05).samples)[None])
    cells = torch.rand(1, 4, logmel.shape[2] // 8, generator=torch.Generator().manual_seed(0))
    question = Question(pooled, logmel, cells if pooling == "mean" else None, label=1)
    relevance = lrp(question)
    with torch.no_grad():
        logit = float(question.logits(logmel, question.cells))
    evidence = logit - float(pooled.network.f2.bias[1])
    assert relevance.values.shape == logmel.shape[1:]
    assert relevance.total == pytest.approx(evidence, rel=1e-4)
    assert kept(relevance, evidence)
    if clip_s == 1.28:  # 128 frames need no filling up
        assert relevance.beyond == 0.0


@pytest.mark.parametrize("clip_s", [0.1, 0.5, 1.28, 5.12])
@pytest.mark.parametrize("sound", ["burst", "faint noise", "steps"])
def test_relevance_propagation_keeps_the_sum_in_a_network_of_full_size(
    sound: str, clip_s: float
) -> None:
    """Whatever the label, also where there is next to nothing for it, or nothing sounds at all."""
    model = vgg_slat_as_trained()
    samples = scene("low", 7013, clip_s, onset_s=0.0).samples
    if sound == "faint noise":
        samples = 1e-3 * scene("low", 7013, clip_s, onset_s=clip_s).samples
    elif sound == "steps":  # half of it digital silence, where no bin stands out
        samples = np.where(np.arange(len(samples)) % 16_000 < 8_000, samples, 0.0)
    logmel = model.features(torch.from_numpy(samples.astype(np.float32))[None])
    for label in (0, 1, 19):  # sounds, was taught but is not there, was never there
        question = Question(model, logmel, None, label)
        relevance = lrp(question)
        evidence = float(question.logits(logmel)) - float(model.network.f2.bias[label])
        assert relevance.total == pytest.approx(evidence, abs=1e-4)
        assert kept(relevance, relevance.total)
        assert relevance.spread is not None
        assert 0.0 <= relevance.spread < 0.2


def kept(relevance: Relevance, evidence: float) -> bool:
    """Return whether relevance sums up to the evidence with an error under 1 %, and says so."""
    missing = abs(float(relevance.values.sum(dtype=np.float64)) + relevance.beyond - evidence)
    error = relevance.conservation_error
    return missing < 0.01 * abs(evidence) and error is not None and error < 0.01


@pytest.mark.parametrize("label", [0, 1])
def test_relevance_propagation_is_that_of_captum_where_nothing_is_stranded(label: int) -> None:
    """Above the first layer, whose rule is not among captum's."""
    from captum.attr import LRP
    from captum.attr._utils.lrp_rules import GammaRule

    model = heard("vgg_slat")
    logmel = model.features(torch.from_numpy(scene("high", 7014).samples)[None])
    found = lrp(Question(model, logmel, None, label))
    assert found.spread == pytest.approx(0.0, abs=1e-4)

    own = copy.deepcopy(model.network)
    own.fuse()
    first, *rest = [layer for block in own.blocks.children() for layer in block.children()]
    own.f2.bias.zero_()
    above = torch.nn.Sequential(*rest, *own.f1, own.f2)
    for layer in above:
        if isinstance(layer, torch.nn.Conv2d):
            layer.rule = GammaRule(0.0 if layer is own.f2 else GAMMA, set_bias_to_zero=True)
    maps = model.network_input(logmel)  # 128 frames: one segment
    reached = LRP(above).attribute(first(maps).requires_grad_(), target=(label, 0, 0)).detach()
    loud = maps - model.network_input(torch.full_like(logmel, SILENCE))
    weight = first.weight.clamp(min=0.0)
    excited = F.conv2d(loud, weight, padding=1)
    share = torch.where(reached == 0.0, 0.0, reached / excited)  # nothing excites some: 0 / 0
    wanted = (loud * F.conv_transpose2d(share, weight, padding=1))[0, 0]
    torch.testing.assert_close(torch.from_numpy(found.values), wanted, rtol=1e-3, atol=1e-5)


def test_relevance_propagation_leaves_the_network_as_it_was() -> None:
    question = ask("vgg_slat", scene("low", seed=7006))
    before = {name: tensor.clone() for name, tensor in question.model.state_dict().items()}
    first, second = lrp(question).values, lrp(question).values
    np.testing.assert_array_equal(first, second)
    for name, tensor in question.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_relevance_propagation_is_for_networks_whose_rules_hold() -> None:
    with pytest.raises(TypeError, match="vgg_slat"):
        lrp(ask("resnet", scene("low", seed=1)))


def test_rollout_by_hand() -> None:
    """Two layers over two cells, worked out on paper; what is below 0 is left out."""
    first = torch.tensor([[[0.5, 0.5], [-3.0, 1.0]], [[0.5, -1.0], [0.0, 0.0]]])
    second = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    # first, heads averaged: [[.5, .25], [0, .5]], on top of the identity; the second adds its row
    wanted = torch.tensor([[3.0, 0.5], [1.5, 1.75]])
    torch.testing.assert_close(rolled_out((first, second)), wanted)


def test_attention_counts_by_its_gradient() -> None:
    """Against what happens to the logit when attentions are scaled, one layer at a time."""
    question = ask("hybrid", scene("low", seed=7007))
    network = question.model.network
    found = attended(question, network)
    layers = list(network.patch.layers)
    assert [a.shape for a in found.attentions] == [(2, 64, 64)] * len(layers)
    step = 1e-3
    for layer, products in zip(layers, found.attentions, strict=True):
        # what comes in by attention is linear in it: to scale the one is to scale the other
        scaled = layer.out.register_forward_pre_hook(lambda _m, x: (x[0] * (1.0 + step),))
        more = float(question.logits(question.logmel))
        scaled.remove()
        change = (more - float(question.logits(question.logmel))) / step
        assert float(products.sum()) == pytest.approx(change, rel=0.05, abs=0.02)


def test_rollout_is_about_a_label() -> None:
    question = ask("hybrid", scene("low", seed=7007))
    relevance = attention_rollout(question)
    assert relevance.values.min() >= 0.0
    assert relevance.conservation_error is None
    other = attention_rollout(replace(question, label=1 - question.label))
    assert not np.allclose(relevance.values, other.values)
    with pytest.raises(TypeError, match="hybrid"):
        attention_rollout(ask("resnet", scene("low", seed=1)))


@pytest.mark.parametrize("architecture", NETWORKS)
def test_feature_maps_of_every_stage(architecture: str) -> None:
    question = ask(architecture, scene("high", seed=7008))
    stages = feature_maps(question)
    assert [stage.stage for stage in stages] == list(question.model.network.feature_stages())
    for stage in stages:
        assert len(stage.channels) == len(stage.maps) == min(8, stage.n_channels)
        assert stage.maps.shape[1:] == stage.mean.shape
        spread = stage.maps.reshape(len(stage.maps), -1).std(axis=1)
        assert list(spread) == sorted(spread, reverse=True)


def test_feature_maps_are_the_networks_own() -> None:
    question = ask("stride_cnn", scene("high", seed=7009))
    with torch.no_grad():
        block1 = question.model.network.block1(question.model.network_input(question.logmel))[0]
    found = feature_maps(question)[0]
    np.testing.assert_allclose(found.mean, block1.abs().mean(0), atol=1e-5)
    np.testing.assert_allclose(found.maps, block1[list(found.channels)], atol=1e-5)


def test_areas_by_hand() -> None:
    """A label that counts what is there: deleting in any order falls on a straight line."""
    question = ask("stride_cnn", scene("low", seed=7010))

    class Counting(Question):
        def probabilities(self, logmel: torch.Tensor) -> np.ndarray:
            return (logmel != SILENCE).float().mean((1, 2)).numpy()

    counting = Counting(question.model, question.logmel, None, 0)
    found = faithfulness(counting, at_random(question, 0), fills(question)["silence"])
    assert found.deletion == pytest.approx(0.5)
    assert found.insertion == pytest.approx(0.5)


def test_blocks_are_in_order_of_relevance() -> None:
    relevance = np.zeros((64, 16), np.float32)
    relevance[4:8, 8:16] = 2.0  # second row of blocks, second column
    relevance[60:64, 0:8] = 1.0
    order = by_relevance(relevance)
    assert order[:3].tolist() == [3, 30, 0]
    assert sorted(order.tolist()) == list(range(32))


def test_architectures_without_training_are_explained_too() -> None:
    """Even odd sizes: another front end, a single label, a single segment."""
    config = Config(
        "vgg_slat",
        ("only",),
        sample_rate=16_000,
        n_fft=512,
        hop_length=160,
        n_mels=32,
        network=NETWORKS["vgg_slat"],
    )
    model = build(config).eval().requires_grad_(False)
    logmel = model.features(torch.randn(1, 100))
    question = Question(model, logmel, None, 0)
    for method in (integrated_gradients, lrp):
        values = method(question).values
        assert values.shape == (32, 8)
        assert all(math.isfinite(value) for value in values.ravel().tolist())
