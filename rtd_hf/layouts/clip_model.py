"""A complete CLIP in `transformers`' layout: the trained text tower in it, all else as it was."""

import os
from pathlib import Path
from typing import Any

from ..contexts import quiet_transformers
from ..hub.export import save_tokenizer
from ..models import CLIPTextModelForRTD
from ..models.checkpoints import read_config
from ..weights import load_complete
from .base import LAYOUTS, Layout, Parts, listed, shapes_of, whole_folder


# What a text tower computes by besides its weights; `eos_token_id` says where it is pooled.
_COMPUTED_BY = ("hidden_act", "num_attention_heads", "layer_norm_eps", "eos_token_id")


@LAYOUTS.register("clip_model")
class CLIPModelLayout(Layout):
    """
    A folder that loads as [`~transformers.CLIPModel`] and [`~transformers.CLIPProcessor`], also in pipelines.

    `base` is the CLIP that the text encoder was trained from; its vision tower, its logit scale and its image
    processor are kept bit by bit.
    """

    summary = "A complete `CLIPModel` repository: vision tower, logit scale and image processor of `base`."
    needs = ("base", "tokenizer")
    takes = ("revision",)

    def write(self, encoder, folder: Path, parts: Parts) -> Path:
        """See [`Layout`]."""
        where = {} if parts.revision is None else {"revision": parts.revision}
        with quiet_transformers():
            whole = load_base(parts.base, **where)
            swap_in(whole, encoder, parts.base)
            image_processor = CLIPTextModelForRTD.load_image_processor(parts.base, **where)
            with whole_folder(folder) as partial:
                whole.save_pretrained(partial)
                save_tokenizer(parts.tokenizer, partial)
                image_processor.save_pretrained(partial)
        return folder


def load_base(base: Any, **where: Any):
    """The whole CLIP `base`, with all its weights."""
    from transformers import CLIPModel

    model_type = read_config(os.fspath(base), **where).get("model_type")
    if model_type != "clip":
        raise ValueError(
            f"`base` must be a whole CLIP, but `{base}` is of `model_type` {model_type!r}. Give the CLIP that the "
            f"text encoder was trained from."
        )
    whole, _ = load_complete(
        CLIPModel.from_pretrained,
        os.fspath(base),
        kind="CLIPModel",
        advice="Give the CLIP that the text encoder was trained from as `base`.",
        **where,
    )
    return whole.eval()


def swap_in(whole, encoder, name: Any) -> None:
    """
    Puts a text encoder into a whole CLIP.

    Raises:
        ValueError: its own text tower is of another architecture.
    """
    own = whole.config.text_config
    state = {key: tensor.detach() for key, tensor in encoder.state_dict().items()}
    expected = {
        key: tensor
        for key, tensor in whole.state_dict().items()
        if key.startswith(("text_model.", "text_projection."))
    }
    found, wanted = shapes_of(state), shapes_of(expected)
    wrong = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
    wrong += [key for key in _COMPUTED_BY if getattr(own, key) != getattr(encoder.config, key)]
    if wrong:
        raise ValueError(
            f"`base` `{name}` has another text tower than `model`: they differ in {listed(wrong)}. Give the CLIP that "
            f"the text encoder was trained from."
        )
    whole.load_state_dict({**whole.state_dict(), **state}, strict=True)
