"""Pic2Word's projection (Saito et al., CVPR 2023, "Pic2Word: Mapping Pictures to Words for Zero-shot CIR")."""

from typing import ClassVar

import torch
from torch import nn

from ..texts import DEFAULT_TEMPLATE
from .base import PROJECTIONS, ImageToWordProjection, ProjectionConfig


@PROJECTIONS.register("pic2word")
class Pic2WordProjection(ImageToWordProjection):
    """
    A ReLU network with two hidden layers of width 512, D to 512 to 512 to H, one pseudo-word.

    Dropout lies between each linear layer and its ReLU. The keys of its state dict (`layers.0.0`, `layers.1.0`,
    `fc_out`) are those of the published `IM2TEXT`. Its authors write queries with a comma, `a photo of * , {caption}`;
    the placeholder's own embedding is replaced, so that it is written `$` here.
    """

    projection_type = "pic2word"
    default_dropout = 0.1
    prompt_template = "a photo of $ , {caption}"
    benchmark_templates: ClassVar[dict[str, str]] = {
        "coco": "a photo of $ and {caption}",
        "imagenet": "a {caption} of $",
        # not in the publication; with these others measured it there
        "circo": DEFAULT_TEMPLATE,
        "genecis": DEFAULT_TEMPLATE,
    }
    caption_order = "last_first"

    @staticmethod
    def default_hidden_dim(projection_dim: int) -> int:
        """512 for every backbone."""
        return 512

    def __init__(self, config: ProjectionConfig):
        super().__init__(config)
        widths = (config.input_dim, config.hidden_dim)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(width, config.hidden_dim), nn.Dropout(config.dropout), nn.ReLU())
                for width in widths
            )
        )
        self.fc_out = nn.Linear(config.hidden_dim, config.num_pseudo_words * config.output_dim)
        self.post_init()

    def project(
        self,
        image_embeds: torch.Tensor,
        patch_embeds: torch.Tensor | None,
        context_embeds: torch.Tensor | None,
    ) -> torch.Tensor:
        return self.fc_out(self.layers(image_embeds))
