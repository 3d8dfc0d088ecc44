"""Importing the projections their authors published: recognise the layout, check it by name, build the projection."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import logging

from .base import PROJECTIONS, ImageToWordProjection
from .original_files import find_file, read_checkpoint
from .original_layouts import SIZES, Found, choose_type, listed, refuse_clip, shown, strip_prefix, unwrap


logger = logging.get_logger(__name__)

# Widths D, H and W (image embeddings, token embeddings, vision tokens) of the CLIPs the projections were made for.
_WIDTHS = {
    "openai/clip-vit-base-patch32": (512, 512, 768),
    "openai/clip-vit-base-patch16": (512, 512, 768),
    "openai/clip-vit-large-patch14": (768, 768, 1024),
    "facebook/metaclip-l14-fullcc2.5b": (768, 768, 1024),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": (1024, 1024, 1280),
    "facebook/metaclip-h14-fullcc2.5b": (1024, 1024, 1280),
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": (1280, 1280, 1664),
    "Geonmo/CLIP-Giga-config-fixed": (1280, 1280, 1664),
}
_BACKBONES = {512: "ViT-B/32 or ViT-B/16", 768: "ViT-L/14", 1024: "ViT-H/14", 1280: "ViT-bigG/14"}
LICENSES = {
    "searle": "CC BY-NC 4.0: no commercial use, also not of what is derived from the weights",
    "lincir": "CC BY-NC 4.0: no commercial use, also not of what is derived from the weights",
    "pic2word": "Apache-2.0",
    "context_i2w": "Apache-2.0 by its LICENSE file (its README says MIT)",
    "fti4cir": "its repository has no licence file: ask the authors before publishing the weights",
}


@dataclass(frozen=True)
class OriginalReport:
    """What [`load_original`] found in a checkpoint.

    Attributes:
        file (`str`): The file that was read.
        layout (`str`): How the weights lay in it.
        projection_type (`str`): Name in `PROJECTIONS`.
        input_dim, hidden_dim, output_dim (`int`): Widths of the network.
        backbone (`str`): The CLIP that such widths belong to.
        dropped (`tuple[str, ...]`): Entries of the file that are no part of the projection.
        notes (`tuple[str, ...]`): What was assumed or changed.
        license (`str`): Licence of the authors' weights, which the converted folder keeps.
    """

    file: str
    layout: str
    projection_type: str
    input_dim: int
    hidden_dim: int
    output_dim: int
    backbone: str
    dropped: tuple[str, ...]
    notes: tuple[str, ...]
    license: str

    def __str__(self) -> str:
        lines = [
            f"`{self.file}`: {self.layout}",
            f"projection: {self.projection_type}, {self.input_dim} -> {self.hidden_dim} -> {self.output_dim}, of "
            f"{self.backbone}",
            f"dropped: {', '.join(self.dropped) or 'nothing'}",
            *(f"note: {note}" for note in self.notes),
            f"licence of published {self.projection_type} weights: {self.license}",
        ]
        return "\n  ".join(lines)


def load_original(
    path: str | os.PathLike,
    *,
    base_model: str | None = None,
    projection_type: str | None = None,
    output_loading_info: bool = False,
    **options: Any,
) -> ImageToWordProjection | tuple[ImageToWordProjection, OriginalReport]:
    """
    Loads a projection from the file its authors published, whatever its layout, without running pickled code.

    Known layouts: the bare state dict and `{"Phi": ...}` (SEARLE, LinCIR), `{"state_dict_img2text": ...}` (Pic2Word,
    Context-I2W), FTI4CIR's pickled module, with or without the prefix `module.`, as written by `torch.save` or as
    safetensors. Weights of `W_R` in weight normalisation are folded (Salimans & Kingma, 2016, eq. 2).

    Args:
        path (`str` or `os.PathLike`): A file, or a Hub file as `"repo_id:filename"` or `"hf://repo_id/filename"`.
        base_model (`str`, *optional*): The CLIP the projection was trained on, for the configuration.
        projection_type (`str`, *optional*):
            Name in `PROJECTIONS`. Needed for SEARLE and LinCIR alone, whose keys are the same: without it, a file with
            the name of one of them is taken for it, otherwise `{"Phi": ...}` for SEARLE and a bare state dict for
            LinCIR; a warning says so.
        output_loading_info (`bool`): Whether to return an [`OriginalReport`] as well.
        options: Further arguments of the configuration, such as `prompt_template` or `image_preprocess`.

    Returns:
        [`ImageToWordProjection`]: of the registered subclass, float32, in evaluation mode; with
        `output_loading_info=True` the pair of it and the [`OriginalReport`].

    Raises:
        FileNotFoundError, IsADirectoryError, OSError: see [`~rtd_hf.projections.original_files.find_file`].
        RegistryError: the projection's type is not registered.
        ValueError: the file is no checkpoint, damaged, or would import what no checkpoint needs; it holds something
            else than a projection, or one of another type than `projection_type`; weights are missing, unknown, of
            another shape, or not finite; `base_model` has other widths.
    """
    if projection_type is not None:
        _ = PROJECTIONS[projection_type]
        if projection_type not in SIZES:
            raise ValueError(
                f"`projection_type` `{projection_type}` has no published checkpoints that are known here. Choose one "
                f"of {', '.join(SIZES)}, or load its `save_pretrained` folder with `from_pretrained`."
            )
    file = find_file(path)
    found = unwrap(read_checkpoint(file), str(file))
    found.state = strip_prefix(found.state)
    refuse_clip(found.state, found.file)
    _check_tensors(found)
    kind = choose_type(found, projection_type)
    subclass = PROJECTIONS[kind]
    _fold_weight_norm(found)
    sizes = _read_sizes(found, kind)
    fixed = sorted(sizes.keys() & options.keys())
    if fixed:
        raise ValueError(
            f"`{fixed[0]}` is read from the checkpoint ({sizes[fixed[0]]}) and cannot be given. Leave it out."
        )
    backbone = _check_base_model(found, sizes, base_model)
    options = {**sizes, **options, "base_model": base_model}
    width, height = options.pop("input_dim"), options.pop("output_dim")
    with torch.device("meta"):
        empty = subclass.build(kind, width, height, **options)
    _check_keys(found, kind, empty.state_dict(), f"{width} -> {options['hidden_dim']} -> {height}, {backbone}")
    weights = {key: _to_float32(found, key) for key in empty.state_dict()}
    with torch.random.fork_rng(devices=[]):  # loading draws no random numbers
        projection = subclass.build(kind, width, height, **options)
    projection.load_state_dict(weights)
    projection.config.license = LICENSES[kind]  # kept with the weights: it may bind what is trained with them
    report = OriginalReport(
        *(found.file, found.layout, kind, width, options["hidden_dim"], height, backbone),
        *(tuple(found.dropped), tuple(dict.fromkeys(found.notes)), LICENSES[kind]),
    )
    logger.info(str(report))
    return (projection, report) if output_loading_info else projection


# --------------------------------------------------------------------------------------------------------- the weights
def _check_tensors(found: Found):
    for key, value in found.state.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"`{shown(key)}` in `{found.file}` ({found.layout}) is a `{type(value).__name__}`, but must be "
                f"a tensor. Give the checkpoint of an image-to-word projection; this one's keys begin with "
                f"{listed(found.state)}."
            )
        dense = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not dense or not value.is_floating_point():
            raise ValueError(
                f"`{shown(key)}` in `{found.file}` must be a dense tensor of floats, but is {value.dtype} "
                f"({value.layout}). Give the authors' own file."
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(
                f"`{shown(key)}` in `{found.file}` claims shape {tuple(value.shape)}, more than the file holds. Give "
                f"the authors' own file."
            )


def _fold_weight_norm(found: Found):
    """`weight_g * weight_v / |weight_v|`, row by row, in place of the pair."""
    for scale_key in [key for key in found.state if key.endswith(".weight_g")]:
        stem = scale_key.removesuffix("_g")
        scale, direction = found.state[scale_key], found.state.get(f"{stem}_v")
        if direction is None:
            continue  # refused by name with the other keys
        if direction.ndim != 2 or scale.shape != (len(direction), 1):
            raise ValueError(
                f"`{scale_key}` and `{stem}_v` in `{found.file}` must have shapes (rows, 1) and (rows, columns), but "
                f"have {tuple(scale.shape)} and {tuple(direction.shape)}. Give the authors' own file."
            )
        _to_float32(found, scale_key), _to_float32(found, f"{stem}_v")  # finite, or refused under their own names
        scale, direction = found.state.pop(scale_key).double(), found.state.pop(f"{stem}_v").double()
        found.state[stem] = (scale * direction / direction.norm(dim=1, keepdim=True)).float()
        found.notes.append(f"the weight normalisation of `{stem}` is folded")


def _read_sizes(found: Found, kind: str) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    for option, (key, dimension) in SIZES[kind].items():
        if key not in found.state:
            raise _missing(found, kind, [key])
        shape = found.state[key].shape
        if dimension >= len(shape) or not shape[dimension]:
            raise ValueError(
                f"`{key}` in `{found.file}` has shape {tuple(shape)}, from which `{option}` cannot be read. Give the "
                f"authors' own file."
            )
        sizes[option] = shape[dimension]
    if kind == "context_i2w":
        sizes["latent_depth"] = _count(found, "VT_Extractor.layers.")
    if kind == "fti4cir":
        sizes["selector_layers"] = _count(found, "transformer.layers.")
        sizes |= _attributes(found, sizes["num_templates"])
    return sizes


def _count(found: Found, prefix: str) -> int:
    numbers = {key.removeprefix(prefix).split(".")[0] for key in found.state if key.startswith(prefix)}
    return max(len(numbers), 1)


def _attributes(found: Found, num_templates: int) -> dict[str, Any]:
    """FTI4CIR's plain numbers, which only the pickled module holds."""
    numbers = {"num_k": num_templates, "topk": 12, "epsilon": 0.05}
    known = {name: found.attributes[name] for name in numbers if name in found.attributes}
    for name, value in known.items():
        right = isinstance(value, int | float if name == "epsilon" else int) and not isinstance(value, bool)
        if not right or (name == "num_k" and value != num_templates) or not value > 0:
            raise ValueError(
                f"`{name}` of the module in `{found.file}` is {value!r:.40}, which does not fit its {num_templates} "
                f"templates. Give the authors' own file."
            )
    absent = [name for name in ("topk", "epsilon") if name not in known]
    if absent:
        found.notes.append(f"the file does not say {' and '.join(absent)}; the publication's value is taken")
    numbers |= known
    return {"num_pseudo_words": 1 + numbers["topk"], "attribute_threshold": numbers["epsilon"]}


