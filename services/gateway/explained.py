"""Labels that are to be explained: asked for here, of those of the weights that are served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import ParametersInvalid
from common.wording import Wording


def check_explained(wording: Wording, params: Mapping[str, Any]) -> None:
    """Return if the labels that parameters name can be explained here.

    What names them elsewhere (a manifest, say) is refused by the classifier, for its recording.

    Args:
        params: of a job, or changes to them for one recording; not validated otherwise.

    Raises:
        ParametersInvalid: names a label that is not known, and those that are.
    """
    part = params.get("classify")
    asked = part.get("explain_labels") if isinstance(part, Mapping) else None
    for label in asked if isinstance(asked, list | tuple) else ():
        if label not in wording.labels:
            raise ParametersInvalid(
                f"classify.explain_labels: unknown label {label!r}; "
                f"known: {', '.join(wording.labels)}"
            )
