"""Loading stock checkpoints, with what is wrong with one named, and saving as the stock class."""

import copy
import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig
from transformers.utils import find_adapter_config_file

from ..parsing import read_object
from ..registry import Registry
from ..weights import check_config_values, errors_of_loading, load_complete


BACKBONES = Registry("backbone", "BACKBONES")

_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class StockCheckpointMixin:
    """
    A stock text encoder's checkpoints: what is loaded is checked, and what is saved is the stock class.

    Class attributes:
        stock_class (`type`): The class that is saved and that users load.
        vision_class (`type`): The stock vision encoder, with its projection, that belongs to it.
        image_processor_class (`str`): Name of its image processor in `transformers`, the one that uses Pillow.
        stock_embeds (`str`): What the stock class's output calls the text embeddings.
        projection_key (`str`, *optional*): The weights that the stock class has beyond the bare text model, if any.
        saved_prefix (`str`): What stands before the names of weights in a saved file.
    """

    stock_class: ClassVar[type]
    vision_class: ClassVar[type]
    image_processor_class: ClassVar[str]
    stock_embeds: ClassVar[str] = "text_embeds"
    projection_key: ClassVar[str | None] = "text_projection.weight"
    saved_prefix: ClassVar[str] = ""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any):
        """
        Loads a stock checkpoint, and refuses one that lacks weights instead of drawing them at random.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Folder or Hub id of a stock checkpoint.
            args, kwargs: As [`~transformers.PreTrainedModel.from_pretrained`] takes them.

        Returns:
            The model; with `output_loading_info=True` the pair of the model and the loading report.

        Raises:
            ValueError: the checkpoint is of another family, lacks weights of this class, such as the text projection,
                or has weights that are not finite.
            OSError: there is no such checkpoint, or its weights file is damaged or cut short.
        """
        name = os.fspath(pretrained_model_name_or_path)
        kwargs = cls._checked_options(name, kwargs)
        wants_report = kwargs.pop("output_loading_info", False)
        stock = cls.stock_class.__name__
        model, report = load_complete(
            super().from_pretrained,
            name,
            *args,
            kind=stock,
            advice=f"Load the checkpoint of the full model or of {stock}.",
            **kwargs,
        )
        return (model, report) if wants_report else model

    @classmethod
    def load_vision_model(cls, pretrained_model_name_or_path: Any, **kwargs: Any):
        """
        Loads the vision encoder of a whole checkpoint, frozen.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Folder or Hub id.
            kwargs: As [`~transformers.PreTrainedModel.from_pretrained`] takes them.

        Returns:
            `vision_class`: in evaluation mode, without gradients.

        Raises:
            ValueError, OSError: as [`~StockCheckpointMixin.from_pretrained`].
        """
        name = os.fspath(pretrained_model_name_or_path)
        kwargs = cls._checked_options(name, kwargs)
        model, _ = load_complete(
            cls.vision_class.from_pretrained,
            name,
            kind=cls.vision_class.__name__,
            advice="Load the checkpoint of the full model, with both towers.",
            **kwargs,
        )
        return model.eval().requires_grad_(False)

    @classmethod
    def load_image_processor(cls, pretrained_model_name_or_path: Any, **kwargs: Any):
        """
        Loads the image processor of a checkpoint: the one that resizes with Pillow, as the published models were used.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Folder or Hub id.
            kwargs: As [`~transformers.ImageProcessingMixin.from_pretrained`] takes them.

        Raises:
            ValueError, OSError: its configuration is missing or damaged.
        """
        import transformers

        name = os.fspath(pretrained_model_name_or_path)
        with errors_of_loading(name, "The image processor"):
            return getattr(transformers, cls.image_processor_class).from_pretrained(name, **kwargs)

    @classmethod
    def model_types(cls) -> list[str]:
        """The `model_type`s of configurations whose checkpoints this class loads."""
        return [name for name, backbone in BACKBONES.items() if issubclass(cls, backbone)]

    @classmethod
    def _checked_options(cls, name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a load, once the checkpoint's configuration is found to be of this family."""
        facts = read_config(name, **kwargs)
        model_type = facts.get("model_type")
        if model_type not in cls.model_types():
            other = BACKBONES.get(model_type) if isinstance(model_type, str) else None
            remedy = (
                f"Load it with `{other.__name__}.from_pretrained`, or any backbone with "
                f"`AutoTextModelForRTD.from_pretrained`."
                if other
                else f"There are backbones for `model_type` {', '.join(map(repr, sorted(BACKBONES)))}."
            )
            raise ValueError(
                f"`{name}` is a checkpoint of `model_type` {model_type!r}, but {cls.__name__} loads "
                f"{', '.join(map(repr, cls.model_types())) or 'none that is registered'}. {remedy}"
            )
        check_config_values(facts, name)
        return {**cls._amendments(facts), **kwargs} if kwargs.get("config") is None else dict(kwargs)

    @classmethod
    def _amendments(cls, facts: dict[str, Any]) -> dict[str, Any]:
        """What a tower's configuration in a whole checkpoint says wrongly: entries to be written over it."""
        return {}

    def to_stock(self, state_dict: dict[str, torch.Tensor] | None = None):
        """
        The stock model with these weights. They are shared, not copied.

        Args:
            state_dict (`dict[str, torch.Tensor]`, *optional*): Weights to use instead of the model's own.

        Returns:
            `stock_class`: in the same mode (training or evaluation) as this model.

        Raises:
            ValueError: the weights are not exactly those of the stock class, for example because of LoRA layers.
        """
        with torch.device("meta"):
            stock = self.stock_class(copy.deepcopy(self.config))
        try:
            stock.load_state_dict(self.state_dict() if state_dict is None else state_dict, strict=True, assign=True)
        except RuntimeError as error:
            raise ValueError(
                f"The weights are not those of {self.stock_class.__name__}, so they cannot be its checkpoint. Merge "
                f"adapters with `merge_and_unload()` first. What differs: {error}"
            ) from error
        own_buffers = dict(self.named_buffers())
        for name, buffer in stock.named_buffers():
            if buffer.device.type == "meta":  # not in a state dict, such as the table of positions
                owner, _, leaf = name.rpartition(".")
                setattr(stock.get_submodule(owner), leaf, own_buffers[name])
        return stock.train(self.training)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any):
        """
        Saves what the stock class saves, so that the folder loads with plain `transformers`.

        The weights are first loaded strictly into the stock class: that this succeeds is the proof that nothing was
        added, and `config.json` names that class.

        Args:
            save_directory (`str` or `os.PathLike`): Folder to write to.
            args, kwargs:
                As [`~transformers.PreTrainedModel.save_pretrained`] takes them, `is_main_process` and `state_dict`
                (what the `Trainer` passes) among them.

        Raises:
            ValueError: see [`~StockCheckpointMixin.to_stock`].
        """
        names = ("is_main_process", "state_dict")
        kwargs.update(zip(names, args, strict=False))
        if getattr(self, "_hf_peft_config_loaded", False) or not kwargs.get("is_main_process", True):
            # Adapters of `add_adapter` are saved alone; another process writes nothing, but joins the gathering.
            return super().save_pretrained(save_directory, **kwargs)
        stock = self.to_stock(kwargs.pop("state_dict", None))
        if getattr(self, "model_tags", None):
            stock.add_model_tags(self.model_tags)
        return save_stock(stock, save_directory, prefix=self.saved_prefix, **kwargs)


