"""Layouts that are a dictionary of tensors: from one naming to the other and back, and which naming a file has."""

import os
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers.initialization import no_init_weights

from ..files import whole_file
from ..models import CLIPTextModelForRTD
from ..models.checkpoints import read_config
from ..parsing import read_object
from ..projections.original_files import find_file, read_checkpoint
from ..weights import check_finite
from .base import LAYOUTS, Contents, ImportReport, Layout, Parts, listed, shapes_of


# Under these names checkpoints keep their state dict; RTD's own script writes the first.
WRAPPERS = ("CLIPTextModelWithProjection", "state_dict", "model_state_dict", "model")
# What is no text tower that is known here, told apart by keys, and what to do about it.
_FOREIGN = (
    (("lora_A.", "lora_B."), "a LoRA adapter", "Load it with `rtd_hf.load_adapter`"),
    (("text.transformer.encoder.layer.", "transformer.encoder.layer."), "open_clip with a BERT-like text tower", ""),
    (("visual.trunk.",), "open_clip with a vision tower of timm, and a text tower of another kind", ""),
    (("text_projection.bias", "text.text_projection.weight"), "open_clip's SigLIP", "Load it with `transformers`"),
    (("layers.0.weight", "layers.0.0.weight"), "an image-to-word projection", "Load it with `load_original`"),
    (("visual.", "vision_model."), "a vision tower alone", "Give the file with the text tower"),
)


# Their shapes are the sizes of the configuration.
_SIZED_BY = (
    "text_model.embeddings.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight",
    "text_model.encoder.layers.0.mlp.fc1.weight",
    "text_model.final_layer_norm.weight",
    "text_projection.weight",
)


