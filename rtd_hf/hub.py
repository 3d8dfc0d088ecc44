"""From a trained text encoder to a folder that plain transformers loads: the checks, the export and the proof.

What is published is always the stock class with its projection (`CLIPTextModelWithProjection`, `SiglipTextModel`),
keys `text_model.*`, in safetensors: the one layout that transformers 4.57 and 5 both load, as any text class and in
the whole model. A bare `CLIPTextModel` or a `SiglipTextModel` written by transformers 5 can have flat keys, which 4.x
loads as random weights with only a warning (https://github.com/huggingface/transformers/issues/46285).
"""

import copy
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .contexts import evaluating, quiet_transformers


OWNER_FILE = ".rtd_hf.json"
ADAPTER_FOLDER = "adapter"
PARTIAL_PREFIX = ".partial-"
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


# --------------------------------------------------------------------------------------------------- the output folder
def prepare_output_dir(folder: str | os.PathLike) -> Path:
    """Makes sure `folder` can take our files, before any work is done, and marks it as ours.

    A folder is taken when it does not exist yet, is empty, or carries the marker file `.rtd_hf.json` that this
    function leaves in it; so running the same command twice just works, and nobody else's files are overwritten.
    Several processes may call it at the same time.

    Args:
        folder (`str` or `os.PathLike`): The folder, made with its parents where it is missing.

    Returns:
        `Path`: The folder.

    Raises:
        FileExistsError: The folder holds files that were not written by `rtd_hf`.
        NotADirectoryError: The path, or a part of it, is a file.
        PermissionError: The folder cannot be made or written.
    """
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"The output folder `{folder}` cannot be made: it, or a part of its path, is a file. "
            "Choose another output folder."
        ) from error
    except OSError as error:
        raise _unwritable(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _unwritable(folder, PermissionError(errno.EACCES, "Permission denied"))
    # Listed first, asked for the marker second: another process that starts at the same time can only add the marker.
    entries = sorted(entry.name for entry in folder.iterdir())
    marker = folder / OWNER_FILE
    if entries and not marker.is_file():
        shown = ", ".join(f"`{name}`" for name in entries[:5]) + (", ..." if len(entries) > 5 else "")
        raise FileExistsError(
            f"The output folder `{folder}` holds {len(entries)} entries that rtd_hf did not write: {shown}. "
            "Nothing was changed. Choose an empty or a new folder, such as a sub-folder of this one."
        )
    try:
        from . import __version__

        marker.write_text(json.dumps({"written_by": "rtd_hf", "version": __version__}) + "\n", encoding="utf-8")
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def _unwritable(folder: Path, error: OSError) -> OSError:
    """`error` as one that names the folder and the remedy; anything else (a full disk, say) stays as it is."""
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        return error
    return PermissionError(
        f"The output folder `{folder}` cannot be written ({error.strerror}). Nothing was changed. "
        "Give yourself write access to it, or choose another output folder."
    )


# -------------------------------------------------------------------------------------------------------------- export
def export_text_encoder(model, folder: str | os.PathLike, *, tokenizer=None, base_model: str | None = None) -> Path:
    """Writes a trained text encoder as a drop-in: the stock class, its stock keys, the tokenizer beside it.

    The files are written to a temporary sub-folder first and moved into place when all of them are complete, so an
    interrupted export leaves no half-written file under a final name.

    Args:
        model ([`CLIPTextModelForRTD`] or another backbone, its stock class, or a `PeftModel` around one of them):
            The encoder. Adapters are merged on a copy; `model` itself is not changed.
        folder (`str` or `os.PathLike`): See [`prepare_output_dir`] for which folders are taken.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Saved beside the weights, with `vocab.json` and `merges.txt` for readers that know no `tokenizer.json`.
        base_model (`str`, *optional*):
            Hub id of the model that the adapter belongs to, for its `adapter_config.json`, which keeps no local path.

    Returns:
        `Path`: The folder. With adapters in `model`, they lie unmerged in its sub-folder `adapter`.

    Raises:
        TypeError: `model` is not a text encoder with its projection.
        ValueError: A weight is not finite.
        FileExistsError, NotADirectoryError, PermissionError: See [`prepare_output_dir`].
    """
    from .models import save_stock

    adapted = _has_adapters(model)
    backbone = _backbone(model.get_base_model() if adapted else model)
    stock = _stock_model(copy.deepcopy(model).merge_and_unload() if adapted else model)
    folder = prepare_output_dir(folder)
    for abandoned in folder.glob(f"{PARTIAL_PREFIX}*"):  # left by a run that was killed
        shutil.rmtree(abandoned, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=folder))
    try:
        with quiet_transformers():
            save_stock(stock, partial, prefix=backbone.saved_prefix)
            if tokenizer is not None:
                _save_tokenizer(tokenizer, partial)
            if adapted:
                _save_adapter(model, partial / ADAPTER_FOLDER, base_model=base_model)
        _move_into(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _has_adapters(model) -> bool:
    """Whether this is a `PeftModel`, asked without importing peft."""
    return hasattr(model, "get_base_model") and hasattr(model, "merge_and_unload")


def _stock_model(model) -> torch.nn.Module:
    """The model as its stock class, weights shared. The strict load in `to_stock` proves that nothing was added."""
    stock = model.to_stock() if hasattr(model, "to_stock") else model
    state_dict = stock.state_dict()
    broken = [name for name, tensor in state_dict.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(
            f"`model` has values that are not finite in {len(broken)} of {len(state_dict)} tensors, first in "
            f"`{broken[0]}`. It was not written. Train again with a lower learning rate or from an earlier checkpoint."
        )
    return stock


def _backbone(model) -> type:
    """The class for training that belongs to a model of it, or to one of its stock class."""
    from .models import BACKBONES

    by_stock_class = {backbone.stock_class: backbone for backbone in BACKBONES.values()}
    stock_class = getattr(model, "stock_class", type(model))
    if stock_class not in by_stock_class:
        known = sorted(known_class.__name__ for known_class in by_stock_class)
        raise TypeError(
            f"`model` must be a text encoder with its projection ({', '.join(known)}, its class for training, or a "
            f"`PeftModel` around one), but is a `{type(model).__name__}`. Load it with such a class; take a model out "
            "of its parallel wrapper with `accelerator.unwrap_model(model)`."
        )
    return by_stock_class[stock_class]


def _save_tokenizer(tokenizer, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and type(backend.model).__name__ == "BPE":
        # transformers 5 writes tokenizer.json alone; `CLIPTokenizer` of 4.x reads vocab.json and merges.txt.
        backend.model.save(str(folder))
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(config.get("extra_special_tokens"), list):
        # As transformers 5 writes it; 4.x wants a mapping under this name, and the list under its older one.
        more = config.pop("extra_special_tokens")
        config |= {"additional_special_tokens": more} if more else {}
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def _save_adapter(model, folder: Path, *, base_model: str | None) -> None:
    model.save_pretrained(folder)
    for file in folder.rglob("adapter_config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        recorded = base_model or config.get("base_model_name_or_path")
        # PEFT records whatever path the base was loaded from; somebody else's machine has no such path.
        config["base_model_name_or_path"] = None if recorded and Path(recorded).exists() else recorded
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card


def _move_into(partial: Path, folder: Path) -> None:
    # An adapter of an earlier export does not belong to these weights.
    shutil.rmtree(folder / ADAPTER_FOLDER, ignore_errors=True)
    for entry in sorted(partial.iterdir()):
        os.replace(entry, folder / entry.name)


# --------------------------------------------------------------------------------------------------------------- proof
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
    from transformers import AutoModel, AutoTokenizer

    folder = Path(folder)
    tensors = _check_header(folder)
    base = model.get_base_model() if _has_adapters(model) else model
    backbone, bare = _backbone(base), None
    device = next(model.parameters()).device
    with quiet_transformers():
        reloaded, info = backbone.stock_class.from_pretrained(folder, output_loading_info=True)
        _check_loading_info(folder, backbone.stock_class.__name__, info, unexpected=set())
        if backbone.projection_key:
            bare, info = AutoModel.from_pretrained(folder, output_loading_info=True)
            _check_loading_info(folder, type(bare).__name__, info, unexpected={backbone.projection_key})
        if (folder / "tokenizer_config.json").is_file():
            _check_tokenizer(folder, tokenizer, AutoTokenizer.from_pretrained(folder), texts)
    inputs = _probe_rows(backbone, base, tokenizer, texts).to(device)
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
