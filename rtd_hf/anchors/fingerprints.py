"""What the embedding of a caption depends on, as a few hashes: equal ones mean equal embeddings."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..files import hash_bytes, hash_weights
from ..texts import clean_caption, text_id


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The ingredients in the words of an error.
_INGREDIENTS = {
    "encoder": "weights of `model`",
    "architecture": "configuration of `model`",
    "tokenizer": "`tokenizer`",
    "max_length": "`max_length`",
    "cleaning": "rules of `clean_caption`",
}
# What a text encoder computes with besides its weights.
_CONFIGURED = ("model_type", "hidden_act", "layer_norm_eps", "num_attention_heads")
# Whatever cleaning or `text_id` will do differently one day shows in these.
_CLEANING_PROBES = ("  <PERSON> in a $5 RED\u00a0Coat,\tn\u00b0 2\n", "\u0130 <person> $ <|endoftext|> \u201cA\u201d")


def encoder_fingerprint(
    model: nn.Module, tokenizer: "PreTrainedTokenizerBase", *, max_length: int | None = None
) -> dict[str, str]:
    """
    What the anchors of captions depend on, one entry for each ingredient, so that a difference has a name.

    `encoder` hashes names, shapes, dtypes and bytes of all parameters and persistent buffers. It is the same for
    [`CLIPTextModelForRTD`], for the stock class, and for a `PeftModel` around either, whose adapters are left out.
    `tokenizer` hashes vocabulary, merges and normalisation, whatever is set for padding and truncation.

    Args:
        model ([`CLIPTextModelForRTD`]): The encoder, or the model with adapters around it.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer, a fast one or one of SentencePiece.
        max_length (`int`, *optional*): Longest caption in tokens; as many as the encoder has positions by default.

    Returns:
        `dict[str, str]`: `encoder`, `architecture`, `tokenizer`, `max_length` and `cleaning`.

    Raises:
        TypeError: the tokenizer has no serialised form.
    """
    base = base_encoder(model)
    settings = {name: getattr(base.config, name, None) for name in _CONFIGURED}
    settings["dtype"] = str(next(base.parameters()).dtype).removeprefix("torch.")
    cleaned = [clean_caption(probe) for probe in _CLEANING_PROBES]
    return {
        "encoder": hash_weights(_frozen_weights(model)),
        "architecture": ", ".join(f"{name}={value}" for name, value in settings.items()),
        "tokenizer": _hash_tokenizer(tokenizer),
        "max_length": str(caption_length(model, max_length)),
        "cleaning": hash_bytes(json.dumps([[text, text_id(text)] for text in cleaned]).encode()),
    }


def check_same(folder: Path, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """
    Makes sure that anchors were made with what is at hand.

    Args:
        folder (`Path`): Where the anchors are.
        found (`Mapping[str, str]`): Their fingerprint.
        wanted (`Mapping[str, str]`): That of what is at hand.

    Raises:
        ValueError: the two differ; the message says in which ingredients.
    """
    different = [name for name in wanted if found.get(name) != wanted[name]]
    if different:
        named = "; ".join(f"{_INGREDIENTS[name]}: {found.get(name)} there, {wanted[name]} here" for name in different)
        raise ValueError(
            f"The anchors in `{folder}` were made with something else ({named}). Give the frozen encoder, its "
            f"tokenizer and the `max_length` of then, or make anchors of these with `precompute_anchors`, in another "
            f"folder or with `overwrite=True`."
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """A model without the wrappers of `torch.compile`, `DistributedDataParallel` and the like; adapters stay."""
    for name in ("_orig_mod", "module"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return unwrapped(inner)
    return model


def base_encoder(model: nn.Module) -> nn.Module:
    """The text encoder in a model with wrappers and adapters; its layers may still hold the adapters."""
    model = unwrapped(model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def caption_length(model: nn.Module, max_length: int | None) -> int:
    """The length in tokens at which [`RTDTrainer`] cuts captions."""
    return int(max_length or base_encoder(model).config.max_position_embeddings)


def _frozen_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights that count while adapters are off, under the names they have without adapters."""
    base = base_encoder(model)
    weights = base.state_dict()
    if base is unwrapped(model):
        # Adapters of `add_adapter` are never switched off, so here they count.
        return weights
    added = tuple(
        f"{name}.{adapter}."
        for name, module in base.named_modules()
        for adapter in getattr(module, "adapter_layer_names", ())  # PEFT's layers know what they added
    )
    kept = {name: weight for name, weight in weights.items() if not name.startswith(added)}
    return {name.replace(".base_layer.", ".").replace(".original_module.", "."): kept[name] for name in kept}


def _hash_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> str:
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        backend = {name: value for name, value in backend.items() if name not in ("padding", "truncation")}
        return hash_bytes(json.dumps(backend, sort_keys=True).encode())
    pieces = getattr(tokenizer, "sp_model", None)
    if pieces is None:
        raise TypeError(
            f"`tokenizer` must be a fast one or one of SentencePiece, whose vocabulary and rules can be written out, "
            f"got {type(tokenizer).__name__}. Load it with `AutoTokenizer.from_pretrained`."
        )
    # What such a tokenizer does to a text before its pieces are looked up is in its class, not in a file.
    rules = (type(tokenizer).__name__, getattr(tokenizer, "do_lower_case", None), tokenizer.get_added_vocab())
    return hash_bytes(pieces.serialized_model_proto(), json.dumps(rules, sort_keys=True).encode())
