"""open_clip's text tower, as its plain `CLIP` and as its `CustomTextCLIP` name it, alone or in a whole model.

The tower is the one of `transformers` under other names: queries, keys and values lie in one matrix, and the text
projection is stored transposed, as the original implementation multiplied from the right (Radford et al., 2021,
[arXiv:2103.00020](https://huggingface.co/papers/2103.00020), figure 3).
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from .base import LAYOUTS, Contents, Parts, listed, shapes_of
from .state_dicts import StateDictLayout, open_contents, read_json


CONFIG_FILE = "open_clip_config.json"
WHOLE_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_OUTER = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_STOCK_BLOCK = {stock: name for name, stock in _BLOCK.items()}
_HEADS = ("q_proj", "k_proj", "v_proj")
_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_RESBLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")
_MASK = "attn_mask"  # old versions saved this buffer


@LAYOUTS.register("open_clip")
class OpenCLIPLayout(StateDictLayout):
    """
    open_clip's plain `CLIP`: `transformer.resblocks.*`, `token_embedding.weight`, `text_projection`, ...

    Alone it is `text_tower.safetensors`, for `model.load_state_dict(tensors, strict=False)`. With `base`, the file or
    folder of the whole model in this layout, it is that model with the text tower replaced, which
    `open_clip.create_model(name, pretrained=file)` loads, and with `open_clip_config.json` beside it
    `open_clip.create_model("local-dir:FOLDER")`.
    """

    summary = "open_clip's `CLIP`; with `base`, its whole checkpoint with the text tower replaced."
    takes = ("base",)
    file_name = "text_tower.safetensors"
    whole_file_name: ClassVar[str] = WHOLE_FILES[0]
    prefix: ClassVar[str] = ""
    # Entries beside the text tower.
    others: ClassVar[tuple[str, ...]] = ("visual.", "logit_scale", "logit_bias")

    def recognises(self, names: set[str]) -> bool:
        """Whether the first block has its fused attention weights under this layout's name."""
        return f"{self.prefix}transformer.resblocks.0.attn.in_proj_weight" in names

    # Names

    def from_stock(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See [`StateDictLayout`]."""
        found = {name: state[stock] for name, stock in _OUTER.items()}
        found["text_projection"] = state["text_projection.weight"].t()
        for stock, tensor in state.items():
            layer = _LAYER.fullmatch(stock)
            if layer is None:
                continue
            number, part, kind = layer.groups()
            if part in _STOCK_BLOCK:
                found[f"transformer.resblocks.{number}.{_STOCK_BLOCK[part]}.{kind}"] = tensor
            elif part == "self_attn.q_proj":
                each = [state[stock.replace("q_proj", head)] for head in _HEADS]
                found[f"transformer.resblocks.{number}.attn.in_proj_{kind}"] = torch.cat(each)
        return {f"{self.prefix}{name}": tensor.contiguous() for name, tensor in found.items()}

    def to_stock(self, contents: Contents) -> dict[str, torch.Tensor]:
        """See [`StateDictLayout`]."""
        state, strange = {}, []
        for key, tensor in contents.state.items():
            name = key.removeprefix(self.prefix)
            block = _RESBLOCK.fullmatch(name)
            if not key.startswith(self.prefix) or name == _MASK or self._is_other(key):
                contents.dropped.append(key)
            elif name in _OUTER:
                state[_OUTER[name]] = tensor
            elif name == "text_projection" and tensor.ndim == 2:
                state["text_projection.weight"] = tensor.t().contiguous()
            elif block is not None and block[2] == "attn.in_proj" and len(tensor) % 3 == 0:
                parts = zip(_HEADS, tensor.chunk(3), strict=True)
                state |= {f"{_stock_block(block)}.self_attn.{head}.{block[3]}": part for head, part in parts}
            elif block is not None and block[2] in _BLOCK:
                state[f"{_stock_block(block)}.{_BLOCK[block[2]]}.{block[3]}"] = tensor
            else:
                strange.append(key)
        if strange:
            raise ValueError(
                f"`{contents.file}` has {len(strange)} tensors that a CLIP text tower has not: {listed(strange)}. It "
                f"is of another architecture, which `CLIPTextModelForRTD` cannot hold."
            )
        return {name: tensor.clone() for name, tensor in state.items()}

    def _is_other(self, key: str) -> bool:
        return key.startswith(self.others)

    # What names do not say

    def config_facts(self, contents: Contents, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Heads and activation, as we write them into the file, or as `open_clip_config.json` beside it says."""
        facts = {name: contents.facts[name] for name in ("hidden_act",) if name in contents.facts}
        if "num_attention_heads" in contents.facts:
            facts["num_attention_heads"] = _heads(contents.facts["num_attention_heads"], contents.file)
        return {**_facts_beside(Path(contents.file)), **facts}

    def check_config(self, config) -> None:
        """Refuses what open_clip has no configuration for."""
        if config.layer_norm_eps != 1e-5 or config.hidden_act not in ("gelu", "quick_gelu"):
            raise ValueError(
                f"The layout holds encoders with `layer_norm_eps` 1e-05 and `hidden_act` 'gelu' or 'quick_gelu', but "
                f"`model` has {config.layer_norm_eps:g} and {config.hidden_act!r}: the other software would compute "
                f"other embeddings. Publish it with `export_text_encoder`."
            )

    # Files

    def place(
        self, tensors: dict[str, torch.Tensor], folder: Path, parts: Parts, *, config: Any
    ) -> tuple[dict[str, torch.Tensor], Path]:
        """See [`StateDictLayout`]."""
        if parts.base is None:
            return tensors, folder / self.file_name
        base_file = whole_checkpoint(parts.base)
        whole = self._into(base_file, tensors, config)
        described = base_file.with_name(CONFIG_FILE)
        if described.is_file():
            (folder / CONFIG_FILE).write_bytes(described.read_bytes())
        return whole, folder / self.whole_file_name

    def save(self, tensors: dict[str, torch.Tensor], file: Path, config: Any) -> None:
        """Writes safetensors, with what the names do not say in the header."""
        from safetensors.torch import save_file

        facts = {"hidden_act": config.hidden_act, "num_attention_heads": str(config.num_attention_heads)}
        save_file(tensors, file, metadata={"format": "pt", **facts})

    def _into(self, file: Path, tensors: dict[str, torch.Tensor], config) -> dict[str, torch.Tensor]:
        """A whole model with these tensors in the places of its own."""
        whole = open_contents(file)
        if not self.recognises(set(whole.state)):
            raise ValueError(
                f"`base` must be a whole model in this layout, but `{file}` has {listed(sorted(whole.state))}."
            )
        expected = _facts_beside(file)
        differing = [name for name, value in expected.items() if getattr(config, name) != value]
        if differing:
            name = differing[0]
            raise ValueError(
                f"`base` `{file}` is of a text tower with `{name}` {expected[name]!r}, but `model` has "
                f"{getattr(config, name)!r}. Give the model that it was trained from."
            )
        own, new = shapes_of(whole.state), shapes_of(tensors)
        wrong = [name for name, shape in new.items() if own.get(name) != shape]
        if wrong:
            raise ValueError(
                f"`base` `{file}` has another text tower than `model`: {len(wrong)} tensors differ, such as "
                f"`{wrong[0]}` ({own.get(wrong[0])} there, {new[wrong[0]]} here). Give the model it was trained from."
            )
        kept = {name: tensor for name, tensor in whole.state.items() if name not in tensors}
        return {**{name: tensor.clone().contiguous() for name, tensor in kept.items()}, **tensors}


@LAYOUTS.register("open_clip_custom")
class OpenCLIPCustomTextLayout(OpenCLIPLayout):
    """open_clip's `CustomTextCLIP`, whose text tower is a module of its own: `text.transformer.resblocks.*`, ..."""

    summary = (
        "open_clip's `CustomTextCLIP`, keys `text.*`; with `base`, its whole checkpoint, the text tower replaced."
    )
    prefix = "text."
    others = ()


def whole_checkpoint(base: str | os.PathLike) -> Path:
    """
    The file of a whole model: itself, or the one that open_clip looks for in a folder.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(base).expanduser()
    if path.is_dir():
        found = next((path / name for name in WHOLE_FILES if (path / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(f"`base` `{path}` has none of {', '.join(WHOLE_FILES)} in it. Name the file.")
        return found
    if not path.is_file():
        raise FileNotFoundError(f"`base` `{base}` does not exist. Give the file or folder of the whole model.")
    return path


def _stock_block(block: re.Match) -> str:
    return f"text_model.encoder.layers.{block[1]}"


def _facts_beside(file: Path) -> dict[str, Any]:
    """What open_clip's configuration beside a file says of the text tower beyond its shapes; nothing without one."""
    path = file.with_name(CONFIG_FILE)
    model_config = read_json(path).get("model_cfg", {})
    text = model_config.get("text_cfg", {}) if isinstance(model_config, Mapping) else None
    if not isinstance(text, Mapping):
        raise ValueError(
            f"`model_cfg` in `{path}` must be an object with an object `text_cfg` in it. Remove the file."
        )
    if "text_cfg" not in model_config:
        return {}
    quick = model_config.get("quick_gelu", False)
    if not isinstance(quick, bool):
        raise ValueError(f"`quick_gelu` in `{path}` must be true or false, got {quick!r}.")
    return {
        "hidden_act": "quick_gelu" if quick else "gelu",
        **({"num_attention_heads": _heads(text["heads"], path)} if "heads" in text else {}),
    }


def _heads(value: Any, file: str | Path) -> int:
    """A number of heads out of a file; the header of safetensors holds texts only."""
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit() and len(text) < 5 and int(text) > 0):
        raise ValueError(f"The number of attention heads in `{file}` must be a positive integer, got {value!r:.80}.")
    return int(text)
