"""Layer-wise relevance propagation for `vgg_slat`.

Sources: Bach et al. 2015, "On pixel-wise explanations for non-linear classifier decisions by
layer-wise relevance propagation" (epsilon rule, and the flat rule for what no input accounts for);
Montavon et al. 2019, "Layer-wise relevance propagation: an overview" (gamma rule, and a rule per
depth); Montavon et al. 2017, "Explaining nonlinear classification decisions with deep Taylor
decomposition" (z+ rule). Norms are folded into the convolutions first. Then the epsilon rule for
the layer of the classes, the gamma rule below, and at the input the z+ rule, where a bin counts by
how far it stands out from silence: log-mel normalised per band has no sign to go by.

Biases take no relevance: all of it goes on to what came in. The label's own bias is no part of what
is explained: it is there whatever sounds. A unit that its bias alone excites has no input to hand
anything to; in a short window, most of which is filled up, there can be many. Its relevance would
be stranded there, so it is spread evenly over all that the unit looks at, and how much that was is
told (``Relevance.spread``). So the sum is kept, but for rounding.

The rules are written out, not captum's, whose layers lose what is stranded.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.classifier.explain.hooks import watched
from services.classifier.explain.question import SILENCE, Question, Relevance, relevance_of
from services.classifier.networks.vgg_slat import VggSlat

GAMMA = 10.0
"""How much more positive weights count. Large, since biases take nothing: with little more weight
on what excites a unit, what is left to divide by comes near zero and relevance explodes."""

LEAST_SHARE = 1e-3
"""What reaches a unit is less than this share of all that came in: its bias alone excites it."""


@dataclass(frozen=True)
class _Forward:
    """What a clip's logit is made of.

    ``maps`` (1, 1, F, T'): the network's input, filled up; ``logits`` (S,) of the label per
    segment; ``weights`` (S,): how much of each is in the clip's logit.
    """

    maps: Tensor
    logits: Tensor
    weights: Tensor


@dataclass(frozen=True)
class _Handed:
    """Relevance (1, C, f, t) of a layer's input, and the size of what had to be spread evenly."""

    relevance: Tensor
    spread: float


def lrp(question: Question) -> Relevance:
    """Return the logit, its bias aside, handed back to the bins.

    Raises:
        TypeError: the network is no `vgg_slat`, or has an LSTM.
    """
    network = question.model.network
    if not isinstance(network, VggSlat) or network.lstm is not None:
        raise TypeError("layer-wise relevance propagation is for vgg_slat without LSTM")
    forward = _forward(question, network)
    with torch.no_grad():
        # double precision: parts that speak for and against may be much larger than their sum
        own = copy.deepcopy(network).double()
        own.fuse()
        maps = forward.maps.double()
        first, *rest = [layer for block in own.blocks.children() for layer in block.children()]
        rest += own.f1.children()
        came_in = [first(maps)]  # of each layer of the rest, in order; then of F2
        for layer in rest:
            came_in.append(layer(came_in[-1]))

        # epsilon rule: a segment's logit less its bias is the sum of what its features add to it
        adds = own.f2.weight[question.label][None] * came_in[-1]  # (1, D, 1, S)
        handed = _Handed(adds * forward.weights, 0.0)
        total = float(handed.relevance.sum())
        at_risk = float(handed.relevance.abs().sum())
        spread = 0.0
        for layer, values in zip(reversed(rest), reversed(came_in[:-1]), strict=True):
            handed = _through(layer, values, handed.relevance)
            spread += handed.spread
        assert isinstance(first, nn.Conv2d)
        loudness = _loudness(question, maps)
        handed = _by_weights(first, first.weight.clamp(min=0.0), loudness, handed.relevance)
        spread += handed.spread
    n_frames = question.logmel.shape[2]
    relevance = relevance_of(handed.relevance[0, 0], total)
    return replace(
        relevance,
        values=relevance.values[:, :n_frames],
        beyond=float(handed.relevance[..., n_frames:].sum()),
        spread=spread / max(at_risk, 1e-12),
    )


def _forward(question: Question, network: VggSlat) -> _Forward:
    with watched([network.blocks, network.f2]) as passed, torch.enable_grad():
        logit = question.logits(question.logmel.detach().requires_grad_(), question.cells)
    maps, logits = passed.into[network.blocks], passed.out_of[network.f2]
    (weights,) = torch.autograd.grad(logit.sum(), logits)
    k = question.label
    return _Forward(maps.detach(), logits[0, k, 0].detach(), weights[0, k, 0])


def _loudness(question: Question, maps: Tensor) -> Tensor:
    """Return how far the network's input ``maps`` (1, 1, F, T') stands out from silence."""
    n_filled = maps.shape[3] - question.logmel.shape[2]
    silence = question.model.network_input(torch.full_like(question.logmel, SILENCE)).double()
    return maps - F.pad(silence, (0, n_filled, 0, 0), mode="replicate")


def _through(layer: nn.Module, values: Tensor, relevance: Tensor) -> _Handed:
    """Return the relevance of a layer's input ``values`` from that of its output."""
    match layer:
        case nn.Conv2d():
            weight = layer.weight + GAMMA * layer.weight.clamp(min=0.0)
            return _by_weights(layer, weight, values, relevance)
        case nn.MaxPool2d():  # the winner takes it all
            _, winners = F.max_pool2d(values, layer.kernel_size, return_indices=True)
            back = F.max_unpool2d(
                relevance, winners, layer.kernel_size, output_size=values.shape[2:]
            )
            return _Handed(back, 0.0)
        case nn.ReLU():
            return _Handed(relevance, 0.0)
        case _:
            raise TypeError(f"no rule for {type(layer).__name__}")


def _by_weights(conv: nn.Conv2d, weight: Tensor, values: Tensor, relevance: Tensor) -> _Handed:
    """Hand the relevance of a convolution's output on in the ratio of what came in, weighted.

    What reaches a unit whose inputs hardly excite it is spread evenly over what it looks at.
    """
    geometry = {"stride": conv.stride, "padding": conv.padding}
    excited = F.conv2d(values, weight, **geometry)
    in_all = F.conv2d(values.abs(), weight.abs(), **geometry)
    by_bias = excited.abs() <= LEAST_SHARE * in_all
    share = torch.where(by_bias, 0.0, relevance / torch.where(by_bias, 1.0, excited))
    handed = values * F.conv_transpose2d(share, weight, **geometry)

    stranded = torch.where(by_bias, relevance, 0.0).sum(1, keepdim=True)  # (1, 1, f, t)
    places = torch.ones_like(values)
    alike = torch.ones_like(weight[:1])
    n_inputs = F.conv2d(places, alike, **geometry)
    evenly = F.conv_transpose2d(stranded / n_inputs, alike, **geometry)
    return _Handed(handed + evenly, float(torch.where(by_bias, relevance, 0.0).abs().sum()))
