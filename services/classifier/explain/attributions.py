"""Integrated gradients and Grad-CAM, both as captum has them.

Sources: Sundararajan, Taly and Yan 2017, "Axiomatic attribution for deep networks"; Selvaraju et
al. 2017, "Grad-CAM". We depart in that Grad-CAM may weigh the maps of several stages on one grid:
their sum is taken before its negative part is cut off.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from services.classifier.explain.methods import GRAD_CAM_STAGES
from services.classifier.explain.question import SILENCE, Question, Relevance, relevance_of

STEPS = 64
BATCH_STEPS = 8
"""Points on the way from silence to the sound, and how many are in memory at a time."""


def integrated_gradients(question: Question) -> Relevance:
    """Return what each bin adds to the logit on the straight way from silence to the sound.

    The sum over all bins is the logit of the sound less that of silence.
    """
    from captum.attr import IntegratedGradients

    x = question.logmel
    silence = torch.full_like(x, SILENCE)
    values = IntegratedGradients(question.logits).attribute(
        x,
        baselines=silence,
        additional_forward_args=question.cells,
        n_steps=STEPS,
        method="gausslegendre",
        internal_batch_size=BATCH_STEPS,
    )
    with torch.no_grad():
        gain = question.logits(x, question.cells) - question.logits(silence, question.cells)
    return relevance_of(values[0], float(gain))


def grad_cam(question: Question) -> Relevance:
    """Return where the maps are active whose growth would raise the logit, at least 0."""
    from captum.attr import LayerGradCam

    network = question.model.network
    stages = network.feature_stages()
    coarse: list[Tensor] = [
        LayerGradCam(question.logits, stages[name]).attribute(
            question.logmel, additional_forward_args=question.cells
        )
        for name in GRAD_CAM_STAGES[question.model.config.architecture]
    ]
    summed = F.relu(torch.stack(coarse).sum(0))  # (1, 1, f, t)
    fine = F.interpolate(summed, question.logmel.shape[1:], mode="bilinear", align_corners=False)
    return relevance_of(fine[0, 0])
