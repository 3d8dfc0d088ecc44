"""From a trained text encoder to a folder that plain transformers loads.

What is published is always the stock class with its projection (`CLIPTextModelWithProjection`, `SiglipTextModel`),
keys `text_model.*`, in safetensors: the one layout that transformers 4.57 and 5 both load, as any text class and in
the whole model. A bare `CLIPTextModel` or a `SiglipTextModel` written by transformers 5 can have flat keys, which 4.x
loads as random weights with only a warning (https://github.com/huggingface/transformers/issues/46285).
"""

import copy
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch

from ..contexts import quiet_transformers
from .encoders import backbone_of, has_adapters
from .folders import prepare_output_dir


ADAPTER_FOLDER = "adapter"
PARTIAL_PREFIX = ".partial-"


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
    from ..models import save_stock

    adapted = has_adapters(model)
    backbone = backbone_of(model.get_base_model() if adapted else model)
    stock = _stock_model(copy.deepcopy(model).merge_and_unload() if adapted else model)
    folder = prepare_output_dir(folder)
    for abandoned in folder.glob(f"{PARTIAL_PREFIX}*"):  # left by a run that was killed
        shutil.rmtree(abandoned, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=folder))
    try:
        with quiet_transformers():
            save_stock(stock, partial, prefix=backbone.saved_prefix)
            if tokenizer is not None:
                save_tokenizer(tokenizer, partial)
            if adapted:
                _save_adapter(model, partial / ADAPTER_FOLDER, base_model=base_model)
        _move_into(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


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


def save_tokenizer(tokenizer, folder: Path) -> None:
    """Saves a tokenizer in the files of both versions of transformers."""
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