def _check_base_model(found: Found, sizes: Mapping[str, int], base_model: str | None) -> str:
    """What CLIP the widths belong to; refuses a `base_model` known to have others."""
    widths = tuple(sizes.get(name) for name in ("input_dim", "output_dim", "vision_hidden_size"))
    backbone = _backbone(*widths[:2])
    expected = _WIDTHS.get(base_model) if base_model else None
    if expected is None:
        found.notes.append(
            f"the widths of `{base_model}` are not known here and were not checked"
            if base_model
            else "no `base_model`"
        )
    elif any(width not in (None, known) for width, known in zip(widths, expected, strict=True)):
        names = ("image embeddings", "token embeddings", "vision tokens")
        wrong = [
            f"{name} {width} wide instead of {known}"
            for name, width, known in zip(names, widths, expected, strict=True)
            if width not in (None, known)
        ]
        raise ValueError(
            f"`base_model` is `{base_model}`, but `{found.file}` was made for {', '.join(wrong)}: {backbone}. Give "
            f"the CLIP it was trained on, or another checkpoint."
        )
    return backbone


def _backbone(width: int, height: int) -> str:
    if width == height:
        return _BACKBONES.get(width, "no CLIP known here")
    names = [f"{_BACKBONES.get(size, 'no CLIP known here')} ({size})" for size in (width, height)]
    return f"no one CLIP: its input is of {names[0]}, its output of {names[1]}"


