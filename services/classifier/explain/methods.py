"""Which method can explain which architecture, and what each is worth. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import ParametersInvalid
from common.params import EXPLAIN_METHODS, ClassifyParams, ExplainMethod
from services.classifier.config import Config, HybridSettings, VggSlatSettings

GRAD_CAM_STAGE: dict[str, str] = {
    "hybrid": "block3",
    "resnet": "stage4",
    "stride_cnn": "block4",
}
"""Whose maps Grad-CAM weighs: the last stage of convolutions. ``vgg_slat`` has none: F1 weighs what
lies where, so a map of it has no one weight, and on sounds of known place Grad-CAM was at times
worse than chance."""


@dataclass(frozen=True)
class About:
    """What a method's map says.

    ``of_label``: it differs from label to label. ``signed``: bins can also speak against it.
    """

    title: str
    says: str
    of_label: bool
    signed: bool
    evidence: str  # strong, or weak


ABOUT: dict[ExplainMethod, About] = {
    "integrated_gradients": About(
        "integrated gradients",
        "how much each bin adds to the logit, compared with silence",
        of_label=True,
        signed=True,
        evidence="strong",
    ),
    "grad_cam": About(
        "Grad-CAM",
        "where the late maps that speak for the label are active; coarse",
        of_label=True,
        signed=False,
        evidence="strong",
    ),
    "lrp": About(
        "layer-wise relevance propagation",
        "the logit handed back from layer to layer to the bins",
        of_label=True,
        signed=True,
        evidence="strong",
    ),
    "attention_rollout": About(
        "attention rollout, weighted by gradients",
        "what the patch branch attended to that speaks for the label; coarse, of this branch only",
        of_label=True,
        signed=False,
        evidence="weak",
    ),
    "feature_maps": About(
        "feature maps",
        "what each stage of the network makes of the sound, whatever the label",
        of_label=False,
        signed=False,
        evidence="weak",
    ),
}


def possible(config: Config) -> tuple[ExplainMethod, ...]:
    """Return the methods that fit a network, in their order."""
    fits: dict[ExplainMethod, bool] = {
        "integrated_gradients": True,
        "grad_cam": config.architecture in GRAD_CAM_STAGE,
        "lrp": isinstance(config.network, VggSlatSettings) and config.network.lstm_width == 0,
        "attention_rollout": isinstance(config.network, HybridSettings),
        "feature_maps": True,
    }
    return tuple(method for method in EXPLAIN_METHODS if fits[method])


def check(config: Config, params: ClassifyParams) -> None:
    """Check what can only be known where the weights are.

    Raises:
        ParametersInvalid: a method that does not fit the network, or a label that these weights
            do not know.
    """
    can = possible(config)
    wrong = [method for method in params.explain if method not in can]
    if wrong:
        lstm = isinstance(config.network, VggSlatSettings) and config.network.lstm_width > 0
        raise ParametersInvalid(
            f"classify.explain: {', '.join(wrong)} cannot explain {config.architecture}"
            f"{' with an LSTM' if lstm else ''}; possible: {', '.join(can)}"
        )
    if not params.explain:
        return
    strange = [label for label in params.explain_labels if label not in config.labels]
    if strange:
        raise ParametersInvalid(
            f"classify.explain_labels: these weights do not know {', '.join(strange)}; known: "
            f"{', '.join(config.labels)}"
        )
