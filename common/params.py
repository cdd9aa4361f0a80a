"""The parameters a job may set, per stage. Validated where they enter and where they are used.

A worker reads only its own part. ``canonical`` is what goes into the idempotency key.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from common.domain import Stage
from common.errors import ParametersInvalid
from common.labels import LABELS
from common.names import plain_text
from common.text.understanding import MAX_LENGTH, WHY, Abstained, Intent, understand
from common.text.words import plain

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
MAX_WISHES = 100  # texts that say what to remove
ONLY = frozenset({"just", "only", "solely"})  # without a word for removing, they name what is kept
SHOWN_CHARACTERS = 100  # of a text that is refused

MAX_LABEL_NAME = 200
"""Characters of a label, at most, in parameters as in weights."""
MAX_TAGS = 20  # however many labels the weights tell apart

ExplainMethod = Literal[
    "integrated_gradients", "grad_cam", "lrp", "attention_rollout", "feature_maps"
]
EXPLAIN_METHODS: tuple[ExplainMethod, ...] = get_args(ExplainMethod)
"""The ways to explain a label, in the order in which they are shown."""
MAX_EXPLAINED_LABELS = 3
MAX_EXPLAINED_WINDOWS = 3
"""Windows of a recording that are explained per label, at most: they bound time and memory."""


def _in_order(methods: tuple[ExplainMethod, ...]) -> tuple[ExplainMethod, ...]:
    """Return the methods once each, so that the same wish is the same parameter."""
    return tuple(method for method in EXPLAIN_METHODS if method in methods)


def _in_words(wanted: object) -> object:
    """Return labels for what is asked for in words; what is not understood is left as it is."""
    if isinstance(wanted, str):
        return _asked_for(wanted)
    if not isinstance(wanted, list | tuple) or not all(isinstance(one, str) for one in wanted):
        return wanted
    if len(wanted) > MAX_WISHES or sum(map(len, wanted)) > MAX_LENGTH:
        raise ValueError(f"more than {MAX_WISHES} texts, or {MAX_LENGTH} characters together")
    labels: list[str] = []
    for one in wanted:
        try:
            labels += _asked_for(one)
        except ValueError:
            labels.append(one)  # is refused in its place
    return tuple(dict.fromkeys(labels))


def _asked_for(text: str) -> tuple[str, ...]:
    """Return the labels that a text asks to remove: itself, where it is a label.

    Whoever asks to remove something and is half understood would lose or keep the wrong sounds, so
    a text is refused that holds anything that is not understood, or names what is to be kept or
    found.
    """
    if text in LABELS:
        return (text,)
    meant = understand(text)
    words = plain(text)
    removes = meant.intent is Intent.REMOVE
    puzzling = (*meant.others, *meant.unknown, *(guess.label for guess in meant.unsure))
    why = None
    if meant.abstained:
        why = WHY[meant.abstained]
    elif meant.intent is Intent.KEEP or (not removes and ONLY.intersection(words.tokens)):
        why = WHY[Abstained.NEGATED]
    elif meant.intent is Intent.FIND:
        why = "The text asks to find a sound, not to remove it."
    elif puzzling:
        why = f"Not understood: {', '.join(puzzling)}."
    elif words.foreign:
        why = WHY[Abstained.SCRIPT]
    if why is not None:
        raise ValueError(f"{text[:SHOWN_CHARACTERS]!r}: {why} Known: {', '.join(LABELS)}")
    return meant.labels


def _understood(text: str) -> str:
    _asked_for(text)
    return text


LabelName = Annotated[
    str, Field(min_length=1, max_length=MAX_LABEL_NAME), AfterValidator(plain_text)
]
"""A label of any weights: which of them there are is known where the weights are."""
RemovedLabels = Annotated[
    tuple[Annotated[str, AfterValidator(_understood)], ...],
    BeforeValidator(_in_words, json_schema_input_type=str | tuple[str, ...]),
]


class StageParams(BaseModel):
    """Base of the parameters of one stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SegmentParams(StageParams):
    """Regions: mask above ``region_high`` starts one, it lasts while above ``region_low``."""

    region_high: Probability = 0.6
    region_low: Probability = 0.3
    merge_gap_s: float = Field(default=0.2, ge=0.0, le=10.0)
    margin_s: float = Field(default=0.1, ge=0.0, le=5.0)


