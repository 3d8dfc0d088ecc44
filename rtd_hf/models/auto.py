"""One door to all backbones: the class that loads a checkpoint is found by its configuration."""

import os
from typing import Any

from .checkpoints import BACKBONES, read_config


class AutoTextModelForRTD:
    """
    Loads the text encoder of any registered family, as [`~transformers.AutoModel`] does for stock models.

    Example:

    ```python
    >>> text_encoder = AutoTextModelForRTD.from_pretrained("google/siglip2-base-patch16-224")
    >>> vision_model = text_encoder.load_vision_model("google/siglip2-base-patch16-224")
    >>> prompts = PromptTokenizer(tokenizer, "a photo of $ that {caption}", **text_encoder.prompt_options())
    ```
    """

    def __init__(self):
        raise TypeError("`AutoTextModelForRTD` makes no object. Use `AutoTextModelForRTD.from_pretrained(...)`.")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any):
        """
        Loads a checkpoint with the class that its `model_type` is registered for in `BACKBONES`.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Folder or Hub id of a whole model (`clip`, `siglip`, ...) or of its text encoder alone.
            args, kwargs: As [`~transformers.PreTrainedModel.from_pretrained`] takes them.

        Returns:
            A text encoder that takes pseudo-words, such as [`CLIPTextModelForRTD`].

        Raises:
            ValueError: there is no backbone for such a checkpoint, or its weights are missing or not finite.
            OSError: there is no such checkpoint, or it is damaged.
        """
        backbone = cls.class_for(pretrained_model_name_or_path, **kwargs)
        return backbone.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @staticmethod
    def class_for(pretrained_model_name_or_path: Any, **kwargs: Any) -> type:
        """
        The class that loads a checkpoint.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Folder or Hub id.
            kwargs: Arguments of the load, such as `revision`, `subfolder` or `config`.

        Returns:
            `type`: registered in `BACKBONES`.

        Raises:
            ValueError: there is none; the message lists what exists.
            OSError: there is no such checkpoint.
        """
        name = os.fspath(pretrained_model_name_or_path)
        model_type = read_config(name, **kwargs).get("model_type")
        if model_type is None:
            raise ValueError(
                f"There is no backbone for `{name}`: it has no `config.json` that names a `model_type`, as all have "
                f"that transformers wrote. Files of open_clip or OpenAI's `clip` are read by `import_layout`, or by "
                f"`examples/convert_encoder.py`."
            )
        if model_type not in BACKBONES:
            raise ValueError(
                f"There is no backbone for `{name}`, whose `model_type` is {model_type!r}; there are ones for "
                f"{', '.join(map(repr, sorted(BACKBONES)))}. Give a checkpoint of one of these, or register a class "
                f"for it with `@BACKBONES.register({model_type!r})`."
            )
        return BACKBONES[model_type]
