"""The contract of image-to-word projections: configuration, loading, shapes."""

import os
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from ..registry import Registry


PROJECTIONS = Registry("projection", "PROJECTIONS")

IMAGE_PREPROCESSES = ("clip", "targetpad")


class ProjectionConfig(PreTrainedConfig):
    """
    Configuration of an image-to-word projection.

    Args:
        projection_type (`str`): Name in `PROJECTIONS`, such as `"lincir"`.
        input_dim (`int`): Width D of the image embeddings (`projection_dim` of the CLIP model).
        hidden_dim (`int`): Width of the hidden layers.
        output_dim (`int`): Width H of the text encoder's token embeddings (`hidden_size` of the CLIP text model).
        dropout (`float`): Dropout probability, active in training only.
        num_pseudo_words (`int`): Pseudo-words K per image.
        prompt_template (`str`): The template its authors compose queries with.
        image_preprocess (`str`):
            `"clip"` (resize the short side, crop the centre) or `"targetpad"` (pad to a ratio of 1.25 first).
        base_model (`str`, *optional*): The CLIP checkpoint whose embeddings it was trained on.

    Raises:
        ValueError: `image_preprocess` is unknown, or a width is not positive.
    """

    model_type = "rtd_projection"

    def __init__(
        self,
        projection_type: str | None = None,
        input_dim: int = 768,
        hidden_dim: int = 3072,
        output_dim: int = 768,
        dropout: float = 0.0,
        num_pseudo_words: int = 1,
        prompt_template: str = "a photo of $ that {caption}",
        image_preprocess: str = "clip",
        base_model: str | None = None,
        **kwargs: Any,
    ):
        if image_preprocess not in IMAGE_PREPROCESSES:
            raise ValueError(
                f"`image_preprocess` must be one of {', '.join(map(repr, IMAGE_PREPROCESSES))}, but is "
                f"{image_preprocess!r}."
            )
        widths = {"input_dim": input_dim, "hidden_dim": hidden_dim, "output_dim": output_dim}
        for name, width in {**widths, "num_pseudo_words": num_pseudo_words}.items():
            if width < 1:
                raise ValueError(f"`{name}` must be at least 1, but is {width}.")
        self.projection_type = projection_type
        self.input_dim = input_dim
        self.hidden_dim = hidden_dim
        self.output_dim = output_dim
        self.dropout = dropout
        self.num_pseudo_words = num_pseudo_words
        self.prompt_template = prompt_template
        self.image_preprocess = image_preprocess
        self.base_model = base_model
        super().__init__(**kwargs)


