"""The CLIP a projection is fitted to: both towers, frozen, with what belongs to them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..contexts import quiet_transformers
from ..models import AutoTextModelForRTD
from ..parsing import read_object
from ..tokens import load_tokenizer
from ..weights import errors_of_loading


_SCALE = "logit_scale"


@dataclass
class FrozenCLIP:
    """
    A CLIP whose weights do not move.

    Args:
        text_encoder ([`CLIPTextModelForRTD`]): The text encoder; takes pseudo-words.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        vision_model (`CLIPVisionModelWithProjection`, *optional*): The image tower, where pictures are needed.
        image_processor (*optional*): Its image processor.
        logit_scale (`float`, *optional*):
            What CLIP was trained to multiply cosine similarities with, `exp` of its parameter of that name; 100 for
            OpenAI's.
    """

    text_encoder: nn.Module
    tokenizer: Any
    vision_model: nn.Module | None = None
    image_processor: Any = None
    logit_scale: float | None = None

    def __post_init__(self):
        for tower in (self.text_encoder, self.vision_model):
            if tower is not None:
                tower.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, name: str, *, images: bool = True) -> "FrozenCLIP":
        """
        Loads a CLIP checkpoint.

        Args:
            name (`str`): Folder or Hub id of a whole CLIP; without `images` that of a text encoder will do.
            images (`bool`, *optional*, defaults to `True`): Also load the image tower.

        Returns:
            [`FrozenCLIP`]: on the CPU, in float32.

        Raises:
            ValueError: the checkpoint is of a family that is not registered in `BACKBONES`, it lacks weights or has
                some that are not finite, or the tokenizer is another model's.
            OSError: there is no such checkpoint, or it is damaged.
        """
        text_class = AutoTextModelForRTD.class_for(name)
        with quiet_transformers():  # each tower reports the other one's weights as left over
            text_encoder = text_class.from_pretrained(name, dtype=torch.float32)
            tokenizer = load_tokenizer(name)
            text_encoder.check_tokenizer(tokenizer)
            return cls(
                text_encoder,
                tokenizer,
                text_class.load_vision_model(name, dtype=torch.float32) if images else None,
                text_class.load_image_processor(name) if images else None,
                read_logit_scale(name),
            )

    @property
    def device(self) -> torch.device:
        """Where the text encoder is."""
        return next(self.text_encoder.parameters()).device

    def to(self, device: torch.device | str) -> "FrozenCLIP":
        """Moves both towers; returns itself."""
        self.text_encoder.to(device)
        if self.vision_model is not None:
            self.vision_model.to(device)
        return self

    def encode_image(self, pixel_values: torch.Tensor, **more: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, height, width)`): Preprocessed pictures.
            more (`torch.Tensor`): What else the image processor returned.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: image embeddings `(B, D)`, not normalised, and the tokens of the last
            layer `(B, 1 + patches, W)`; both float32.
        """
        with torch.no_grad():
            embeds, patches = type(self.text_encoder).encode_image(self.vision_model, pixel_values, **more)
        return embeds.float(), patches.float()


def read_logit_scale(name: str) -> float | None:
    """
    The scale of similarities that a CLIP was trained with; text encoders do not keep it when they are loaded.

    Args:
        name (`str`): Folder or Hub id of a CLIP.

    Returns:
        `float`: `exp` of the checkpoint's `logit_scale`; `None` where the checkpoint has none, as that of a text
        encoder alone.
    """
    for file in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        path = _cached(name, file)
        if path is not None:
            weight_map = read_object(path).get("weight_map")
            file = weight_map.get(_SCALE) if isinstance(weight_map, dict) else None
            if file is not None and (not isinstance(file, str) or Path(file).name != file):
                raise ValueError(f"`{path}` names {file!r} for `{_SCALE}`, which is no file beside it. Get it anew.")
            return None if file is None else _scale_in(_cached(name, file))
    return _scale_in(_cached(name, "model.safetensors") or _cached(name, "pytorch_model.bin"))


def _cached(name: str, file: str) -> Path | None:
    from transformers.utils import cached_file

    found = cached_file(
        name,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return None if found is None else Path(found)


def _scale_in(path: Path | None) -> float | None:
    if path is None:
        return None
    with errors_of_loading(str(path), "The weights"):
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                scale = file.get_tensor(_SCALE) if _SCALE in file.keys() else None  # noqa: SIM118 (it is no dict)
        else:
            scale = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get(_SCALE)
        return None if scale is None else scale.float().exp().item()
