"""The Celery app and the one task of the enhancer: ids in, a call, a record out."""

from __future__ import annotations

from functools import cache
from typing import Any

from common.broker import make_app
from common.domain import STAGE_OF
from common.settings import get_settings
from common.stage import Surroundings, open_surroundings, run_message
from common.worker import attend

app = make_app(get_settings(), "enhancer")
drain = attend(app, get_settings(), "enhancer")


@cache
def surroundings() -> Surroundings:
    """Connect once per child process, never in the parent."""
    return open_surroundings(get_settings(), drain)


@cache
def model() -> Any:
    """Load the model once per child process, at first use: the parent never imports torch."""
    import torch

    from services.enhancer.infer import load

    torch.set_num_threads(get_settings().torch_threads)
    return load(get_settings().device)


@app.task(name="enhancer.run_shard")
def run(message: Any) -> None:
    """Do what one message asks for. See ``common.stage``."""
    from services.enhancer.infer import process_shard

    run_message(surroundings(), STAGE_OF["enhancer"], message, model, process_shard)
