"""What is set for a while and then put back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from torch import nn


@contextmanager
def evaluating(model: "nn.Module") -> Iterator[None]:
    """Evaluation mode for a while; then every module is in its own earlier mode again, also where they differ."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Neither load reports nor progress bars of `transformers` for a while."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
