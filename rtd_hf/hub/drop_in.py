"""The proof that an exported folder is a drop-in: reloaded with the stock classes only, same embeddings."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..contexts import evaluating, quiet_transformers
from ..tokens import load_tokenizer
from ..weights import errors_of_loading
from .encoders import backbone_of, has_adapters


KEY_PREFIXES = ("text_model.", "text_projection.")
# Short, long, punctuated, in capitals, with the placeholder, and empty: rows of different lengths in one batch.
PROBE_TEXTS = (
    "a photo of a cat",
    "a photo of $ that is red",
    "Two small dogs, left of a blue square; nothing else!",
    "",
)


@dataclass(frozen=True)
class DropInReport:
    """What [`verify_drop_in`] found.

    Attributes:
        max_difference (`float`): Largest absolute difference between the embeddings of the model and the folder.
        num_tensors (`int`): Tensors in the folder's safetensors files.
        num_parameters (`int`): Parameters of the reloaded stock model.
    """

    max_difference: float
    num_tensors: int
    num_parameters: int


def verify_drop_in(
    folder: str | os.PathLike, model, *, tokenizer, texts: Sequence[str] = PROBE_TEXTS, tolerance: float = 1e-5
) -> DropInReport:
    """Reloads an exported folder with the stock classes only and compares it with the model it came from.

    Checked: the safetensors header (keys, `format: pt`), a load as the class with projection (nothing missing, nothing
    unexpected), a load as the bare text model where there is one (only `text_projection.weight` unexpected), the saved
    tokenizer's ids, and the embeddings of both.

    Args:
        folder (`str` or `os.PathLike`): What [`export_text_encoder`] wrote.
        model: The model that was exported. Its training mode is kept.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer the model was trained with.
        texts (`Sequence[str]`): Texts to compare, encoded as one padded batch.
        tolerance (`float`): Largest accepted absolute difference of an embedding (not normalised).

    Returns:
        [`DropInReport`]: With the largest difference found.

    Raises:
        FileNotFoundError: There is no such folder, or no weights in it.
        ValueError: Anything checked does not hold; the message says which and by how much.
    """
    from transformers import AutoModel

    folder = Path(folder)
    tensors = _check_header(folder)
    base = model.get_base_model() if has_adapters(model) else model
    backbone, bare = backbone_of(base), None
    device = next(model.parameters()).device
    with quiet_transformers(), errors_of_loading(str(folder), "The text encoder"):
        reloaded, info = backbone.stock_class.from_pretrained(folder, output_loading_info=True)
        _check_loading_info(folder, backbone.stock_class.__name__, info, unexpected=set())
        if backbone.projection_key:
            bare, info = AutoModel.from_pretrained(folder, output_loading_info=True, trust_remote_code=False)
            _check_loading_info(folder, type(bare).__name__, info, unexpected={backbone.projection_key})
        if (folder / "tokenizer_config.json").is_file():
            _check_tokenizer(folder, tokenizer, load_tokenizer(folder), texts)
    inputs = _probe_rows(backbone, base, tokenizer, texts).to(device)
    largest = int(inputs["input_ids"].max())
    if largest >= base.config.vocab_size:
        raise ValueError(
            f"The tokenizer of `{folder}` gives the token {largest}, but the text encoder has only "
            f"{base.config.vocab_size}. Save the tokenizer of the training beside the weights."
        )
    with torch.no_grad(), evaluating(model):
        expected = getattr(model(**inputs), "text_embeds" if isinstance(base, backbone) else backbone.stock_embeds)
        reloaded = reloaded.to(device).eval()
        found = {backbone.stock_class.__name__: getattr(reloaded(**inputs), backbone.stock_embeds)}
        if bare is not None:
            pooled = bare.to(device).eval()(**inputs).pooler_output
            found[type(bare).__name__] = reloaded.text_projection(pooled)
    differences = {name: (embeds.float() - expected.float()).abs().max().item() for name, embeds in found.items()}
    for name, difference in differences.items():
        if not difference <= tolerance:  # also true for NaN
            raise ValueError(
                f"The drop-in in `{folder}`, loaded as `{name}`, gives other embeddings than the model: largest "
                f"difference {difference:.3g}, accepted {tolerance:.3g}. Do not publish it; export the model again."
            )
    return DropInReport(
        max_difference=max(differences.values()), num_tensors=len(tensors), num_parameters=reloaded.num_parameters()
    )


def _probe_rows(backbone: type, base, tokenizer, texts: Sequence[str]):
    """A batch as users of the stock class make it."""
    rows = tokenizer(
        list(texts),
        padding=backbone.padding,
        truncation=True,
        max_length=base.config.max_position_embeddings,
        padding_side="right",
        return_tensors="pt",
    )
    if backbone.padding == "max_length":
        rows.pop("attention_mask", None)  # padding is read
    return rows


def check_safetensors(path: str | os.PathLike) -> tuple[list[str], dict[str, str]]:
    """Reads the header of a safetensors file, or of all of a folder's, and refuses what is cut off or damaged.

    Args:
        path (`str` or `os.PathLike`): A file, or a folder with `*.safetensors` in it.

    Returns:
        `tuple[list[str], dict[str, str]]`: The names of the tensors and the metadata, of all files together.

    Raises:
        FileNotFoundError: There is no such file, or no safetensors file in the folder.
        ValueError: A file is not whole; the message names it.
    """
    path = Path(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(
            f"No safetensors file at `{path}`. Expected one, or a folder with `config.json` and `model.safetensors`."
        )
    names, metadata = [], {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                names += opened.keys()
                metadata |= opened.metadata() or {}
        except SafetensorError as error:
            raise ValueError(
                f"`{file}` ({file.stat().st_size:,} bytes) is cut off or damaged: {error}. Copy or write it again."
            ) from error
    return names, metadata


def _check_header(folder: Path) -> list[str]:
    names, metadata = check_safetensors(folder)
    if metadata.get("format") != "pt":
        raise ValueError(
            f"The safetensors metadata in `{folder}` must say `format: pt`, but it is {metadata}. Other tools refuse "
            "such a file; write the folder with `export_text_encoder`."
        )
    strange = [name for name in names if not name.startswith(KEY_PREFIXES)]
    if strange:
        raise ValueError(
            f"{len(strange)} of {len(names)} keys in `{folder}` do not start with `{KEY_PREFIXES[0]}`, such as "
            f"`{strange[0]}`: older readers would load random weights. Write the folder with `export_text_encoder`."
        )
    return names


def _check_loading_info(folder: Path, name: str, info: dict, *, unexpected: set[str]) -> None:
    wrong = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "mismatched_keys") if info[kind]}
    if set(info["unexpected_keys"]) != unexpected:
        wrong["unexpected_keys"] = sorted(info["unexpected_keys"])
    if wrong:
        raise ValueError(
            f"`{folder}` does not load cleanly as `{name}`: {wrong}. Write the folder with `export_text_encoder`."
        )


def _check_tokenizer(folder: Path, tokenizer, reloaded, texts: Sequence[str]) -> None:
    for text in texts:
        expected, found = tokenizer(text)["input_ids"], reloaded(text)["input_ids"]
        if expected != found:
            raise ValueError(
                f"The tokenizer in `{folder}` turns {text!r} into {found}, but the model was trained with {expected}. "
                "Save the tokenizer of the training beside the weights."
            )