def _check_keys(found: Found, kind: str, expected: Mapping[str, torch.Tensor], sizes: str):
    missing = [key for key in expected if key not in found.state]
    if missing:
        raise _missing(found, kind, missing)
    unknown = [key for key in found.state if key not in expected]
    if unknown:
        raise ValueError(
            f"`{found.file}` holds {len(unknown)} weight(s) that a `{kind}` projection does not have: "
            f"{listed(unknown)}. Give the authors' own file, or another `projection_type`."
        )
    for key, tensor in expected.items():
        if found.state[key].shape != tensor.shape:
            raise ValueError(
                f"`{key}` in `{found.file}` has shape {tuple(found.state[key].shape)}, but {tuple(tensor.shape)} fits "
                f"the other weights of this `{kind}` projection ({sizes}).{_belongs(found.state[key].shape)} Give the "
                f"authors' own file."
            )


def _belongs(shape: torch.Size) -> str:
    sizes = {multiple: size for size in _BACKBONES for multiple in (size, 4 * size)}
    backbones = list(dict.fromkeys(_BACKBONES[sizes[size]] for size in shape if size in sizes))
    return f" Such widths are those of {' and '.join(backbones)}." if backbones else ""


def _missing(found: Found, kind: str, keys: list[str]) -> ValueError:
    return ValueError(
        f"`{found.file}` ({found.layout}) lacks {len(keys)} weight(s) of a `{kind}` projection: {listed(keys)}. "
        f"Download it again, or give the authors' own file."
    )


def _to_float32(found: Found, key: str) -> torch.Tensor:
    tensor = found.state[key].detach()
    if not torch.isfinite(tensor).all():
        raise ValueError(
            f"`{key}` in `{found.file}` has values that are not finite. Give a checkpoint without NaN or inf."
        )
    if tensor.dtype != torch.float32:
        found.notes.append(f"weights of {str(tensor.dtype).removeprefix('torch.')} became float32")
    return tensor.to(torch.float32)
