"""What can be wrong with the weights of a checkpoint, as errors that name it: cut short, damaged, not finite."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch


def load_complete(
    load: Callable[..., Any], name: str, *args: Any, kind: str, advice: str, **kwargs: Any
) -> tuple[Any, dict[str, Any]]:
    """
    Calls a `from_pretrained`, and takes nothing from it that is cut short, incomplete or not finite.

    Args:
        load (`Callable`): The `from_pretrained`.
        name (`str`): Folder or Hub id.
        args, kwargs: For `load`; `subfolder` is where in a folder the files are.
        kind (`str`): What is loaded, for the message about weights that are missing.
        advice (`str`): What to do about them.

    Returns:
        `tuple`: the model, and the loading report.

    Raises:
        OSError: a file is damaged or cut short.
        ValueError: weights are missing, which would be random, or not finite.
    """
    from safetensors import SafetensorError

    try:
        model, report = load(name, *args, output_loading_info=True, **kwargs)
    except SafetensorError as error:  # as terse as "InvalidHeaderDeserialization"
        path = os.path.join(name, kwargs.get("subfolder") or "", "model.safetensors")
        where = path if os.path.isfile(path) else name
        raise OSError(
            f"The weights of `{where}` are damaged or cut short ({error}). Delete the file and download or convert it "
            f"again."
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"The checkpoint `{name}` lacks {len(missing)} weight(s) of {kind}, among them `{missing[0]}`; they would "
            f"be random. {advice}"
        )
    check_finite(model.state_dict(), name)
    return model, report


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
