"""The configuration of image-to-word projections."""

from typing import Any

from transformers import PreTrainedConfig

from ..texts import CAPTION_ORDERS, check_template
from ..weights import check_config_values, errors_of_loading


IMAGE_PREPROCESSES = ("clip", "targetpad")


def check_positive(**numbers: float):
    """
    Checks the counts and widths of a configuration.

    Args:
        numbers (`float`): What must be at least 1, by name.

    Raises:
        ValueError: one of them is less.
    """
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"`{name}` must be at least 1, but is {number}.")


class ProjectionConfig(PreTrainedConfig):
    """
    Configuration of an image-to-word projection.

    Args:
        projection_type (`str`): Name in `PROJECTIONS`, such as `"lincir"`.
        input_dim (`int`): Width D of the image embeddings (`projection_dim` of the CLIP model).
        hidden_dim (`int`): Width of the hidden layers.
        output_dim (`int`): Width H of the text encoder's token embeddings (`hidden_size` of the CLIP text model).
        dropout (`float`): Dropout probability, active in training only.
        num_pseudo_words (`int`): Pseudo-words K per image; where their number differs, the most there can be.
        prompt_template (`str`): The template its authors compose queries with; RTD trains with it.
        benchmark_templates (`dict[str, str]`, *optional*):
            The templates of benchmarks for which they use another, by the benchmark's name.
        caption_order (`str`): How the captions of a query with several are joined, see [`join_captions`].
        image_preprocess (`str`):
            `"clip"` (resize the short side, crop the centre) or `"targetpad"` (pad to a ratio of 1.25 first).
        base_model (`str`, *optional*): The CLIP checkpoint whose embeddings it was trained on.
        vision_hidden_size (`int`, *optional*):
            Width W of the vision encoder's tokens (`hidden_size` of the CLIP vision model), for projections that read
            patches.
        text_training (`str`, *optional*):
            How text-only training puts texts in the place of images, one of the projection's `text_trainings`; its
            first by default.
        surrogate_hidden_dim (`int`, *optional*): Hidden width of its surrogate ([`WordSurrogate`]); 2 D by default.

    What one projection alone has to say stands in a subclass beside it, its `config_class`.

    Raises:
        ValueError: `image_preprocess` or `caption_order` is unknown, a width is not positive, or a template is
            malformed ([`check_template`]).
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
        benchmark_templates: dict[str, str] | None = None,
        caption_order: str = "both",
        image_preprocess: str = "clip",
        base_model: str | None = None,
        vision_hidden_size: int | None = None,
        text_training: str | None = None,
        surrogate_hidden_dim: int | None = None,
        **kwargs: Any,
    ):
        named = {
            "image_preprocess": (image_preprocess, IMAGE_PREPROCESSES),
            "caption_order": (caption_order, CAPTION_ORDERS),
        }
        for name, (value, known) in named.items():
            if value not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(map(repr, known))}, but is {value!r}.")
        for template in (prompt_template, *(benchmark_templates or {}).values()):
            check_template(template)
        check_positive(
            input_dim=input_dim, hidden_dim=hidden_dim, output_dim=output_dim, num_pseudo_words=num_pseudo_words
        )
        if vision_hidden_size is not None:
            check_positive(vision_hidden_size=vision_hidden_size)
        self.projection_type = projection_type
        self.input_dim = input_dim
        self.hidden_dim = hidden_dim
        self.output_dim = output_dim
        self.dropout = dropout
        self.num_pseudo_words = num_pseudo_words
        self.prompt_template = prompt_template
        self.benchmark_templates = dict(benchmark_templates or {})
        self.caption_order = caption_order
        self.image_preprocess = image_preprocess
        self.base_model = base_model
        self.vision_hidden_size = vision_hidden_size
        self.text_training = text_training
        self.surrogate_hidden_dim = surrogate_hidden_dim
        super().__init__(**kwargs)


def read_projection_type(name: str, kwargs: dict[str, Any]) -> str:
    """
    The type of projection that a saved configuration names.

    Args:
        name (`str`): Folder or Hub id.
        kwargs (`dict`): Those of `from_pretrained`, `config` and `subfolder` among them.

    Returns:
        `str`: its name in `PROJECTIONS`.

    Raises:
        ValueError: it is the configuration of something else.
        OSError: there is none.
    """
    config = kwargs.get("config")
    if config is None:
        hub = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
        with errors_of_loading(name, "The configuration"):
            config, _ = ProjectionConfig.get_config_dict(name, **{key: kwargs[key] for key in hub if key in kwargs})
            config = dict(config)
    elif isinstance(config, PreTrainedConfig):
        config = config.to_dict()
    where = "/".join(part for part in (name, kwargs.get("subfolder")) if part)
    if not config:
        raise OSError(f"There is no `config.json` in `{where}`. Give the folder of a projection, or its `subfolder`.")
    projection_type = config.get("projection_type")
    if projection_type is None:
        raise ValueError(
            f"`{where}` is no projection: its `config.json` has no `projection_type` (`model_type` is "
            f"`{config.get('model_type')}`). Give a folder that a projection's `save_pretrained` wrote."
        )
    if not isinstance(projection_type, str):
        raise ValueError(f"`{where}` states `projection_type` {str(projection_type)[:60]}, which is no name.")
    check_config_values(config, where)
    return projection_type
