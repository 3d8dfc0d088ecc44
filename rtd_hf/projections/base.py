"""The contract of image-to-word projections: building, loading, shapes."""

import os
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from ..registry import Registry
from ..texts import DEFAULT_TEMPLATE, PLACEHOLDER, check_template
from ..weights import load_complete
from .checks import check_inputs
from .configuration import ProjectionConfig, read_projection_type
from .texts_for_images import TextsForImages


PROJECTIONS = Registry("projection", "PROJECTIONS")


class ImageToWordProjection(TextsForImages, PreTrainedModel):
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
        text_trainings, surrogate_is_bounded: See [`TextsForImages`].

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

    def __init__(self, config: ProjectionConfig):
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"`config` of a {type(self).__name__} must be a `{self.config_class.__name__}`, but is a "
                f"`{type(config).__name__}`. Use `ImageToWordProjection.build`, or make one of that class."
            )
        super().__init__(config)
        if config.projection_type is None:
            config.projection_type = self.projection_type  # or the saved folder could not be loaded
        self.prepare_for_texts()

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
        check_inputs(self, image_embeds, patch_embeds, context_embeds)
        # The towers may run in another precision than the projection.
        inputs = (
            None if embeds is None else embeds.to(self.dtype)
            for embeds in (image_embeds, patch_embeds, context_embeds)
        )
        words = self.project(*inputs)
        return words.reshape(image_embeds.shape[0], self.config.num_pseudo_words, self.config.output_dim)

    # Images with differing numbers of words

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
                one that was asked, or lacks weights, or has some that are not finite.
            OSError: the folder does not exist, or the weights file is damaged.
        """
        name = os.fspath(pretrained_model_name_or_path)
        projection_type = read_projection_type(name, kwargs)
        subclass = PROJECTIONS[projection_type]
        if not issubclass(subclass, cls):
            raise ValueError(
                f"`{name}` holds a `{projection_type}` projection ({subclass.__name__}), not a {cls.__name__}. Load "
                f"it with `ImageToWordProjection.from_pretrained`."
            )
        wants_report = kwargs.pop("output_loading_info", False)
        load = super(ImageToWordProjection, subclass).from_pretrained
        model, report = load_complete(
            load,
            name,
            *args,
            kind=f"a `{projection_type}` projection",
            advice="Convert or download the checkpoint again.",
            **kwargs,
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
