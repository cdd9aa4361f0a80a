"""Integrated gradients and Grad-CAM, both as captum has them.

Sources: Sundararajan, Taly and Yan 2017, "Axiomatic attribution for deep networks"; Selvaraju et
al. 2017, "Grad-CAM".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from services.classifier.explain.methods import GRAD_CAM_STAGE
from services.classifier.explain.question import SILENCE, Question, Relevance, relevance_of

STEPS = (64, 128)
"""Points on the way from silence to the sound: the second number where the first misses the sum by
more than ``GOOD_ERROR``."""
GOOD_ERROR = 0.01
BATCH_STEPS = 8
"""How many of them are in memory at a time."""


def integrated_gradients(question: Question) -> Relevance:
    """Return what each bin adds to the logit on the straight way from silence to the sound.

    The sum over all bins is the logit of the sound less that of silence.
    """
    from captum.attr import IntegratedGradients

    x = question.logmel
    silence = torch.full_like(x, SILENCE)
    with torch.no_grad():
        gain = question.logits(x, question.cells) - question.logits(silence, question.cells)

    def along(n_steps: int) -> Relevance:
        values = IntegratedGradients(question.logits).attribute(
            x,
            baselines=silence,
            additional_forward_args=question.cells,
            n_steps=n_steps,
            method="gausslegendre",
            internal_batch_size=BATCH_STEPS,
        )
        return relevance_of(values[0], float(gain))

    found = along(STEPS[0])
    if found.conservation_error is not None and found.conservation_error > GOOD_ERROR:
        found = along(STEPS[1])
    return found


def grad_cam(question: Question) -> Relevance:
    """Return where the maps are active whose growth would raise the logit, at least 0."""
    from captum.attr import LayerGradCam

    model = question.model
    stage = model.network.feature_stages()[GRAD_CAM_STAGE[model.config.architecture]]
    coarse = LayerGradCam(question.logits, stage).attribute(
        question.logmel, additional_forward_args=question.cells, relu_attributions=True
    )  # (1, 1, f, t)
    fine = F.interpolate(coarse, question.logmel.shape[1:], mode="bilinear", align_corners=False)
    return relevance_of(fine[0, 0])
