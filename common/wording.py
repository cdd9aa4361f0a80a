"""What texts may name where this process runs: the labels served here; and how they are read.

Parameters do not ask here: what is to be removed must mean the same in every process, and is never
guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import EncoderInvalid, WeightsInvalid
from common.labels import LABELS
from common.settings import Settings
from common.text.understanding import Judge, Understood, understand
from common.weights_header import labels_of

if TYPE_CHECKING:
    from common.text.encoder import Encoder

ENCODER_SETTING = "SOUNDMILL_TEXT_ENCODER"
WEIGHTS_SETTING = "SOUNDMILL_CLASSIFIER_WEIGHTS"


@dataclass(frozen=True)
class Wording:
    """How texts are understood here. ``labels``: all that may be named, the shipped ones first."""

    labels: tuple[str, ...] = LABELS
    judge: Judge | None = None

    def understand(self, text: str) -> Understood:
        """Return what a text asks for."""
        return understand(text, labels=self.labels, judge=self.judge)


def wording_of(settings: Settings, tell: Callable[[str], None]) -> Wording:
    """Return how texts are understood with these settings.

    Args:
        tell: Is told in a sentence what cannot be read: then texts do without it.
    """
    labels = LABELS
    if settings.classifier_weights is not None:
        try:
            own = labels_of(settings.classifier_weights)
            labels = tuple(dict.fromkeys((*LABELS, *own)))
        except WeightsInvalid as error:
            tell(f"{WEIGHTS_SETTING}: {error}; texts name the shipped labels alone")
    if settings.text_encoder is None:
        return Wording(labels)
    try:
        encoder = _encoder_of(settings.text_encoder, labels, settings.text_encoder_threshold)
    except EncoderInvalid as error:
        tell(f"{ENCODER_SETTING}: {error}; texts are understood without it")
        return Wording(labels)
    return Wording(labels, encoder.nearest)


def _encoder_of(folder: Path, labels: tuple[str, ...], threshold: float) -> Encoder:
    """Return the encoder. Its libraries are imported here, and not where none is wanted.

    Raises:
        EncoderInvalid: the extra is not installed, or there is no good model in the folder.
    """
    try:
        from common.text.encoder import Encoder
    except ImportError as error:
        raise EncoderInvalid(
            "its library is not installed: pip install 'soundmill[encoder]'"
        ) from error
    return Encoder(folder, labels, threshold)
