"""Weights trained for one set of labels as the start of another."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from common.checkpoint import Checkpoint
from common.errors import WeightsInvalid
from services.classifier.config import Config
from services.classifier.model import Classifier, build, restored

CALIBRATION = ("temperature", "shift", "segment_temperature", "segment_shift", "event_threshold")


def head_axes(config: Config) -> dict[str, int]:
    """Return the tensors that have one slice per label, and along which axis.

    They are found by building the network for one label more: what grows by one is a head.
    """
    more = replace(config, labels=(*config.labels, "\0one more"))
    grown = {name: tensor.shape for name, tensor in build(more).state_dict().items()}
    axes = {}
    for name, tensor in build(config).state_dict().items():
        for axis, (n, n_more) in enumerate(zip(tensor.shape, grown[name], strict=True)):
            if n == len(config.labels) and n_more == n + 1:
                axes[name] = axis
    return axes


@torch.no_grad()
def begin_from(model: Classifier, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Put trained weights into a fresh model; return the labels whose heads came along.

    The heads of labels that both have are kept, the other labels' heads stay fresh.

    Raises:
        WeightsInvalid: the weights are damaged, or of another network or front end.
    """
    trained = restored(checkpoint)
    ours, theirs = model.config, trained.config
    calibration = {name: getattr(ours, name) for name in CALIBRATION}
    alike = replace(theirs, labels=ours.labels, dropout=ours.dropout, **calibration)
    if alike != ours:
        differing = [name for name in vars(ours) if getattr(alike, name) != getattr(ours, name)]
        raise WeightsInvalid(
            f"these weights cannot be started from: {', '.join(differing)} differ from the recipe"
        )
    shared = tuple(label for label in ours.labels if label in theirs.labels)
    to = torch.tensor([ours.labels.index(label) for label in shared], dtype=torch.long)
    of = torch.tensor([theirs.labels.index(label) for label in shared], dtype=torch.long)
    axes = head_axes(ours)
    fresh = model.state_dict()
    state: dict[str, Tensor] = {}
    for name, tensor in trained.state_dict().items():
        if name in axes:
            kept = tensor.index_select(axes[name], of)
            state[name] = fresh[name].index_copy(axes[name], to, kept.to(fresh[name]))
        else:
            state[name] = tensor
    model.load_state_dict(state)
    return shared
