"""What lets sentence-transformers load a published repository."""

import json
import os
from pathlib import Path


MODULE_FILES = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "rtd_hf.layouts.query_module.ComposedQueryModule"},
    ],
    "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
    "sentence_rtd_config.json": {"is_complete": False, "has_context_encoder": False},
}


def describe_modules(folder: str | os.PathLike) -> None:
    """
    Adds to a published repository what lets sentence-transformers load it: three small files, no weights.

    The vision tower is then taken from the base model that the repository names, as [`load_cir_encoder`] does.

    Args:
        folder (`str` or `os.PathLike`): What [`write_repository`] wrote.

    Raises:
        FileNotFoundError: there is no text encoder or no projection in it.
    """
    folder = Path(folder)
    for needed in ("config.json", "projection/config.json", "preprocessor_config.json"):
        if not (folder / needed).is_file():
            raise FileNotFoundError(f"`{folder}` has no `{needed}`. Write it with `write_repository` first.")
    for name, content in MODULE_FILES.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
