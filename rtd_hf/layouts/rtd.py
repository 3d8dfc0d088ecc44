"""The checkpoint of the published RTD script: the state dict of `CLIPTextModelWithProjection` under that name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .base import LAYOUTS, Contents
from .state_dicts import StateDictLayout


KEY = "CLIPTextModelWithProjection"
_OLD_BUFFER = "text_model.embeddings.position_ids"  # of transformers before 4.31


@LAYOUTS.register("rtd")
class PublishedRTDLayout(StateDictLayout):
    """
    `{"epoch": 0, "CLIPTextModelWithProjection": state_dict}` in float32, which the published scripts of RTD (Byun et
    al., 2025) evaluate and resume from; a bare state dict in `transformers`' naming is read too.
    """

    summary = "The published RTD scripts' `text_encoder_best.pt`."
    file_name = "text_encoder_best.pt"

    def recognises(self, names: set[str]) -> bool:
        """Whether the names are those of `transformers`."""
        return "text_model.encoder.layers.0.self_attn.q_proj.weight" in names

    def from_stock(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The names are the same; the scripts write float32."""
        return {name: tensor.float() for name, tensor in state.items()}

    def to_stock(self, contents: Contents) -> dict[str, torch.Tensor]:
        """See [`StateDictLayout`]; of a whole CLIP the rest is left out."""
        own = ("text_model.", "text_projection.")
        kept = {
            name: tensor for name, tensor in contents.state.items() if name.startswith(own) and name != _OLD_BUFFER
        }
        contents.dropped += [name for name in contents.state if name not in kept]
        return {name: tensor.clone() for name, tensor in kept.items()}

    def save(self, tensors: dict[str, torch.Tensor], file: Path, config: Any) -> None:
        """Writes the dictionary of the published scripts."""
        torch.save({"epoch": 0, KEY: tensors}, file)