def save_stock(stock: torch.nn.Module, folder: Any, *, prefix: str = "", **kwargs: Any) -> Any:
    """
    Saves a stock model with `prefix` before the names of its weights.

    Some text towers have `text_model.` in the names of whole checkpoints, and in their own under transformers 4, but
    not under 5; with it, both read a file.

    Args:
        stock (`PreTrainedModel`): The model.
        folder (`str` or `os.PathLike`): Folder to write to.
        prefix (`str`, *optional*): For example `"text_model."`.
        kwargs: As [`~transformers.PreTrainedModel.save_pretrained`] takes them.
    """
    if prefix:
        kwargs["state_dict"] = {f"{prefix}{name}": weight for name, weight in stock.state_dict().items()}
    return stock.save_pretrained(folder, **kwargs)


def read_config(name: str, **kwargs: Any) -> dict[str, Any]:
    """
    The configuration of a checkpoint as it stands there, whatever it is of; of adapters alone, that of their base.

    Args:
        name (`str`): Folder or Hub id.
        kwargs: Arguments of a load; `config`, and those that say where to look, are used.

    Raises:
        OSError: there is none.
    """
    config = kwargs.get("config")
    if isinstance(config, PreTrainedConfig):
        return config.to_dict()
    where = {key: kwargs[key] for key in _HUB_OPTIONS if key in kwargs}
    with errors_of_loading(name, "The configuration"):
        facts = dict(PreTrainedConfig.get_config_dict(name if config is None else config, **where)[0])
    if facts.get("model_type") is None and config is None:
        adapter = find_adapter_config_file(name, **where)
        base = adapter and read_object(Path(adapter)).get("base_model_name_or_path")
        if base and isinstance(base, str):
            return read_config(base)
    return facts
