"""The Celery app and the one task of the segmenter: ids in, a call, a record out."""

from __future__ import annotations

from functools import cache
from typing import Any

from celery.signals import setup_logging

from common import logs
from common.broker import make_app
from common.messages import ShardMessage
from common.settings import get_settings
from common.stage import Surroundings, open_surroundings, run_shard

app = make_app(get_settings(), "segmenter")


@setup_logging.connect
def _configure_logs(**_: Any) -> None:
    logs.configure(get_settings(), "segmenter")


@cache
def surroundings() -> Surroundings:
    """Connect once per child process, never in the parent."""
    return open_surroundings(get_settings())


@cache
def model() -> Any:
    """Load the model once per child process, at first use: the parent never imports torch."""
    import torch

    from services.segmenter.infer import load

    torch.set_num_threads(get_settings().torch_threads)
    return load(get_settings().device)


@app.task(name="segmenter.run_shard")
def run(message: dict[str, Any]) -> None:
    """Run one shard. See ``common.stage``."""
    from services.segmenter.infer import process

    run_shard(surroundings(), ShardMessage.model_validate(message), model, process)
