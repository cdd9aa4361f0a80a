"""Layer-wise relevance propagation for `vgg_slat`: captum's rules, and one of our own at the input.

Sources: Bach et al. 2015, "On pixel-wise explanations for non-linear classifier decisions by
layer-wise relevance propagation" (epsilon rule); Montavon et al. 2019, "Layer-wise relevance
propagation: an overview" (gamma rule, and a rule per depth); Montavon et al. 2017, "Explaining
nonlinear classification decisions with deep Taylor decomposition" (z+ rule). Norms are folded into
the convolutions first. Then the epsilon rule for the layer of the classes, the gamma rule below,
and the z+ rule at the input. Biases take no relevance: all of it goes on to what came in, so that
its sum is kept, but for units that nothing else excites. The label's own bias is no part of what
is explained: it is there whatever sounds.

Captum's rules want inputs of one sign, which log-mel normalised per band is not. So the first layer
is ours: there a bin counts by how far it stands out from silence.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.classifier.explain.question import SILENCE, Question, Relevance, relevance_of
from services.classifier.networks.vgg_slat import VggSlat

GAMMA = 10.0
"""How much more positive weights count. Large, since biases take nothing: with little more weight
on what excites a unit, what is left to divide by comes near zero and relevance explodes."""

STABILISER = 1e-6


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
        TypeError: the network is no `vgg_slat`, or has an LSTM.
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
    first, *rest = [layer for block in own.blocks.children() for layer in block.children()]
    assert isinstance(first, nn.Conv2d)
    assert own.f2.bias is not None
    above = nn.Sequential(*rest, *own.f1, own.f2)
    for layer in above:
        if isinstance(layer, nn.Conv2d):
            gamma = 0.0 if layer is own.f2 else GAMMA  # with 0 it is the epsilon rule
            layer.rule = GammaRule(gamma=gamma, set_bias_to_zero=True)
    with torch.no_grad():
        bias = own.f2.bias[question.label].clone()
        own.f2.bias.zero_()
        seen = first(forward.maps).repeat(len(heard), 1, 1, 1)
    shares = LRP(above).attribute(
        seen.requires_grad_(),
        target=[(question.label, 0, segment) for segment in heard],
    )  # (segments, C, F, T'): each sums up to the segment's logit
    weights = forward.weights[heard, None, None, None]
    reached = (shares * weights).sum(0, keepdim=True).detach()
    values = _to_input(question, first, forward.maps, reached)
    total = float((forward.logits - bias) @ forward.weights)
    relevance = relevance_of(values[0, 0], total)
    n_frames = question.logmel.shape[2]
    return replace(
        relevance,
        values=relevance.values[:, :n_frames],
        beyond=float(relevance.values[:, n_frames:].sum()),
    )


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
    """Return the relevance of the input ``x`` (1, 1, F, T') from that of ``conv``'s output."""
    n_filled = x.shape[3] - question.logmel.shape[2]
    with torch.no_grad():
        silence = question.model.network_input(torch.full_like(question.logmel, SILENCE))
        loudness = x - F.pad(silence, (0, n_filled, 0, 0), mode="replicate")
        exciting = conv.weight.clamp(min=0.0)
        padding = (conv.kernel_size[0] // 2, conv.kernel_size[1] // 2)
        reached = F.conv2d(loudness, exciting, padding=padding)
        share = relevance / (reached + STABILISER)
        return loudness * F.conv_transpose2d(share, exciting, padding=padding)
