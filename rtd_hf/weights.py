"""What can be wrong with the weights of a checkpoint, as errors that name it: cut short, damaged, not finite."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch


def load_whole(load: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    """
    Calls a function that loads weights, and turns safetensors' terse complaint about a damaged file into a useful one.

    Args:
        load (`Callable`): Called as `load(name, *args, **kwargs)`.
        name (`str`): Folder or Hub id.
        args, kwargs: For `load`; `subfolder` is where in a folder the files are.

    Returns:
        What `load` returned.

    Raises:
        OSError: a file is damaged or cut short.
    """
    from safetensors import SafetensorError

    try:
        return load(name, *args, **kwargs)
    except SafetensorError as error:
        path = os.path.join(name, kwargs.get("subfolder") or "", "model.safetensors")
        where = path if os.path.isfile(path) else name
        raise OSError(
            f"The weights of `{where}` are damaged or cut short ({error}). Delete the file and download or convert it "
            f"again."
        ) from error


def check_finite(weights: Mapping[str, torch.Tensor], name: str) -> None:
    """
    Makes sure that no weight is NaN or infinite: such a model gives NaN for every input, or in a layer that is rare.

    Args:
        weights (`Mapping[str, torch.Tensor]`): Weights by name; quantized ones and those on no device are passed over.
        name (`str`): Where they came from, for the message.

    Raises:
        ValueError: one is not; the message names the first and counts them.
    """
    broken = [
        key
        for key, weight in weights.items()
        if weight.is_floating_point()
        and weight.element_size() > 1
        and not weight.is_meta
        and not torch.isfinite(weight).all()
    ]
    if broken:
        wrong = weights[broken[0]]
        number = int((~torch.isfinite(wrong)).sum())
        raise ValueError(
            f"`{name}` has values that are not finite in {len(broken)} of {len(weights)} weights, first in "
            f"`{broken[0]}` ({number} of {wrong.numel()}). Download or convert the checkpoint again, or take one from "
            f"before its training diverged."
        )
