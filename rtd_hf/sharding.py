"""Models whose weights are spread over processes (FSDP2), put together again."""

import copy
from collections.abc import Mapping

import torch
from torch import nn

from .models import BACKBONES


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds a part of some weights only."""
    return any(hasattr(weight, "full_tensor") for weight in model.parameters())


def whole_weights(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Weights of which each process holds a part, whole and on the CPU. To be called by all processes.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): Weights; those that are whole are passed on.

    Returns:
        `dict[str, torch.Tensor]`, the same on every process.
    """
    return {
        name: weight.full_tensor().cpu() if hasattr(weight, "full_tensor") else weight
        for name, weight in state_dict.items()
    }


def unsharded(model: nn.Module) -> nn.Module:
    """
    A text encoder in one piece. To be called by all processes.

    A sharded model must run on all processes at once, and equally often; what is to be evaluated or exported on one
    alone is this.

    Args:
        model (`nn.Module`): The encoder, out of its parallel wrapper; or a `PeftModel` around it.

    Returns:
        `nn.Module`: `model` itself, or where it is sharded a copy with all weights on the device of the parts, in the
        same mode.
    """
    if not is_sharded(model):
        return model
    weights, device = whole_weights(model.state_dict()), next(model.parameters()).device
    adapted = hasattr(model, "get_base_model")
    base = model.get_base_model() if adapted else model
    # FSDP2 gives the model a class of its own, below the one it had.
    kind = next(kind for kind in type(base).__mro__ if kind in BACKBONES.values())
    with torch.device("cpu"):
        plain: nn.Module = kind(copy.deepcopy(base.config))
        if adapted:
            from peft import get_peft_model

            for name, config in model.peft_config.items():
                plain = get_peft_model(plain, copy.deepcopy(config), adapter_name=name)
    plain.load_state_dict(weights, strict=True)
    return plain.to(device).train(model.training)
