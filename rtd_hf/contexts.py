"""What is set for a while and then put back as it was."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch


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


def adapters_off(model: "nn.Module") -> AbstractContextManager:
    """The base model's weights alone for a while, in a model with adapters; nothing to be done in any other."""
    return model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()


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


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """
    Matrix products in full float32, whatever autocast and TF32 are set to. It is all put back, on an exception too.

    Half precision and TF32 are an error of 1e-3 in a similarity, and so of 1 in a logit at temperature 0.001.

    PyTorch has two interfaces since 2.9. Reading the older one raises where the two disagree, also within cuBLAS
    tuning, so both are switched. In the newer one a part follows the whole until it is set itself: once the whole is
    taken back, a part shows what was set for it alone.
    """
    whole, parts = [], []
    if hasattr(torch.backends, "fp32_precision"):
        whole = [torch.backends, torch.backends.cudnn]
        parts = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    reduced = any(part.fp32_precision not in ("none", "ieee") for part in parts)
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device_type, enabled=False))
        if reduced or torch.get_float32_matmul_precision() != "highest":
            for setting in (*whole, *parts):
                stack.callback(setattr, setting, "fp32_precision", setting.fp32_precision)
                setting.fp32_precision = "none" if setting in whole else "ieee"
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        yield
