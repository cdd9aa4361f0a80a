"""Which method can explain which architecture, and what each is worth. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import ParametersInvalid
from common.params import EXPLAIN_METHODS, ClassifyParams, ExplainMethod
from services.classifier.config import Config

GRAD_CAM_STAGES: dict[str, tuple[str, ...]] = {
    "hybrid": ("block3",),
}
"""The stages, by architecture, whose maps Grad-CAM weighs: the last that still know where."""


@dataclass(frozen=True)
class About:
    """What a method's map says. ``of_label``: it differs from label to label."""

    title: str
    says: str
    of_label: bool
    evidence: str  # strong, or weak


ABOUT: dict[ExplainMethod, About] = {
    "integrated_gradients": About(
        "integrated gradients",
        "how much each bin adds to the label's logit, compared with silence; the bins sum up to it",
        of_label=True,
        evidence="strong",
    ),
    "grad_cam": About(
        "Grad-CAM",
        "where the last maps of the network that speak for the label are active; coarse",
        of_label=True,
        evidence="strong",
    ),
    "lrp": About(
        "layer-wise relevance propagation",
        "the label's logit handed back from layer to layer; what arrives sums up to it",
        of_label=True,
        evidence="strong",
    ),
    "attention_rollout": About(
        "attention rollout",
        "where the patch branch looked, whatever the label; not what it made of it",
        of_label=False,
        evidence="weak",
    ),
    "feature_maps": About(
        "feature maps",
        "what each stage of the network makes of the sound, whatever the label",
        of_label=False,
        evidence="weak",
    ),
}


def possible(config: Config) -> tuple[ExplainMethod, ...]:
    """Return the methods that fit an architecture, in their order."""
    fits: dict[ExplainMethod, bool] = {
        "integrated_gradients": True,
        "grad_cam": config.architecture in GRAD_CAM_STAGES,
        "lrp": config.architecture == "vgg_slat",
        "attention_rollout": config.architecture == "hybrid",
        "feature_maps": True,
    }
    return tuple(method for method in EXPLAIN_METHODS if fits[method])


def check(config: Config, params: ClassifyParams) -> None:
    """Check what can only be known where the weights are: before anything is computed.

    Raises:
        ParametersInvalid: a method that does not fit the architecture, or a label that these
            weights do not know.
    """
    can = possible(config)
    wrong = [method for method in params.explain if method not in can]
    if wrong:
        raise ParametersInvalid(
            f"classify.explain: {', '.join(wrong)} cannot explain a network of the architecture "
            f"{config.architecture}; possible: {', '.join(can)}"
        )
    if not params.explain:
        return
    strange = [label for label in params.explain_labels if label not in config.labels]
    if strange:
        raise ParametersInvalid(
            f"classify.explain_labels: these weights do not know {', '.join(strange)}; known: "
            f"{', '.join(config.labels)}"
        )
