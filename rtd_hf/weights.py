"""What can be wrong with the weights of a checkpoint, as errors that name it: cut short, damaged, not finite."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


_MOST_LAYERS = 1_000  # each costs time and memory, whatever its size


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
        with errors_of_loading(name, kind):
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


@contextmanager
def errors_of_loading(name: str, kind: str, *, leave: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """
    Errors of `transformers` about files that hold something else than they should, as `ValueError` with their names.

    Its loaders believe what stands in a configuration, a tokenizer or a header, and fail in whatever way they first
    meet what is wrong. Errors that say what to do (`OSError` of what is missing, `ImportError`) stay as they are.

    Args:
        name (`str`): Folder or Hub id.
        kind (`str`): What is loaded.
        leave (`tuple[type[Exception], ...]`, *optional*): Further errors that stay as they are.

    Raises:
        ValueError: instead of anything else.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ImportError, SafetensorError, MemoryError, *leave):
        raise
    except Exception as error:
        said = str(error)
        if isinstance(error, ValueError) and name in said and type(error) is ValueError:
            raise
        reason = (said.strip().splitlines() or [""])[0][:300]
        raise ValueError(
            f"{kind} of `{name}` cannot be loaded: a file of it is damaged, or holds something else than it should "
            f"({type(error).__name__}: {reason}). Download or convert it again."
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


def check_config_values(config: Mapping[str, Any], name: str) -> None:
    """
    Makes sure that a configuration asks for no code from elsewhere, and for no more layers than a machine can build.

    Args:
        config (`Mapping[str, Any]`): As it stands in the file.
        name (`str`): Folder or Hub id, for the message.

    Raises:
        ValueError: it names an attention that would be downloaded as code (`owner/kernel`), or a number of layers that
            is none.
    """
    for part in (config, *(value for value in config.values() if isinstance(value, Mapping))):
        attention = part.get("attn_implementation") or part.get("_attn_implementation")
        if "/" in str(attention):
            raise ValueError(
                f"The configuration of `{name}` asks for the attention {attention!r}, which is code on the Hub. It is "
                f"not fetched. Remove `attn_implementation` from its `config.json`."
            )
        for key in ("num_hidden_layers", "num_layers"):
            number = part.get(key, 1)
            if not isinstance(number, int) or not 0 <= number <= _MOST_LAYERS:
                raise ValueError(
                    f"The configuration of `{name}` states `{key}` {str(number)[:40]}, but it must be an integer from "
                    f"0 to {_MOST_LAYERS}. Download or convert the checkpoint again."
                )