class ClassifyParams(StageParams):
    """Events at or above ``threshold`` are reported; tags are the ``top_k`` best labels.

    ``threshold`` is of calibrated probabilities; None takes the one that was fitted for the
    weights. ``embeddings`` also stores vectors along time, for finding alike sounds.
    ``explain`` asks for the reasons as an artifact, by these methods; see docs/explanations.md.
    It explains ``explain_labels``, by default the best one, each in the ``explain_windows``
    windows of 5.12 s where it is most confident. What is not asked for is left out of what is
    written down, so that workers of before these wishes existed still read it.
    """

    threshold: Probability | None = Field(default=None, exclude_if=lambda value: value is None)
    top_k: int = Field(default=5, ge=1, le=MAX_TAGS)
    embeddings: bool = Field(default=False, exclude_if=operator.not_)
    explain: Annotated[tuple[ExplainMethod, ...], AfterValidator(_in_order)] = Field(
        default=(), exclude_if=operator.not_
    )
    explain_labels: tuple[LabelName, ...] = Field(
        default=(), max_length=MAX_EXPLAINED_LABELS, exclude_if=operator.not_
    )
    explain_windows: int = Field(
        default=1, ge=1, le=MAX_EXPLAINED_WINDOWS, exclude_if=lambda count: count == 1
    )


class EnhanceParams(StageParams):
    """``gain_floor_db`` bounds suppression; ``widen`` restores a missing top band."""

    denoise: bool = True
    gain_floor_db: float = Field(default=-20.0, ge=-60.0, le=0.0)
    widen: bool = True
    generator: Literal["gan", "l1"] = "gan"


class RestoreParams(StageParams):
    """Events with a label in ``remove`` are taken out and the gap is restored.

    Labels, or words for them: "the barking dog". What is kept of words are the labels.
    """

    remove: RemovedLabels = (
        "car_horn",
        "dog",
        "drilling",
        "gun_shot",
        "jackhammer",
        "siren",
    )


class JobParams(BaseModel):
    """The parameters of a job: one part per stage, defaults where nothing is said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    segment: SegmentParams = SegmentParams()
    classify: ClassifyParams = ClassifyParams()
    enhance: EnhanceParams = EnhanceParams()
    restore: RestoreParams = RestoreParams()

    def of(self, stage: Stage) -> StageParams:
        """Return the part of one stage."""
        part: StageParams = getattr(self, stage.value)
        return part


def parse_params(raw: object) -> JobParams:
    """Return validated parameters from decoded JSON.

    Raises:
        ParametersInvalid: with one sentence naming every field at fault.
    """
    try:
        return JobParams.model_validate(raw)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
            for fault in error.errors()
        )
        raise ParametersInvalid(faults) from error


def merge_params(params: Mapping[str, Any], changes: object) -> dict[str, Any]:
    """Return a job's parameters with what differs for one recording, whole and validated.

    Args:
        params: Those of the job, as ``JobParams`` dumps them.
        changes: Decoded JSON: some stages with some of their parameters.

    Raises:
        ParametersInvalid: with one sentence naming every field at fault.
    """
    if not isinstance(changes, dict):
        raise ParametersInvalid("params: not an object")
    merged: dict[str, Any] = dict(params)
    for stage, part in changes.items():
        merged[stage] = {**merged.get(stage, {}), **part} if isinstance(part, dict) else part
    return parse_params(merged).model_dump(mode="json")


def canonical(params: StageParams) -> str:
    """Return the parameters of a stage as canonical JSON: sorted keys, no spaces."""
    return json.dumps(params.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
