"""Pic2Word's objective (Saito et al., CVPR 2023, "Pic2Word: Mapping Pictures to Words for Zero-shot CIR")."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .base import BARE_PROMPT, OBJECTIVES, Batch, ObjectiveOptions, ProjectionObjective, contrast
from .towers import FrozenCLIP


@dataclass
class Pic2WordOptions(ObjectiveOptions):
    """Options of [`Pic2WordObjective`]."""

    logit_scale: float | None = field(
        default=None, metadata={"help": "What cosine similarities are multiplied with; the CLIP's own by default."}
    )
    crop_scale: float = field(
        default=0.9, metadata={"help": "Least share of a picture that is cropped at random; 1 takes it whole."}
    )


@OBJECTIVES.register("pic2word")
class Pic2WordObjective(ProjectionObjective):
    """
    A picture's word, in `a photo of $`, has the text embedding that CLIP pairs with the picture. No captions.

    With v the image embedding and s CLIP's own frozen logit scale, the loss is the cross-entropy of
    `s * cos(E_T(a photo of [phi(v)]), v)` over the pictures of a batch, and over the texts, averaged (equations 1 to
    3). The pictures of all processes are each other's negatives.

    Published: AdamW with learning rate 1e-4, betas 0.9 and 0.98, eps 1e-6, weight decay 0.1 on all but biases and
    norms, 10,000 steps of warm-up and a cosine schedule, 30 epochs in batches of 128 on each GPU; random crops of 0.9
    to 1.0 of the area.
    """

    options_class = Pic2WordOptions
    training_defaults = {
        "num_train_epochs": 30,
        "per_device_train_batch_size": 128,
        "learning_rate": 1e-4,
        "weight_decay": 0.1,
        "adam_beta1": 0.9,
        "adam_beta2": 0.98,
        "adam_epsilon": 1e-6,
        "warmup_steps": 10_000,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 0.0,
    }
    decays_all = False

    def __init__(self, clip: FrozenCLIP, config: Any, options: Pic2WordOptions | None = None, **settings: Any):
        super().__init__(clip, config, options, **settings)
        self.logit_scale = resolve_logit_scale(clip, self.options.logit_scale)

    def text_batch(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """The same prompt for every picture."""
        return {"prompt": self.texts.lay_out([BARE_PROMPT] * len(rows))}

    def loss(self, model: nn.Module, inputs: Batch, draw: torch.Generator) -> tuple[torch.Tensor, dict]:
        """See the class."""
        image_embeds, _ = self.image_features(inputs)
        words = model(image_embeds)
        text_embeds = self.texts.encode(inputs["prompt"], words)
        return contrast(model, text_embeds, image_embeds, 1 / self.logit_scale, "info_nce"), {}


def resolve_logit_scale(clip: FrozenCLIP, given: float | None) -> float:
    """
    Args:
        clip ([`FrozenCLIP`]): The CLIP.
        given (`float`, *optional*): The option; it wins.

    Returns:
        `float`: what similarities are multiplied with.

    Raises:
        ValueError: neither says, or the option is not positive.
    """
    scale = clip.logit_scale if given is None else given
    if scale is None:
        raise ValueError(
            "The CLIP checkpoint holds no `logit_scale`, which the loss multiplies similarities with. Give the whole "
            "CLIP as `clip_model`, not its text encoder alone, or set `logit_scale` (100 for OpenAI's)."
        )
    if not 0 < scale < float("inf"):
        raise ValueError(f"`logit_scale` must be positive and finite, but is {scale}.")
    return float(scale)
