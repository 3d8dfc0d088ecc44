"""Loading PEFT adapters that are proven to act: PEFT itself warns of a dead one and returns the base model's outputs.

An adapter's weights are found by the names of the modules they were trained in. Those of text encoders differ between
classes and versions of `transformers`: an adapter of a bare `CLIPTextModel` of version 5 has no `text_model.` in its
names and fits nothing else, and nothing else fits it. What does not fit keeps its initial value, which is zero.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .models import AutoTextModelForRTD
from .weights import errors_of_loading


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

_NAME = "default"


def load_adapter(
    adapter: str | os.PathLike,
    model: Any = None,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    base_revision: str | None = None,
    is_trainable: bool = False,
    **options: Any,
) -> "PeftModel":
    """
    Loads an adapter onto a text encoder, or raises; there is no adapter that does nothing.

    Args:
        adapter (`str` or `os.PathLike`): Folder or Hub id.
        model (`PreTrainedModel`, `str` or `os.PathLike`, *optional*):
            The text encoder, or a folder or Hub id of it; the base model that the adapter names by default. A model
            that is given gets the adapter's layers; it is put back as it was where this raises.
        revision (`str`, *optional*): The adapter's revision on the Hub.
        subfolder (`str`, *optional*): Where in `adapter` it lies, such as `"adapter"` beside merged weights.
        base_revision (`str`, *optional*): The base model's revision on the Hub; the one the adapter names by default.
        is_trainable (`bool`, *optional*, defaults to `False`): Whether it is trained on.
        options: Further arguments of the downloads, such as `token` or `cache_dir`.

    Returns:
        `PeftModel`: in evaluation mode unless it is trained on.

    Raises:
        ValueError: the adapter is dead (a `lora_B` is all zero), lacks weights, has weights that the text encoder has
            no place for, was trained on another base model, or names none that can be loaded and `model` is missing.
        OSError: there is no such adapter or text encoder.
    """
    from peft import PeftConfig, PeftModel

    name = os.fspath(adapter)
    where = {key: value for key, value in {"revision": revision, "subfolder": subfolder}.items() if value is not None}
    with errors_of_loading(name, "The adapter"):
        config = PeftConfig.from_pretrained(name, **where, **options)
    if getattr(config, "megatron_config", None):  # PEFT would import the module that the file names
        raise ValueError(f"The adapter `{name}` has a `megatron_config`, which no text encoder has. Take it out.")
    config.inference_mode = not is_trainable
    base = _base_model(name, config, model, base_revision=base_revision)
    with errors_of_loading(name, "The adapter"):
        adapted = PeftModel(base, config, _NAME)
    try:
        result = _load_weights(adapted, name, is_trainable=is_trainable, **where, **options)
        _check_keys(name, base, result.missing_keys, result.unexpected_keys)
        check_adapters(adapted, name)
    except BaseException:
        adapted.unload()
        raise
    return adapted


def check_adapters(model: "PeftModel", name: str = "model") -> None:
    """
    Makes sure that every adapter layer of a model changes something.

    Args:
        model (`PeftModel`): The model with its adapters.
        name (`str`, *optional*): Where they came from, for the message.

    Raises:
        ValueError: a `lora_B` is all zero, as before training: the layer gives its base's output.
    """
    layers = [
        (key, value) for key, value in model.named_parameters() if "lora_B." in key or "lora_embedding_B." in key
    ]
    dead = [key for key, value in layers if not value.is_meta and not bool(torch.any(value))]
    if dead:
        raise ValueError(
            f"The adapter `{name}` is dead in {len(dead)} of {len(layers)} layers: `{dead[0]}` is all zero, so the "
            f"text encoder gives what it gives without. Load a trained adapter, with the class it was trained on "
            f"(`CLIPTextModelWithProjection` or `CLIPTextModelForRTD`)."
        )


def _base_model(name: str, config: "PeftConfig", model: Any, *, base_revision: str | None) -> Any:
    recorded = config.base_model_name_or_path
    if model is None and not recorded:
        raise ValueError(
            f"The adapter `{name}` names no base model. Give the text encoder it was trained on as `model`."
        )
    given = getattr(model, "name_or_path", "") if isinstance(model, torch.nn.Module) else os.fspath(model or recorded)
    # A folder says nothing about what lies in it, so only names on the Hub are compared.
    if given and recorded and given != recorded and not Path(given).exists() and not Path(recorded).exists():
        raise ValueError(
            f"The adapter `{name}` was trained on `{recorded}`, but `model` is `{given}`. Give that one, or leave "
            f"`model` out."
        )
    if isinstance(model, torch.nn.Module):
        return model
    revision = base_revision or (config.revision if given == recorded else None)
    return AutoTextModelForRTD.from_pretrained(given, **({} if revision is None else {"revision": revision})).eval()


def _load_weights(adapted: "PeftModel", name: str, **options: Any) -> Any:
    from safetensors import SafetensorError

    try:
        with errors_of_loading(name, "The adapter", leave=(RuntimeError,)):
            return adapted.load_adapter(name, _NAME, **options)
    except SafetensorError as error:
        raise OSError(
            f"The weights of the adapter `{name}` are damaged or cut short ({error}). Download it again."
        ) from error
    except RuntimeError as error:  # of torch: other widths, or another rank than the configuration says
        raise ValueError(
            f"The adapter `{name}` does not fit the text encoder: {error}. Give the one it was trained on as `model`."
        ) from error


def _check_keys(name: str, base: Any, missing: list[str], unexpected: list[str]) -> None:
    if missing or unexpected:
        kinds = (("lacks", missing), ("has unknown", unexpected))
        said = " and ".join(f"{verb} {len(keys)} weights, such as `{keys[0]}`" for verb, keys in kinds if keys)
        raise ValueError(
            f"The adapter `{name}` {said}, for a `{type(base).__name__}`: it was trained in another class or version, "
            f"and would be dead in whole or in part. Load it with the class it was trained on; train adapters on "
            f"`CLIPTextModelWithProjection` or `CLIPTextModelForRTD`, whose names all versions share."
        )