class StateDictLayout(Layout):
    """
    A layout that is a dictionary of tensors in one file.

    Class attributes:
        file_name (`str`): The file of the text tower alone.
    """

    readable: ClassVar[bool] = True
    file_name: ClassVar[str]

    @abstractmethod
    def recognises(self, names: set[str]) -> bool:
        """Whether a file with tensors of these names holds a text tower in this layout."""

    @abstractmethod
    def from_stock(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of `CLIPTextModelWithProjection` in this layout's naming."""

    @abstractmethod
    def to_stock(self, contents: Contents) -> dict[str, torch.Tensor]:
        """The tensors of `CLIPTextModelWithProjection`; what else there is goes into `contents.dropped`."""

    def config_facts(self, contents: Contents, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Entries of the text configuration that the file says or implies, besides the shapes."""
        return {}

    def check_config(self, config) -> None:
        """Refuses an encoder that the layout's software would run in another way."""

    def place(
        self, tensors: dict[str, torch.Tensor], folder: Path, parts: Parts, *, config: Any
    ) -> tuple[dict[str, torch.Tensor], Path]:
        """What is written, and where: the text tower alone, unless a layout puts it into a whole model."""
        return tensors, folder / self.file_name

    @abstractmethod
    def save(self, tensors: dict[str, torch.Tensor], file: Path, config: Any) -> None:
        """Writes the tensors, of an encoder with this configuration, to a file."""

    def write(self, encoder, folder: Path, parts: Parts) -> Path:
        """See [`Layout`]."""
        self.check_config(encoder.config)
        state = {name: tensor.detach().cpu() for name, tensor in encoder.state_dict().items()}
        tensors, file = self.place(self.from_stock(state), folder, parts, config=encoder.config)
        with whole_file(file) as temporary:
            self.save(tensors, temporary, encoder.config)
        return file


def import_layout(
    path: str | os.PathLike,
    *,
    layout: str | None = None,
    base: str | os.PathLike | None = None,
    revision: str | None = None,
    hidden_act: str | None = None,
    output_loading_info: bool = False,
) -> CLIPTextModelForRTD | tuple[CLIPTextModelForRTD, ImportReport]:
    """
    Reads the text tower out of a checkpoint in another layout, without running anything that the file holds.

    Args:
        path (`str` or `os.PathLike`): A file of `torch.save` or safetensors, or a Hub file as `"repo_id:filename"`.
        layout (`str`, *optional*): Name in `LAYOUTS`; recognised by the names of the tensors by default.
        base (`str` or `os.PathLike`, *optional*):
            Folder or Hub id of the CLIP in `transformers` that it was made from, for the configuration. Files seldom
            say which activation and how many heads they are of.
        revision (`str`, *optional*): The revision of `base` on the Hub.
        hidden_act (`str`, *optional*): `"quick_gelu"` or `"gelu"`, where there is no `base` and the file does not say.
        output_loading_info (`bool`): Whether to return an [`ImportReport`] as well.

    Returns:
        [`CLIPTextModelForRTD`]: with the file's weights in their precision, in evaluation mode; with
        `output_loading_info=True` the pair of it and the [`ImportReport`].

    Raises:
        FileNotFoundError, IsADirectoryError, OSError: there is no such file, or it could not be downloaded.
        RegistryError: there is no such layout.
        ValueError: the file is no checkpoint, is damaged, or would import what no checkpoint needs; it is in another
            layout, which the message names; weights are missing, unknown, of another shape than `base` has, or not
            finite; or nothing says the activation.
    """
    contents = open_contents(path)
    name = _choose(contents, layout)
    chosen = LAYOUTS[name]()
    state = _of_one_precision(chosen.to_stock(contents), contents)
    facts = chosen.config_facts(contents, state)
    if hidden_act is not None:
        if facts.setdefault("hidden_act", hidden_act) != hidden_act:
            raise ValueError(
                f"`hidden_act` is {hidden_act!r}, but `{contents.file}` is of an encoder with "
                f"{facts['hidden_act']!r}. Leave it out."
            )
    config = _config(contents, state, facts, base=base, revision=revision)
    with torch.device("meta"):
        model = CLIPTextModelForRTD(config)
    _check_shapes(contents, state, shapes_of(model.state_dict()), base)
    check_finite(state, contents.file)
    with no_init_weights():
        model = CLIPTextModelForRTD(config)
    model.load_state_dict(state, strict=True, assign=True)
    report = ImportReport(contents.file, name, tuple(contents.dropped), tuple(contents.notes))
    return (model.eval(), report) if output_loading_info else model.eval()


def open_contents(path: str | os.PathLike) -> Contents:
    """
    The state dict in a file, whatever is around it.

    Raises:
        FileNotFoundError, IsADirectoryError, OSError, ValueError: see [`import_layout`].
    """
    local = Path(path).expanduser()
    if local.is_dir():
        remedy = "Name the file in it."
        if (local / "config.json").is_file():
            remedy = "It is in transformers' own layout already: load it with `AutoTextModelForRTD.from_pretrained`."
        raise IsADirectoryError(f"`path` must be a checkpoint file, but `{local}` is a folder. {remedy}")
    if not local.is_file() and ":" not in os.fspath(path):
        raise FileNotFoundError(
            f"`path` `{path}` does not exist. Give a checkpoint file, or a file on the Hub as `repo_id:filename`, "
            f"such as `laion/CLIP-ViT-H-14-laion2B-s32B-b79K:open_clip_model.safetensors`."
        )
    file = find_file(path)
    content = read_checkpoint(file, wanted="a text encoder")
    contents = Contents(str(file), {}, facts=_metadata(file))
    while isinstance(content, Mapping) and any(isinstance(content.get(key), Mapping) for key in WRAPPERS):
        inner = next(key for key in WRAPPERS if isinstance(content.get(key), Mapping))
        contents.dropped += [str(key) for key in content if key != inner]
        content = content[inner]
    tensors = isinstance(content, Mapping) and {
        key: value for key, value in content.items() if isinstance(value, torch.Tensor)
    }
    if not tensors or not all(isinstance(key, str) for key in content):
        held = listed([*content]) if isinstance(content, Mapping) else f"a `{type(content).__name__}`"
        raise ValueError(f"`{file}` must hold tensors by name, but holds {held or 'nothing'}. Give a state dict.")
    contents.dropped += [key for key in content if key not in tensors]
    if all(key.startswith("module.") for key in tensors):  # of parallel training
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    contents.state = tensors
    return contents


def _metadata(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    if file.suffix != ".safetensors":
        return {}
    try:
        with safe_open(file, framework="pt") as opened:
            return dict(opened.metadata() or {})
    except SafetensorError:
        return {}  # whoever reads the tensors says what is wrong


def _choose(contents: Contents, wanted: str | None) -> str:
    """The layout that a file is in; refuses one that was asked for and is not the file's."""
    readable = {name: cls for name, cls in LAYOUTS.items() if cls.readable}
    if wanted is not None and LAYOUTS[wanted] not in readable.values():
        raise ValueError(f"The layout `{wanted}` is written only. Readable are {', '.join(readable)}.")
    names = set(contents.state)
    matching = [name for name, cls in readable.items() if cls().recognises(names)]
    if wanted in matching or (wanted is None and matching):
        return wanted or matching[0]
    if matching:
        raise ValueError(
            f"`layout` is `{wanted}`, but `{contents.file}` looks like `{matching[0]}` (it has "
            f"{listed(sorted(names))}). Give that, or leave `layout` out."
        )
    looks = (entry for entry in _FOREIGN if any(mark in name for mark in entry[0] for name in names))
    _, what, remedy = next(looks, ((), "no checkpoint that is known here", ""))
    raise ValueError(
        f"`{contents.file}` holds no text tower in a known layout ({', '.join(readable)}); it looks like {what} (it "
        f"has {listed(sorted(names))}). {remedy or 'Give a checkpoint of a CLIP with a causal text transformer'}."
    )


def _of_one_precision(state: dict[str, torch.Tensor], contents: Contents) -> dict[str, torch.Tensor]:
    """OpenAI's files hold matrices in half precision and the rest in single; a stock model computes in one."""
    found = {str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}
    if len(found) < 2:
        return state
    contents.notes.append(f"weights of {' and '.join(sorted(found))} became float32")
    return {name: tensor.float() for name, tensor in state.items()}


def _config(contents: Contents, state: Mapping[str, torch.Tensor], facts: dict[str, Any], *, base, revision):
    """The text configuration: of `base` where there is one, else by the file's shapes and facts."""
    from transformers import CLIPTextConfig

    if base is not None:
        options = {} if revision is None else {"revision": revision}
        model_type = read_config(os.fspath(base), **options).get("model_type")
        if model_type not in CLIPTextModelForRTD.model_types():
            raise ValueError(f"`base` must be a CLIP, but `{base}` is of `model_type` {model_type!r}.")
        whole = read_config(os.fspath(base), **options)
        config = CLIPTextConfig.from_pretrained(os.fspath(base), **options)
        config.projection_dim = whole.get("projection_dim") or config.projection_dim
        for name, value in facts.items():
            if getattr(config, name) != value:
                raise ValueError(
                    f"`{contents.file}` is of an encoder with `{name}` {value!r}, but `base` `{base}` has "
                    f"{getattr(config, name)!r}. Give the CLIP it was made from, or leave `base` out."
                )
        return config
    if "hidden_act" not in facts:
        raise ValueError(
            f"`{contents.file}` does not say which activation it is of, and a wrong one gives other embeddings "
            f"without an error. Give `base`, the CLIP it was made from, or `hidden_act`: 'quick_gelu' for OpenAI's "
            f"weights and models named `-quickgelu`, 'gelu' for LAION's others."
        )
    missing = [name for name in _SIZED_BY if name not in state]
    if missing:
        raise ValueError(f"`{contents.file}` lacks `{missing[0]}`, the size of which is needed. Give the whole file.")
    vocabulary, width = state["text_model.embeddings.token_embedding.weight"].shape
    if "num_attention_heads" not in facts:
        contents.notes.append(f"{width // 64} heads of width 64, as all of CLIP's text towers have")
    layers = {name.split(".")[3] for name in state if name.startswith("text_model.encoder.layers.")}
    return CLIPTextConfig(
        **{
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            "projection_dim": state["text_projection.weight"].shape[0],
            "num_hidden_layers": len(layers),
            "num_attention_heads": width // 64,
            "max_position_embeddings": state["text_model.embeddings.position_embedding.weight"].shape[0],
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            **facts,
        }
    )


def _check_shapes(contents: Contents, state: Mapping, expected: Mapping[str, tuple], base) -> None:
    found = shapes_of(state)
    wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    if wrong:
        first = wrong[0]
        of_what = f"of `base` `{base}`" if base is not None else "of the other tensors in it"
        raise ValueError(
            f"`{contents.file}` does not fit the text encoder {of_what}: {len(wrong)} tensors differ, such as "
            f"`{first}` ({found.get(first, 'missing')} in the file, {expected.get(first, 'unknown')} wanted). Give "
            f"the whole file, and as `base` the CLIP it was made from."
        )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file, or nothing where there is none."""
    return read_object(file) if file.is_file() else {}
