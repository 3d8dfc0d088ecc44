"""The naming of OpenAI's own `clip` package: that of open_clip's plain `CLIP`, in a file of `torch.save`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .base import LAYOUTS, Contents
from .open_clip import OpenCLIPLayout


# What the package reads out of the state dict besides weights; it derives the same from the shapes.
_NUMBERS = ("input_resolution", "context_length", "vocab_size")
_WIDTH = "text_model.final_layer_norm.weight"


@LAYOUTS.register("openai")
class OpenAILayout(OpenCLIPLayout):
    """
    The state dict of OpenAI's `clip` package.

    Alone it is `text_tower.pt`, for `model.load_state_dict(tensors, strict=False)` on a model of `clip.load`. With
    `base`, a state dict of the whole model in this layout, it is that with the text tower replaced, which
    `clip.load(file)` builds. The package knows heads of width 64 and `quick_gelu` only, so no `base` is needed for
    reading.
    """

    summary = "OpenAI's `clip` package; with `base`, its whole state dict with the text tower replaced."
    file_name = "text_tower.pt"
    whole_file_name = "clip.pt"
    others = (*OpenCLIPLayout.others, *_NUMBERS)

    def config_facts(self, contents: Contents, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """What the package builds from any state dict."""
        return {"hidden_act": "quick_gelu"} | (
            {"num_attention_heads": len(state[_WIDTH]) // 64} if _WIDTH in state else {}
        )

    def check_config(self, config) -> None:
        """Refuses what the package would run in another way."""
        super().check_config(config)
        heads = config.hidden_size // 64
        if config.hidden_act != "quick_gelu" or config.num_attention_heads != heads:
            raise ValueError(
                f"OpenAI's package runs every text tower with `hidden_act` 'quick_gelu' and heads of width 64, but "
                f"`model` has {config.hidden_act!r} and {config.num_attention_heads} heads for a width of "
                f"{config.hidden_size}: it would compute other embeddings. Use the layout `open_clip`."
            )

    def save(self, tensors: dict[str, torch.Tensor], file: Path, config: Any) -> None:
        """Writes a file of `torch.save`; the package reads no other."""
        torch.save(tensors, file)
