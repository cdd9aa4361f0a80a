"""Layer-wise relevance propagation for `vgg_slat`: captum's rules, and one of our own at the input.

Sources: Bach et al. 2015, "On pixel-wise explanations for non-linear classifier decisions by
layer-wise relevance propagation" (epsilon rule); Montavon et al. 2019, "Layer-wise relevance
propagation: an overview" (a rule per depth: epsilon at the top, gamma below); Montavon et al. 2017,
"Explaining nonlinear classification decisions with deep Taylor decomposition" (z+ and zB rules).
Biases take no relevance: in every layer all of it goes on to what came in, so that its sum is kept.
The label's own bias is no part of what is explained: it is there whatever sounds.

Captum's rules want inputs of one sign, which log-mel normalised per band is not: at the input a bin
counts by how far it stands out from silence, through the weights that make it count for.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.classifier.explain.question import SILENCE, Question, Relevance, relevance_of
from services.classifier.networks.vgg_slat import VggSlat

GAMMA = 0.25
"""How much more positive weights count below the top layer."""
LOUDEST = 12.0
STABILISER = 1e-6
RULE = "zplus"


@dataclass(frozen=True)
class _Forward:
    """What a clip's logit is made of.

    ``maps`` (1, 1, F, T'): the network's input, filled up; ``logits`` (S,) of the label per
    segment; ``weights`` (S,): how much of each is in the clip's logit.
    """

    maps: Tensor
    logits: Tensor
    weights: Tensor


def lrp(question: Question) -> Relevance:
    """Return the logit, its bias aside, handed back to the bins.

    Raises:
        TypeError: the network is no `vgg_slat` without LSTM.
    """
    from captum.attr import LRP
    from captum.attr._utils.lrp_rules import GammaRule

    network = question.model.network
    if not isinstance(network, VggSlat) or network.lstm is not None:
        raise TypeError("layer-wise relevance propagation is for vgg_slat without LSTM")
    forward = _forward(question, network)
    heard = torch.nonzero(forward.weights)[:, 0].tolist()

    own = copy.deepcopy(network)
    own.fuse()
    first, *rest = [module for block in own.blocks for module in block]
    above = nn.Sequential(*rest, *own.f1, own.f2)
    for layer in above:
        if isinstance(layer, nn.Conv2d):
            gamma = 0.0 if layer is own.f2 else GAMMA  # 0: the epsilon rule
            layer.rule = GammaRule(gamma=gamma, set_bias_to_zero=True)
    with torch.no_grad():
        seen = first(forward.maps)
    own.f2.bias.data.zero_()
    shares = LRP(above).attribute(
        seen.expand(len(heard), -1, -1, -1),
        target=[(question.label, 0, segment) for segment in heard],
    )  # (segments, C, F, T'): each sums up to the segment's logit
    weights = forward.weights[heard, None, None, None]
    reached = (shares * weights).sum(0, keepdim=True).detach()
    values = _to_input(question, first, forward.maps, reached)
    total = float((forward.logits - network.f2.bias[question.label]) @ forward.weights)
    relevance = relevance_of(values[0, 0], total)
    # what was filled up is no part of the sound, and got nothing
    in_window = relevance.values[:, : question.logmel.shape[2]]
    return Relevance(in_window, relevance.total, relevance.conservation_error)


def _forward(question: Question, network: VggSlat) -> _Forward:
    found: list[Tensor] = []
    handles = [
        network.blocks.register_forward_pre_hook(lambda _module, inputs: found.append(inputs[0])),
        network.f2.register_forward_hook(lambda _module, _inputs, output: found.append(output)),
    ]
    try:
        with torch.enable_grad():
            logit = question.logits(question.logmel.detach().requires_grad_(), question.cells)
    finally:
        for handle in handles:
            handle.remove()
    maps, logits = found
    (weights,) = torch.autograd.grad(logit.sum(), logits)
    k = question.label
    return _Forward(maps.detach(), logits[0, k, 0].detach(), weights[0, k, 0])


def _to_input(question: Question, conv: nn.Conv2d, x: Tensor, relevance: Tensor) -> Tensor:
    """Return the relevance of the input (1, 1, F, T') from that of the first maps (1, C, F, T')."""
    filled = (0, x.shape[3] - question.logmel.shape[2])
    with torch.no_grad():
        quiet = question.model.network_input(torch.full_like(question.logmel, SILENCE))
        low = F.pad(quiet, filled)
        up, down = conv.weight.clamp(min=0.0), conv.weight.clamp(max=0.0)
        if RULE == "zplus":
            terms = [(x - low, up)]
        elif RULE == "gamma":
            terms = [(x - low, conv.weight + GAMMA * up)]
        elif RULE == "eps":
            terms = [(x, conv.weight)]
        elif RULE == "epslow":
            terms = [(x - low, conv.weight)]
        else:
            high = F.pad(
                question.model.network_input(torch.full_like(question.logmel, LOUDEST)), filled
            )
            terms = [(x, conv.weight), (-low, up), (-high, down)]
        z = sum(F.conv2d(i, w, padding=conv.padding) for i, w in terms)
        sign = torch.where(z >= 0, 1.0, -1.0)
        share = relevance / (z + STABILISER * sign)
        return sum(i * F.conv_transpose2d(share, w, padding=conv.padding) for i, w in terms)