class ImageToWordProjection(PreTrainedModel):
    """
    Base class of the projections: an image embedding in, pseudo-words for the text encoder out.

    A projection is one file with a subclass that defines its layers, `project`, and the class facts below; the
    decorator `@PROJECTIONS.register(name)` enters it. It is saved as `config.json` and `model.safetensors`, and
    `ImageToWordProjection.from_pretrained` returns the subclass that `config.projection_type` names.

    Class attributes:
        projection_type (`str`): Its name in `PROJECTIONS`.
        default_dropout (`float`): Dropout probability of the publication.
        num_pseudo_words (`int`): Pseudo-words K per image.
        prompt_template (`str`): Template its authors compose queries with.
        image_preprocess (`str`): Image preprocessing of the publication.
        needs_patches (`bool`): Whether `forward` needs `patch_embeds`.
    """

    config_class = ProjectionConfig
    base_model_prefix = "projection"
    main_input_name = "image_embeds"

    projection_type: ClassVar[str]
    default_dropout: ClassVar[float] = 0.0
    num_pseudo_words: ClassVar[int] = 1
    prompt_template: ClassVar[str] = "a photo of $ that {caption}"
    image_preprocess: ClassVar[str] = "clip"
    needs_patches: ClassVar[bool] = False

    def __init__(self, config: ProjectionConfig):
        super().__init__(config)
        if config.projection_type is None:
            config.projection_type = self.projection_type  # or the saved folder could not be loaded

    @staticmethod
    def default_hidden_dim(projection_dim: int) -> int:
        """Width of the hidden layers in the publication, for image embeddings of width `projection_dim`."""
        return 4 * projection_dim

    @classmethod
    def build(cls, projection_type: str, projection_dim: int, hidden_size: int | None = None, **options: Any):
        """
        Makes a projection with random weights, sized for a CLIP model.

        Args:
            projection_type (`str`): Name in `PROJECTIONS`.
            projection_dim (`int`): Width D of the image embeddings, `projection_dim` of the CLIP configuration.
            hidden_size (`int`, *optional*): Width H of the token embeddings, `text_config.hidden_size`; D by default.
            options: Further arguments of [`ProjectionConfig`], such as `dropout` or `base_model`.

        Returns:
            [`ImageToWordProjection`]: of the registered subclass, in evaluation mode.

        Raises:
            RegistryError: `projection_type` is not registered.
        """
        subclass = PROJECTIONS[projection_type]
        facts = {
            "projection_type": projection_type,
            "input_dim": projection_dim,
            "hidden_dim": subclass.default_hidden_dim(projection_dim),
            "output_dim": projection_dim if hidden_size is None else hidden_size,
            "dropout": subclass.default_dropout,
            "num_pseudo_words": subclass.num_pseudo_words,
            "prompt_template": subclass.prompt_template,
            "image_preprocess": subclass.image_preprocess,
        }
        return subclass(ProjectionConfig(**{**facts, **options})).eval()

    def forward(
        self,
        image_embeds: torch.Tensor,
        patch_embeds: torch.Tensor | None = None,
        context_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Turns image embeddings into pseudo-words.

        Args:
            image_embeds (`torch.Tensor` of shape `(B, D)`): Projected image embeddings, not normalised.
            patch_embeds (`torch.Tensor` of shape `(B, 1 + patches, W)`, *optional*):
                Tokens of the last vision layer before the final layer norm; global projections ignore them.
            context_embeds (`torch.Tensor` of shape `(B, D)`, *optional*):
                Text embeddings of the query's context; projections without context ignore them.

        Returns:
            `torch.Tensor` of shape `(B, K, H)`: pseudo-words, not normalised.

        Raises:
            ValueError: `image_embeds` is not `(B, D)`, or `patch_embeds` is missing where it is needed.
        """
        self._check_inputs(image_embeds, patch_embeds)
        words = self.project(image_embeds.to(self.dtype), patch_embeds, context_embeds)
        return words.reshape(image_embeds.shape[0], self.config.num_pseudo_words, self.config.output_dim)

    def project_text(self, text_embeds: torch.Tensor) -> torch.Tensor:
        """
        Turns text embeddings into pseudo-words, as text-only training does: they are taken for image embeddings.

        Patch-based projections override it.

        Args:
            text_embeds (`torch.Tensor` of shape `(B, D)`): Projected text embeddings, not normalised.

        Returns:
            `torch.Tensor` of shape `(B, K, H)`: pseudo-words.

        Raises:
            ValueError: `text_embeds` is not `(B, D)`.
        """
        return self(text_embeds)

    def project(
        self,
        image_embeds: torch.Tensor,
        patch_embeds: torch.Tensor | None,
        context_embeds: torch.Tensor | None,
    ) -> torch.Tensor:
        """`(B, D)` to `(B, K * H)` or `(B, K, H)`; the one method a projection defines."""
        raise NotImplementedError(f"{type(self).__name__} must define `project`.")

    def _check_inputs(self, image_embeds: torch.Tensor, patch_embeds: torch.Tensor | None):
        width = self.config.input_dim
        if image_embeds.ndim != 2:
            raise ValueError(f"The embeddings must have shape (batch, {width}), but have {tuple(image_embeds.shape)}.")
        if image_embeds.shape[-1] != width:
            trained_on = f" ({self.config.base_model})" if self.config.base_model else ""
            raise ValueError(
                f"The embeddings are {image_embeds.shape[-1]} wide, but this `{self.config.projection_type}` "
                f"projection takes `input_dim` {width}. Use it with the CLIP model it was trained on{trained_on}, "
                f"or a projection made for this one."
            )
        if self.needs_patches and patch_embeds is None:
            raise ValueError(
                f"The `{self.config.projection_type}` projection reads `patch_embeds`, but got None. Give the vision "
                f"encoder's last hidden states, the second value of the backbone's `encode_image`."
            )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        # The publications keep PyTorch's default initialisation; that of `transformers` is narrower.
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any):
        """
        Loads a projection; the class is the one that `config.projection_type` names.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Folder or Hub id.
            args, kwargs: As [`~transformers.PreTrainedModel.from_pretrained`] takes them.

        Returns:
            [`ImageToWordProjection`]: of the registered subclass, in evaluation mode; with `output_loading_info=True`
            the pair of it and the loading report.

        Raises:
            RegistryError: the type is not registered.
            ValueError: the folder holds something else than a projection, or a projection of another class than the
                one that was asked, or lacks weights.
            OSError: the folder does not exist, or the weights file is damaged.
        """
        name = os.fspath(pretrained_model_name_or_path)
        projection_type = cls._read_projection_type(name, kwargs)
        subclass = PROJECTIONS[projection_type]
        if not issubclass(subclass, cls):
            raise ValueError(
                f"`{name}` holds a `{projection_type}` projection ({subclass.__name__}), not a {cls.__name__}. Load "
                f"it with `ImageToWordProjection.from_pretrained`."
            )
        wants_report = kwargs.pop("output_loading_info", False)
        load = super(ImageToWordProjection, subclass).from_pretrained
        model, report = _explain_damage(load, name, *args, output_loading_info=True, **kwargs)
        missing = sorted(report["missing_keys"])
        if missing:
            raise ValueError(
                f"`{name}` lacks {len(missing)} weight(s) of a `{projection_type}` projection, among them "
                f"`{missing[0]}`; they would be random. Convert or download the checkpoint again."
            )
        return (model, report) if wants_report else model

    @staticmethod
    def _read_projection_type(name: str, kwargs: dict[str, Any]) -> str:
        config = kwargs.get("config")
        if config is None:
            hub = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
            config, _ = ProjectionConfig.get_config_dict(name, **{key: kwargs[key] for key in hub if key in kwargs})
        elif isinstance(config, PreTrainedConfig):
            config = config.to_dict()
        projection_type = config.get("projection_type")
        if projection_type is None:
            raise ValueError(
                f"`{name}` is no projection: its `config.json` has no `projection_type` (`model_type` is "
                f"`{config.get('model_type')}`). Give a folder that a projection's `save_pretrained` wrote."
            )
        return projection_type


def _explain_damage(load: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """Calls `load`, and turns safetensors' terse complaint about a damaged file into one that names the file."""
    from safetensors import SafetensorError

    try:
        return load(name, *args, **kwargs)
    except SafetensorError as error:
        path = os.path.join(name, "model.safetensors")
        where = path if os.path.isfile(path) else name
        raise OSError(
            f"The weights of `{where}` are damaged or cut short ({error}). Delete the file and download or convert it "
            f"again."
        ) from error
