"""The layouts of the authors' checkpoints: what lies around a projection's state dict, and whose keys those are."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers.utils import logging

from .original_files import InertObject, flatten_module


logger = logging.get_logger(__name__)

# Families of keys, told apart by these beginnings; a later one's keys may also occur in an earlier family.
_MARKS = (
    ("fti4cir", ("templates", "phi_s.", "phi_a.", "local_atte_fc.")),
    ("context_i2w", ("VT_Extractor.", "W_R.", "to_c.", "local_gate", "layers_local.")),
    ("pic2word", ("layers.0.0.", "layers.1.0.", "fc_out.")),
    ("searle", ("layers.0.", "layers.3.", "layers.6.")),
)
_TWINS = ("searle", "lincir")  # the same network and keys; they differ in preprocessing
# Where the numbers of the configuration are written: option -> (key, dimension).
_MLP_SIZES = {"input_dim": ("layers.0.weight", 1), "hidden_dim": ("layers.0.weight", 0)}
SIZES = {
    "searle": {**_MLP_SIZES, "output_dim": ("layers.6.weight", 0)},
    "lincir": {**_MLP_SIZES, "output_dim": ("layers.6.weight", 0)},
    "pic2word": {
        "input_dim": ("layers.0.0.weight", 1),
        "hidden_dim": ("layers.0.0.weight", 0),
        "output_dim": ("fc_out.weight", 0),
    },
    "context_i2w": {
        "input_dim": ("to_c.weight", 1),
        "hidden_dim": ("layers.0.0.weight", 0),
        "output_dim": ("fc_out.weight", 0),
        "vision_hidden_size": ("W_R.weight", 0),
        "num_latents": ("VT_Extractor.latents", 0),
    },
    "fti4cir": {
        "input_dim": ("phi_s.layers.0.weight", 1),
        "hidden_dim": ("phi_s.layers.0.weight", 0),
        "output_dim": ("phi_s.layers.6.weight", 0),
        "vision_hidden_size": ("templates", 2),
        "num_templates": ("templates", 1),
    },
}
_CLIP_KEYS = (
    *("visual.", "vision_model.", "visual_projection.", "text_model.", "text_projection", "logit_scale"),
    *("transformer.resblocks.", "token_embedding.", "positional_embedding"),
)


@dataclass
class Found:
    """A state dict on its way to a projection."""

    file: str
    layout: str
    state: dict[str, Any]
    dropped: list[str]
    notes: list[str]
    attributes: Mapping[str, Any]


def unwrap(content: Any, file: str) -> Found:
    """Takes the projection's state dict out of whatever is around it."""
    if isinstance(content, InertObject):
        state, attributes = flatten_module(content)
        names = {"num_k", "topk", "epsilon"}
        dropped = [f"attribute {name}" for name in attributes if name not in names]
        return Found(file, "a pickled module", state, dropped, [], attributes)
    if not isinstance(content, Mapping) or not content or not all(isinstance(key, str) for key in content):
        raise ValueError(
            f"`{file}` holds {_describe(content)}, but a checkpoint is a dictionary of tensors by name. Give the "
            f"authors' own file."
        )
    if "CLIPTextModelWithProjection" in content:
        raise ValueError(
            f"`{file}` holds an RTD text encoder (`CLIPTextModelWithProjection`), not a projection. Load its state "
            f"dict into `CLIPTextModelForRTD`, and give the projection it was trained with as `path`."
        )
    for name in ("Phi", "state_dict_img2text"):
        if name in content:
            state = content[name]
            if isinstance(state, InertObject):
                state, _ = flatten_module(state)
            if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
                raise ValueError(f"`{name}` in `{file}` is {_describe(state)}, but must be a state dict.")
            dropped = [shown(key) for key in content if key != name]
            return Found(file, f"a state dict under `{name}`", dict(state), dropped, [], {})
    if isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
        refuse_clip(content, file)
        raise ValueError(
            f"`{file}` holds a `state_dict`, but no projection under `Phi` or `state_dict_img2text`; its keys begin "
            f"with {listed(content)}. Give the checkpoint of an image-to-word projection."
        )
    return Found(file, "a bare state dict", dict(content), [], [], {})


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return "a dictionary whose keys are not names" if content else "an empty dictionary"
    return f"a `{type(content).__name__}`"


def strip_prefix(state: Mapping[str, Any]) -> dict[str, Any]:
    """Without the `module.` that parallel training puts before every key."""
    if state and all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): value for key, value in state.items()}
    return dict(state)


def refuse_clip(state: Mapping[str, Any], file: str):
    keys = [str(key).removeprefix("module.") for key in state]
    clip = [key for key in keys if key.startswith(_CLIP_KEYS)]
    if clip:
        vision = any(key.startswith(("visual", "vision_model.")) for key in clip)
        what = "a whole CLIP" if vision else "a text encoder"
        raise ValueError(
            f"`{file}` holds {what} (`{shown(clip[0])}`, ...) and no projection. Give the checkpoint of an "
            f"image-to-word projection as `path`; a CLIP is named by `base_model`."
        )


def choose_type(found: Found, wanted: str | None) -> str:
    """The type that the keys belong to; between the twins, what was asked or the default with a warning."""
    matches = (kind for kind, marks in _MARKS if any(key.startswith(marks) for key in found.state))
    kind = next(matches, None)
    if kind is None:
        raise ValueError(
            f"`{found.file}` ({found.layout}) has the keys of no known projection; they begin with "
            f"{listed(found.state)}. Known are {', '.join(SIZES)}."
        )
    if kind != "searle":
        if wanted not in (None, kind):
            raise ValueError(
                f"`projection_type` is `{wanted}`, but `{found.file}` has the keys of `{kind}`. Leave it out."
            )
        return kind
    if wanted is not None:
        if wanted not in _TWINS:
            raise ValueError(
                f"`projection_type` is `{wanted}`, but `{found.file}` has the keys of SEARLE and LinCIR. Give "
                f"`searle` or `lincir`."
            )
        return wanted
    named = [twin for twin in _TWINS if twin in os.path.basename(found.file).lower()]
    if len(named) == 1:
        kind, reason = named[0], "by its file name"
    else:
        kind, reason = ("searle" if "`Phi`" in found.layout else "lincir"), f"because it is {found.layout}"
    note = (
        f"SEARLE and LinCIR have the same keys; taken for `{kind}`, {reason}. Give `projection_type` to decide: "
        f"SEARLE's images are padded first (`targetpad`), LinCIR's are not"
    )
    found.notes.append(note)
    logger.warning(f"`{found.file}`: {note}.")
    return kind


def shown(key: Any) -> str:
    return str(key)[:80]


def listed(keys: Any) -> str:
    keys = list(keys)
    return ", ".join(f"`{shown(key)}`" for key in keys[:4]) + (", ..." if len(keys) > 4 else "")
