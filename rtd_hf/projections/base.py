"""The contract of image-to-word projections: building, loading, shapes."""

import os
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from ..registry import Registry
from ..texts import DEFAULT_TEMPLATE, PLACEHOLDER, check_template
from .configuration import ProjectionConfig


PROJECTIONS = Registry("projection", "PROJECTIONS")


class ImageToWordProjection(PreTrainedModel):
    """
    Base class of the projections: an image embedding in, pseudo-words for the text encoder out.

    A projection is one file with a subclass that defines its layers, `project`, and the class facts below; the
    decorator `@PROJECTIONS.register(name)` enters it. It is saved as `config.json` and `model.safetensors`, and
    `ImageToWordProjection.from_pretrained` returns the subclass that `config.projection_type` names.

    Class attributes:
        projection_type (`str`): Its name in `PROJECTIONS`.
        default_dropout (`float`): Dropout probability of the publication.
        num_pseudo_words (`int`): Pseudo-words K per image; where their number differs, the most there can be.
        prompt_template (`str`): Template its authors compose queries with.
        benchmark_templates (`dict[str, str]`): Those of the benchmarks for which they use another.
        caption_order (`str`): How they join the captions of a query with several, see [`join_captions`].
        image_preprocess (`str`): Image preprocessing of the publication.
        needs_patches (`bool`): Whether `forward` needs `patch_embeds`.
        needs_context (`bool`): Whether `forward` needs `context_embeds`.
        text_words (`int`, *optional*):
            Pseudo-words that `project_text` makes of a text, as many as `prompt_template` holds placeholders. `None`
            means the K of an image, 0 that a text cannot stand for an image: `project_text` refuses.

    An image always gets K places. A projection whose images have fewer words fills the first places and leaves the
    others zero; `count_words` says how many are filled, and `template_for` gives the prompt that takes so many.
    """

    config_class = ProjectionConfig
    base_model_prefix = "projection"
    main_input_name = "image_embeds"

    projection_type: ClassVar[str]
    default_dropout: ClassVar[float] = 0.0
    num_pseudo_words: ClassVar[int] = 1
    prompt_template: ClassVar[str] = DEFAULT_TEMPLATE
    benchmark_templates: ClassVar[dict[str, str]] = {}
    caption_order: ClassVar[str] = "both"
    image_preprocess: ClassVar[str] = "clip"
    needs_patches: ClassVar[bool] = False
    needs_context: ClassVar[bool] = False
    text_words: ClassVar[int | None] = None

    def __init__(self, config: ProjectionConfig):
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"`config` of a {type(self).__name__} must be a `{self.config_class.__name__}`, but is a "
                f"`{type(config).__name__}`. Use `ImageToWordProjection.build`, or make one of that class."
            )
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
            options:
                Further arguments of the projection's configuration, such as `dropout` or `base_model`. Projections
                with `needs_patches` want `vision_hidden_size`, `vision_config.hidden_size`: it does not follow from D.

        Returns:
            [`ImageToWordProjection`]: of the registered subclass, in evaluation mode.

        Raises:
            RegistryError: `projection_type` is not registered.
            ValueError: an option has an impossible value, or `vision_hidden_size` is missing.
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
            "benchmark_templates": dict(subclass.benchmark_templates),
            "caption_order": subclass.caption_order,
            "image_preprocess": subclass.image_preprocess,
        }
        return subclass(subclass.config_class(**{**facts, **options})).eval()

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
                Text embeddings of the query's context, not normalised; projections without context ignore them.

        Returns:
            `torch.Tensor` of shape `(B, K, H)`: pseudo-words, not normalised; see the class for unused places.

        Raises:
            ValueError: an input has another shape, or is missing where it is needed.
        """
        self._check_embeds(image_embeds)
        self._check_patches(patch_embeds, len(image_embeds))
        self._check_context(context_embeds, len(image_embeds))
        # The towers may run in another precision than the projection.
        inputs = (
            None if embeds is None else embeds.to(self.dtype)
            for embeds in (image_embeds, patch_embeds, context_embeds)
        )
        words = self.project(*inputs)
        return words.reshape(image_embeds.shape[0], self.config.num_pseudo_words, self.config.output_dim)

    def project_text(self, text_embeds: torch.Tensor) -> torch.Tensor:
        """
        Turns text embeddings into pseudo-words, as text-only training does: they are taken for image embeddings.

        A text has no patches. Patch-based projections that make words without them override it; see `text_words`.

        Args:
            text_embeds (`torch.Tensor` of shape `(B, D)`): Projected text embeddings, not normalised.

        Returns:
            `torch.Tensor` of shape `(B, K, H)`, or `(B, text_words, H)` where that is given: pseudo-words.

        Raises:
            ValueError: `text_embeds` is not `(B, D)`.
            NotImplementedError: `text_words` is 0.
        """
        if self.text_words == 0:
            raise NotImplementedError(
                f"The `{self.config.projection_type}` projection makes its pseudo-words from the patches of an image, "
                f"which have no counterpart in a text. Train the text encoder with a projection of global embeddings "
                f"of the same CLIP model, such as `lincir`, or without one; this projection then serves at inference."
            )
        return self(text_embeds)

    def count_words(self, words: torch.Tensor) -> torch.Tensor:
        """
        How many pseudo-words each image has.

        Args:
            words (`torch.Tensor` of shape `(B, K, H)`): What `forward` returned.

        Returns:
            `torch.Tensor` of shape `(B,)`, int64: K of every image, unless the projection says otherwise.
        """
        return torch.full((words.shape[0],), words.shape[1], device=words.device)

    def template_for(self, num_words: int, benchmark: str = "") -> str:
        """
        The prompt template with as many placeholders as an image has pseudo-words.

        Args:
            num_words (`int`): A number that `count_words` gave.
            benchmark (`str`, *optional*): Name of the benchmark the query belongs to.

        Returns:
            `str`: for [`PromptTokenizer`]: that of `config.benchmark_templates`, else `config.prompt_template`, unless
            the projection says otherwise.

        Raises:
            ValueError: the projection never gives an image so many words.
        """
        if num_words != self.config.num_pseudo_words:
            raise ValueError(
                f"`num_words` of a `{self.config.projection_type}` projection is always "
                f"{self.config.num_pseudo_words}, but got {num_words}. Give a number that `count_words` returned."
            )
        return self.config.benchmark_templates.get(benchmark, self.config.prompt_template)

    def use_template(self, template: str):
        """
        Takes one template for training and every benchmark, in the place of its authors'.

        Args:
            template (`str`): See [`check_template`].

        Raises:
            ValueError: the template is malformed, or has another number of placeholders than an image has words.
        """
        template = check_template(template)
        if template.count(PLACEHOLDER) != self.config.num_pseudo_words:
            raise ValueError(
                f"`template` of a `{self.config.projection_type}` projection must hold "
                f"{self.config.num_pseudo_words} placeholder(s) `{PLACEHOLDER}`, but is {template!r}."
            )
        self.config.prompt_template, self.config.benchmark_templates = template, {}

    def project(
        self,
        image_embeds: torch.Tensor,
        patch_embeds: torch.Tensor | None,
        context_embeds: torch.Tensor | None,
    ) -> torch.Tensor:
        """`(B, D)` to `(B, K * H)` or `(B, K, H)`; the one method a projection defines."""
        raise NotImplementedError(f"{type(self).__name__} must define `project`.")

    def _check_embeds(self, embeds: torch.Tensor):
        width = self.config.input_dim
        if embeds.ndim != 2:
            raise ValueError(f"The embeddings must have shape (batch, {width}), but have {tuple(embeds.shape)}.")
        if embeds.shape[-1] != width:
            trained_on = f" ({self.config.base_model})" if self.config.base_model else ""
            raise ValueError(
                f"The embeddings are {embeds.shape[-1]} wide, but this `{self.config.projection_type}` "
                f"projection takes `input_dim` {width}. Use it with the CLIP model it was trained on{trained_on}, "
                f"or a projection made for this one."
            )

    def _check_patches(self, patch_embeds: torch.Tensor | None, rows: int):
        if not self.needs_patches:
            return
        if patch_embeds is None:
            raise ValueError(
                f"The `{self.config.projection_type}` projection reads `patch_embeds`, but got None. Give the vision "
                f"encoder's last hidden states, as the retriever's `embed_references` and the backbone's "
                f"`encode_image` return them."
            )
        width = self.config.vision_hidden_size
        shape = tuple(patch_embeds.shape)
        if len(shape) != 3 or shape[0] != rows or shape[1] < 1 or (width is not None and shape[2] != width):
            wanted = f"({rows}, 1 + patches, {'width' if width is None else width})"
            raise ValueError(
                f"`patch_embeds` must have shape {wanted}, but have {shape}. Give all tokens of the last vision "
                f"layer, the class token first, of the CLIP model that the projection was trained on."
            )

    def _check_context(self, context_embeds: torch.Tensor | None, rows: int):
        if not self.needs_context:
            return
        if context_embeds is None:
            raise ValueError(
                f"The `{self.config.projection_type}` projection reads `context_embeds`, but got None. Give the text "
                f"embeddings of the prompts, placeholder included, by the text encoder it was trained with (the "
                f"original one, not one trained since), not normalised."
            )
        if tuple(context_embeds.shape) != (rows, self.config.input_dim):
            raise ValueError(
                f"`context_embeds` must have shape {(rows, self.config.input_dim)}, one text embedding per image, but "
                f"have {tuple(context_embeds.shape)}."
            )

    def _vision_width(self) -> int:
        """`config.vision_hidden_size`, for a projection that cannot be sized without it."""
        if self.config.vision_hidden_size is None:
            raise ValueError(
                f"A `{self.projection_type}` projection needs `vision_hidden_size`, the width of the vision encoder's "
                f"tokens, but got None. Give `vision_config.hidden_size` of the CLIP model, 1024 for ViT-L/14."
            )
        return self.config.vision_hidden_size

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

    @classmethod
    def from_original(
        cls,
        path: str | os.PathLike,
        *,
        base_model: str | None = None,
        projection_type: str | None = None,
        **options: Any,
    ):
        """
        Loads a projection from the file its authors published, without running what it holds.

        Args:
            path (`str` or `os.PathLike`): A file, or a Hub file as `"repo_id:filename"`.
            base_model (`str`, *optional*): The CLIP checkpoint it was trained on, for the configuration.
            projection_type (`str`, *optional*): Tells SEARLE and LinCIR apart, whose files look the same; by default
                the type of the class that is asked, if it is one.
            options: See [`~rtd_hf.projections.originals.load_original`], which says more.

        Returns:
            [`ImageToWordProjection`]: of the registered subclass, in evaluation mode; with `output_loading_info=True`
            the pair of it and an [`~rtd_hf.projections.originals.OriginalReport`].

        Raises:
            RegistryError: the projection's type is not registered.
            ValueError: the file holds no such projection, or is damaged; the message says what it looks like.
            OSError: there is no such file, or the Hub file could not be downloaded.
        """
        from .originals import load_original  # which builds on this class

        wanted = projection_type or getattr(cls, "projection_type", None)
        return load_original(path, base_model=base_model, projection_type=wanted, **options)

    @staticmethod
    def _read_projection_type(name: str, kwargs: dict[str, Any]) -> str:
        config = kwargs.get("config")
        if config is None:
            hub = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
            config, _ = ProjectionConfig.get_config_dict(name, **{key: kwargs[key] for key in hub if key in kwargs})
        elif isinstance(config, PreTrainedConfig):
            config = config.to_dict()
        where = "/".join(part for part in (name, kwargs.get("subfolder")) if part)
        if not config:
            raise OSError(
                f"There is no `config.json` in `{where}`. Give the folder of a projection, or its `subfolder`."
            )
        projection_type = config.get("projection_type")
        if projection_type is None:
            raise ValueError(
                f"`{where}` is no projection: its `config.json` has no `projection_type` (`model_type` is "
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
